"""The CUDA graphs of decodes: captured when a decode of the same shape runs for the second time, and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from infernum.errors import DeviceError
from infernum.runtime.recent import Recent
from infernum.runtime.stream import CudaGraph, Stream

MOST_DECODES = 128
"""Most decodes whose CUDA graphs are held: those of all sizes of `dims.round_decodes` at four lengths of context."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepShape:
    """Everything that the kernels of a step and their grids depend on. Steps of one shape share a CUDA graph."""

    variant: str
    tokens: int
    seqs: int
    rows: int
    context_pages: int
    sampler: str
    logprobs: bool = False

    @property
    def is_decode(self) -> bool:
        """True when every sequence has one token and one row: the sampled token is the next step's input."""
        return self.tokens == self.seqs == self.rows


@dataclass
class _Captured:
    """The CUDA graphs of a decode that has run before, by turn. `capturable` is False once a capture has failed."""

    graphs: dict[int, CudaGraph] = field(default_factory=dict[int, CudaGraph])
    capturable: bool = True


class DecodeGraphs:
    """The CUDA graphs of the decodes that ran last, on one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decodes = Recent[StepShape, _Captured](MOST_DECODES, self._close)

    def note(self, shape: StepShape) -> None:
        """A step of this shape has been launched kernel by kernel: the next one may be captured."""
        if shape.is_decode and self._decodes.get(shape) is None:
            self._decodes.put(shape, _Captured())

    def graph(self, shape: StepShape, turn: int, queue: Callable[[], None]) -> CudaGraph | None:
        """The CUDA graph of a decode, captured from `queue` at its second run: the first loads kernels.

        None when there is none, also because the capture failed, usually for lack of memory. The decode is then always
        launched kernel by kernel.
        """
        decode = self._decodes.get(shape)
        if decode is None:
            return None
        graph = decode.graphs.get(turn)
        if graph is not None or not decode.capturable:
            return graph
        try:
            with self._stream.capture() as capture:
                queue()
        except DeviceError as error:
            decode.capturable = False
            log.warning(
                "a decode of %d tokens is launched without a CUDA graph, which is slower (%s)",
                shape.tokens,
                error,
            )
            return None
        assert capture.graph is not None, "a capture that ended well has a graph"
        decode.graphs[turn] = capture.graph
        return capture.graph

    def can_capture(self, shape: StepShape) -> bool:
        """False for a decode that has not run, and for one whose capture has failed."""
        decode = self._decodes.get(shape)
        return decode is not None and decode.capturable

    def clear(self) -> None:
        """Destroy all graphs, once none of them is running."""
        self._decodes.clear()

    def _close(self, decode: _Captured) -> None:
        if decode.graphs:
            self._stream.synchronize()
        for graph in decode.graphs.values():
            graph.close()
