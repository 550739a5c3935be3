"""The bound of a kernel: its bytes and FLOPs in a step, over the speeds that were measured in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from infernum import dims, dtypes
from infernum.lab.measure.read_bandwidth import measure_read_bandwidth
from infernum.manifest import Kernel
from infernum.runtime.device import Device
from infernum.runtime.gemm import CublasLt, MatrixProduct
from infernum.runtime.timing import Stopwatch
from infernum.step import Batch

SIDE = 8192
"""Rows and columns of the matrices whose product is timed."""


@dataclass(frozen=True)
class Speeds:
    """Speeds that the GPU reaches: reading memory, and a large product in the bundle's type (None: not measured)."""

    bytes_per_second: float
    flops_per_second: float | None

    def floor_seconds(self, nbytes: float, flops: float) -> float:
        """The least time in which the GPU reads `nbytes` bytes and computes `flops` FLOPs."""
        rate = self.flops_per_second
        return max(nbytes / self.bytes_per_second, flops / rate if rate is not None else 0.0)


def measure_speeds(products_of: str | None) -> Speeds:
    """Read bandwidth of the GPU at hand, and the rate of products of this dtype, if any. Raises DeviceError."""
    with closing(Device.open()) as device:
        bandwidth = measure_read_bandwidth(device)
        return Speeds(bandwidth, None if products_of is None else measure_product_rate(device, products_of))


def measure_product_rate(device: Device, dtype: str, *, side: int = SIDE, runs: int = 10) -> float:
    """FLOPs per second of the best of `runs` products of two random matrices, `side` by `side`."""
    element = dtypes.dtype(dtype)
    nbytes = side * side * element.bytes
    values = np.random.default_rng(0).standard_normal((side, side), np.float32).astype(element.numpy)
    with ExitStack() as stack:
        stream = device.stream()
        stack.callback(stream.close)
        memory = device.alloc(3 * nbytes, "the matrices whose product is timed")
        stack.callback(memory.free)
        x, weight, out = (memory.address + i * nbytes for i in range(3))
        for address in (x, weight):
            stream.upload(address, values.ctypes.data, nbytes)
        library = CublasLt(device, stream)
        stack.callback(library.close)
        stack.callback(stream.synchronize)
        product = MatrixProduct(
            "the product that is timed", x, weight, out, side, side, side, side, dtype, dtype
        )
        for _ in range(2):  # chooses an algorithm and raises the clocks
            library.run(product, side)
        watch = stack.enter_context(Stopwatch(device, stream))
        best = min(watch.milliseconds(lambda: library.run(product, side)) for _ in range(runs))
    return 2 * side**3 / (best * 1e-3)


def cost_symbols(symbols: Mapping[str, int], batch: Batch) -> dict[str, int]:
    """`symbols` of a step, and the symbols of a batch: `cached` positions, and `attended` positions over all tokens."""
    last = [int(batch.positions[end - 1]) for end in batch.query_start[1:]]
    return {
        **symbols,
        "cached": sum(position + 1 for position in last),
        "attended": int((batch.positions.astype(np.int64) + 1).sum()),
    }


def cost(kernel: Kernel, symbols: Mapping[str, int]) -> tuple[int, int]:
    """Bytes and FLOPs of one launch."""
    return dims.evaluate(kernel.bytes, symbols), dims.evaluate(kernel.flops, symbols)
