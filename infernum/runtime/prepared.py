"""A step that is queued or captured piece by piece, to be measured; steps that serve requests never come here."""

from __future__ import annotations

from collections.abc import Sequence

from infernum.runtime.binding import BoundProgram, StepPlace
from infernum.runtime.device import Device
from infernum.runtime.loading import LoadedBundle
from infernum.runtime.sampled import SampledTokens, TokenRing
from infernum.runtime.stream import CudaGraph, Stream
from infernum.step import Batch, Sampling


class PreparedStep:
    """One step: the model's program and then a sampler. `places` tells where each of its kernels comes from."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        loaded: LoadedBundle,
        programs: tuple[BoundProgram, BoundProgram],
        batch: Batch,
        sampling: Sampling,
        context_pages: int,
        ring: TokenRing,
    ) -> None:
        """Made by `CudaExecutor.prepare`; uploads the batch."""
        self.device = device
        self.stream = stream
        self._loaded = loaded
        self._model, self._sampler = programs
        self._sizes = (batch.tokens, batch.seqs, batch.rows)
        self._context_pages = context_pages
        self._sampling = sampling
        self._ring = ring
        self.places: tuple[StepPlace, ...] = (*self._model.places, *self._sampler.places)
        self.upload(batch)

    @property
    def symbols(self) -> dict[str, int]:
        """The values of all symbols in this step."""
        self._loaded.symbols.set(*self._sizes, self._context_pages)
        return self._loaded.symbols.values()

    def upload(self, batch: Batch) -> None:
        """Queue the copy of a batch of the same sizes: a sampler has changed what the last one held."""
        assert (batch.tokens, batch.seqs, batch.rows) == self._sizes, (
            "a step is prepared for one size of batch"
        )
        self.device.activate()
        self._loaded.inputs.upload(batch, self._sampling)

    def queued(self) -> list[int]:
        """The numbers of the kernels that this step launches: those whose grid has blocks."""
        self._loaded.symbols.set(*self._sizes, self._context_pages)
        first = len(self._model.places)
        return [*self._model.queued(), *(first + number for number in self._sampler.queued())]

    def queue(self, only: Sequence[int] | None = None) -> None:
        """Queue the whole step, or just the kernels of these numbers, in this order."""
        self.device.activate()
        self._loaded.symbols.set(*self._sizes, self._context_pages)
        if only is None:
            self._model.queue()
            self._sampler.queue()
            return
        first = len(self._model.places)
        for program, numbers in _runs(only, first):
            (self._sampler if program else self._model).queue(numbers)

    def capture(self, only: Sequence[int]) -> CudaGraph:
        """These kernels as a graph; each must have run before, which loads it and chooses its algorithm."""
        with self.stream.capture() as capture:
            self.queue(only)
        assert capture.graph is not None, "a capture that ended well has a graph"
        return capture.graph

    def sampled(self) -> SampledTokens:
        """Queue the copy of the sampled tokens to the host; they must be asked for before more is queued."""
        return self._ring.fetch(self._loaded.inputs.next_tokens(0), self._sizes[2])


def _runs(only: Sequence[int], first: int) -> list[tuple[bool, list[int]]]:
    """Numbers over model and sampler together, as runs within one of them, each counted from its own beginning."""
    runs: list[tuple[bool, list[int]]] = []
    for number in only:
        of_sampler = number >= first
        if not runs or runs[-1][0] != of_sampler:
            runs.append((of_sampler, []))
        runs[-1][1].append(number - first if of_sampler else number)
    return runs
