"""A step whose kernels can be queued or captured one by one, for measurements; serving does not use it."""

from __future__ import annotations

from collections.abc import Sequence

from infernum.runtime.binding import BoundProgram, StepPlace
from infernum.runtime.device import Device
from infernum.runtime.loading import LoadedBundle
from infernum.runtime.sampled import SampledTokens, TokenRing
from infernum.runtime.stream import CudaGraph, Stream
from infernum.step import Batch, Sampling


class PreparedStep:
    """One step: the program of the model, then a sampler. `places` has the block, layer and index of each kernel."""

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
        """Called by `CudaExecutor.prepare`; uploads the batch."""
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
        """Queue the upload of a batch of the same sizes. Each step needs it, since samplers overwrite inputs."""
        assert (batch.tokens, batch.seqs, batch.rows) == self._sizes, (
            "a step is prepared for one size of batch"
        )
        self.device.activate()
        self._loaded.inputs.upload(batch, self._sampling)

    def queued(self) -> list[int]:
        """The numbers of the kernels that this step launches. Kernels with an empty grid are left out."""
        self._loaded.symbols.set(*self._sizes, self._context_pages)
        first = len(self._model.places)
        return [*self._model.queued(), *(first + number for number in self._sampler.queued())]

    def queue(self, only: Sequence[int] | None = None) -> None:
        """Queue all kernels of the step, or the kernels of the numbers in `only`, in that order."""
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
        """Capture these kernels as a CUDA graph. Each must have run once, which loads it and picks algorithms."""
        with self.stream.capture() as capture:
            self.queue(only)
        assert capture.graph is not None, "a capture that ended well has a graph"
        return capture.graph

    def sampled(self) -> SampledTokens:
        """Queue the copy of the sampled tokens to the host. Read them before the next step is queued."""
        return self._ring.fetch(self._loaded.inputs.next_tokens(0), self._sizes[2])


def _runs(only: Sequence[int], first: int) -> list[tuple[bool, list[int]]]:
    """Split numbers over the whole step into runs of one program: (whether the sampler, numbers within the program)."""
    runs: list[tuple[bool, list[int]]] = []
    for number in only:
        of_sampler = number >= first
        if not runs or runs[-1][0] != of_sampler:
            runs.append((of_sampler, []))
        runs[-1][1].append(number - first if of_sampler else number)
    return runs
