"""The GPU of this machine as a bench."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from infernum.errors import DeviceError
from infernum.lab.verify.bench import Bench
from infernum.runtime.device import Device
from infernum.runtime.gemm import CublasLt


@contextmanager
def open_bench() -> Generator[Bench]:
    """The first GPU, with a stream and cuBLASLt. Raises DeviceError when there is none.

    What cannot be given back, since a kernel has lost the GPU's context, is left to the end of the process.
    """
    device = Device.open(0)
    to_close: list[Callable[[], None]] = [device.close]
    try:
        stream = device.stream()
        to_close.append(stream.close)
        products = CublasLt(device, stream)
        to_close.append(products.close)
        bench = Bench(device, stream, products)
        to_close.append(bench.close)
        yield bench
    finally:
        _close(reversed(to_close))


def _close(functions: Iterator[Callable[[], None]]) -> None:
    try:
        for close in functions:
            close()
    except DeviceError:
        return
