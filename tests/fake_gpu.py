"""A GPU made of host memory, for tests of the runtime: it runs queued work as late as CUDA is allowed to.

Work runs only when an event is waited for or the stream is synchronised, so that a pinned buffer overwritten
too early, or an argument read too late, shows. Kernels are Python functions over arrays at raw addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from infernum.runtime.driver import GpuFacts

Kernel = Callable[..., None]


def at(address: int, dtype: Any, *shape: int) -> np.ndarray:
    """The array of this shape that lies at `address`."""
    count = int(np.prod(shape))
    itemsize = np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * (count * itemsize)).from_address(address), dtype).reshape(shape)


@dataclass
class FakeMemory:
    gpu: FakeGpu
    nbytes: int
    pinned: bool
    address: int = 0

    def __post_init__(self) -> None:
        self._raw = (ctypes.c_ubyte * (self.nbytes + 256))()
        self.address = (ctypes.addressof(self._raw) + 255) // 256 * 256
        self.gpu.live.append(self)

    def array(self, dtype: Any, count: int, offset: int = 0) -> np.ndarray:
        assert offset + count * np.dtype(dtype).itemsize <= self.nbytes
        return at(self.address + offset, dtype, count)

    def free(self) -> None:
        self.gpu.live.remove(self)


@dataclass
class FakeEvent:
    stream: FakeStream | None = None
    mark: int = 0

    def wait(self) -> None:
        if self.stream is not None:
            self.stream.run_until(self.mark)

    def close(self) -> None:
        pass


@dataclass
class FakeConfig:
    block: tuple[int, int, int]
    shared_bytes: int
    programmatic: bool
    clustered: bool = False
    grid: tuple[int, int, int] = (0, 0, 0)
    cluster: int = 1

    @property
    def empty(self) -> bool:
        return 0 in self.grid

    def set_grid(self, x: int, y: int, z: int, cluster: int = 1) -> None:
        self.grid, self.cluster = (x, y, z), cluster


@dataclass(eq=False)
class FakeGraph:
    stream: FakeStream
    work: list[Callable[[], None]]

    def __post_init__(self) -> None:
        self.stream.gpu.graphs.append(self)

    def launch(self) -> None:
        self.stream.gpu.graph_launches += 1
        for item in self.work:
            self.stream.put(partial(self._run, item))

    def _run(self, item: Callable[[], None]) -> None:
        assert self in self.stream.gpu.graphs, "a graph was destroyed while the GPU ran it"
        item()

    def close(self) -> None:
        self.stream.gpu.graphs.remove(self)


@dataclass
class FakeCapture:
    graph: FakeGraph | None = None


class FakeStream:
    handle = 0

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.waiting: list[Callable[[], None]] = []
        self.done = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.configs: list[FakeConfig] = []

    def put(self, item: Callable[[], None]) -> None:
        (self.waiting if self.capturing is None else self.capturing).append(item)

    def run_until(self, mark: int) -> None:
        while self.done < mark:
            self.waiting.pop(0)()
            self.done += 1

    def upload(self, to: int, host: int, nbytes: int) -> None:
        if not self.gpu.is_pinned(host):  # pageable memory may change as soon as the call returns
            data = ctypes.string_at(host, nbytes)
            self.put(lambda: ctypes.memmove(to, data, nbytes) and None)
        else:
            self.put(lambda: ctypes.memmove(to, host, nbytes) and None)

    download = upload

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.put(lambda: ctypes.memmove(to, source, nbytes) and None)

    def upload_rows(self, to: int, to_pitch: int, host: int, host_pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            self.upload(to + row * to_pitch, host + row * host_pitch, width)

    def copy_rows(self, to: int, source: int, pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            self.copy(to + row * pitch, source + row * pitch, width)

    def fill(self, to: int, byte: int, nbytes: int) -> None:
        self.put(lambda: ctypes.memset(to, byte, nbytes) and None)

    def record(self, event: FakeEvent) -> None:
        assert self.capturing is None
        event.stream, event.mark = self, self.done + len(self.waiting)

    def wait(self, event: FakeEvent) -> None:
        stream, mark = event.stream, event.mark
        assert stream is not None, "waiting for an event that was never recorded"
        self.put(lambda: stream.run_until(mark))

    def launch_config(
        self, block: tuple[int, int, int], shared_bytes: int, programmatic: bool, clustered: bool = False
    ) -> FakeConfig:
        self.configs.append(FakeConfig(block, shared_bytes, programmatic, clustered))
        return self.configs[-1]

    def launch(self, config: FakeConfig, kernel: tuple[str, Kernel], params: int) -> None:
        signature, function = kernel
        cells = at(params, np.uint64, len(signature))
        types = {"p": np.uint64, "i": np.int32}
        values = [int(at(int(cell), types[kind], 1)[0]) for cell, kind in zip(cells, signature, strict=True)]
        self.gpu.eager_launches += self.capturing is None
        grid = config.grid
        self.put(lambda: function(grid, *values))

    @contextmanager
    def capture(self) -> Iterator[FakeCapture]:
        self.capturing = work = []
        capture = FakeCapture()
        try:
            yield capture
        finally:
            self.capturing = None
        capture.graph = FakeGraph(self, work)

    def synchronize(self) -> None:
        self.run_until(self.done + len(self.waiting))

    def close(self) -> None:
        pass


@dataclass
class FakeModule:
    kernels: dict[str, tuple[str, Kernel]]

    def kernel(self, name: str, shared_bytes: int) -> tuple[str, Kernel]:
        return self.kernels[name]

    def close(self) -> None:
        pass


@dataclass
class FakeGpu:
    """Stands in for `infernum.runtime.device.Device`. `live` and `graphs` hold what was not given back.

    `reached` has the numbers of the GPUs whose memory this one may use.
    """

    kernels: dict[str, tuple[str, Kernel]]
    arch: tuple[int, int] = (9, 0)
    total: int = 2**20
    live: list[FakeMemory] = field(default_factory=list)
    graphs: list[FakeGraph] = field(default_factory=list)
    graph_launches: int = 0
    eager_launches: int = 0
    closed: bool = False
    references: int = 1
    index: int = 0
    reached: set[int] = field(default_factory=set[int])
    streams: list[FakeStream] = field(default_factory=list["FakeStream"])

    @property
    def facts(self) -> GpuFacts:
        return GpuFacts(self.index, "a fake GPU", self.arch, 4, 227 * 1024, self.total)

    def is_pinned(self, address: int) -> bool:
        return any(memory.address <= address < memory.address + memory.nbytes for memory in self.live)

    def memory(self) -> tuple[int, int]:
        return self.total - sum(memory.nbytes for memory in self.live if not memory.pinned), self.total

    def alloc(self, nbytes: int, what: str) -> FakeMemory:
        return FakeMemory(self, nbytes, pinned=False)

    def alloc_pinned(self, nbytes: int) -> FakeMemory:
        return FakeMemory(self, nbytes, pinned=True)

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def retained(self) -> FakeGpu:
        self.references += 1
        return self

    def reach(self, other: FakeGpu) -> None:
        self.reached.add(other.index)

    def write(self, address: int, values: np.ndarray) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def event(self, *, timing: bool = False) -> FakeEvent:
        return FakeEvent()

    def load_module(self, image: bytes, where: str) -> FakeModule:
        return FakeModule(self.kernels)

    def activate(self) -> None:
        assert not self.closed

    def close(self) -> None:
        self.references -= 1
        self.closed = self.references < 1
