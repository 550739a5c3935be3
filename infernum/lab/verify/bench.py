"""A GPU on which the program of one unit runs alone, in the memory of one trial, and is timed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum.dims import ceildiv
from infernum.errors import DeviceError
from infernum.lab.verify.facts import Facts
from infernum.lab.verify.image import ALIGNMENT, Image
from infernum.lab.verify.values import Array
from infernum.runtime.binding import BoundProgram, Symbols
from infernum.runtime.device import Device
from infernum.runtime.gemm import CublasLt
from infernum.runtime.timing import median_ms

REPETITIONS = 20
"""Launches of a program in the graph that is timed."""

CACHE_BYTES = 2 * 64 * 2**20
"""Bytes that a timed program passes over before it reads the same bytes again: twice the L2 cache of an H200."""


@dataclass(frozen=True)
class Time:
    """Microseconds of a program; `in_cache` where its memory may have been in the L2 cache."""

    microseconds: float
    in_cache: bool


class Bench:
    """A device, its stream and its products (cuBLASLt): those of the runtime, or fakes."""

    def __init__(self, device: Any, stream: Any, products: Any) -> None:
        self.device = device
        self._stream = stream
        self._products = products
        self._memory: Any = None
        self._modules: dict[bytes, Any] = {}

    def run(self, image: Image) -> Array:
        """Launch the image's program on a copy of the image in GPU memory; returns the bytes afterwards.

        Raises DeviceError when a kernel fails; the GPU's context is then lost.
        """
        base = self._room(len(image.bytes))
        self._stream.upload(base, image.bytes.ctypes.data, len(image.bytes))
        self._launches(image, [base])()
        after = np.empty_like(image.bytes)
        self._stream.download(after.ctypes.data, base, len(after))
        self._stream.synchronize()
        return after

    def time(self, image: Image) -> Time:
        """The median time of one run, among runs that follow each other over several copies of the image."""
        nbytes = ceildiv(len(image.bytes), ALIGNMENT) * ALIGNMENT
        copies = min(REPETITIONS, ceildiv(CACHE_BYTES, nbytes) + 1)
        base = self._room(copies * nbytes)
        bases = [base + i * nbytes for i in range(copies)]
        for copy in bases:
            self._stream.upload(copy, image.bytes.ctypes.data, len(image.bytes))
        queue = self._launches(image, [bases[i % copies] for i in range(REPETITIONS)])
        queue()  # cuBLASLt chooses its algorithms before anything is captured
        self._stream.synchronize()
        with self._stream.capture() as capture:
            queue()
        assert capture.graph is not None, "a capture that ended without an error has a graph"
        try:
            milliseconds = median_ms(self.device, self._stream, capture.graph.launch, runs=11)
        finally:
            capture.graph.close()
        return Time(milliseconds * 1e3 / REPETITIONS, copies * nbytes < CACHE_BYTES)

    def forget_modules(self) -> None:
        """Unload every cubin."""
        for module in self._modules.values():
            module.close()
        self._modules.clear()

    def close(self) -> None:
        """Free the memory and unload every cubin."""
        self.forget_modules()
        if self._memory is not None:
            self._memory.free()
            self._memory = None

    def _room(self, nbytes: int) -> int:
        """The address of at least `nbytes` of GPU memory, valid until a larger size is needed.

        The size is a power of two: trials grow step by step, and every new allocation waits for the whole GPU.
        """
        if self._memory is None or self._memory.nbytes < nbytes:
            if self._memory is not None:
                self._memory.free()
                self._memory = None
            size = 1 << (nbytes - 1).bit_length()
            self._memory = self.device.alloc(size, "tensors of a kernel that is verified")
        return self._memory.address

    def _launches(self, image: Image, bases: list[int]) -> Callable[[], None]:
        """A function that queues the image's program once for each base address of a copy of the image."""
        program = BoundProgram(self._stream, self._symbols(image.facts), self._products)
        for base in bases:
            addresses: Mapping[str, int] = {name: base + begin for name, (begin, _) in image.spans.items()}
            program.append(image.program.variant, self._module(image), addresses)
        return program.queue

    def _symbols(self, facts: Facts) -> Symbols:
        counts = facts.symbols
        symbols = Symbols(max_pages=counts["max_pages"], pages=counts["pages"], sms=self.device.facts.sms)
        symbols.set(counts["tokens"], counts["seqs"], counts["rows"], counts["context_pages"])
        return symbols

    def _module(self, image: Image) -> Any:
        cubin = image.program.cubin
        if cubin not in self._modules:
            self._modules[cubin] = self.device.load_module(cubin, image.program.variant.cubin)
        return self._modules[cubin]


@contextmanager
def open_bench() -> Generator[Bench]:
    """A bench on the first GPU. Raises DeviceError where there is none.

    Once a kernel has lost the GPU's context, nothing can be closed any more, and the end of the process frees it.
    """
    opened: list[Any] = [device := Device.open(0)]
    try:
        opened.append(stream := device.stream())
        opened.append(products := CublasLt(device, stream))
        opened.append(bench := Bench(device, stream, products))
        yield bench
    finally:
        with suppress(DeviceError):
            for part in reversed(opened):
                part.close()
