"""Times the algorithms of a matrix product on the GPU, and picks the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum import dtypes
from infernum.errors import DeviceError
from infernum.runtime.device import Device
from infernum.runtime.product import MatrixProduct
from infernum.runtime.stream import CudaGraph, Stream
from infernum.runtime.timing import Stopwatch

MARGIN = 0.02
"""Least share of time that an algorithm must save to replace the heuristic's first proposal."""

PASSED_OVER_BYTES = 128 * 2**20
"""Bytes of weights read before the same weights are read again: more than twice the L2 cache of an H200."""

ROUNDS = 7
_RUNS = (4, 32)  # least and most products in a graph that is timed
_COMPARED_ROWS = 32
_RANDOM_ROWS = 64
_TOLERANCE = 1e-3  # the least: sums in another order differ, however exact the type of the result

Run = Callable[[MatrixProduct, int], None]
"""Queues a product with the algorithm of this number."""


@dataclass(frozen=True)
class AlgorithmTimes:
    """`microseconds` of one product by algorithm, None for a rejected one; `best` is the number of the chosen one."""

    best: int
    microseconds: tuple[float | None, ...]
    in_cache: bool


def time_algorithms(
    device: Device, stream: Stream, products: Sequence[MatrixProduct], m: int, algorithms: int, run: Run
) -> AlgorithmTimes:
    """Time `algorithms` algorithms. Algorithm 0 runs when nothing is timed, and its result counts as right.

    `products` have one shape, and each the weights of another layer. They run in turn, so that weights come from
    memory as in a step. Their x, out and residual are overwritten. An algorithm is rejected unless its result agrees
    with that of algorithm 0, and two runs give the same bits. Raises DeviceError when algorithm 0 fails, or gives NaN
    or infinity.
    """
    weight_bytes = products[0].n * products[0].k * dtypes.dtype(products[0].dtype).bytes
    runs = min(max(-(-PASSED_OVER_BYTES // weight_bytes), _RUNS[0]), _RUNS[1])
    in_turn = [products[i % len(products)] for i in range(runs)]
    for address, product in {product.x: product for product in products}.items():
        _fill_with_random(stream, address, product, m)
    compared = _Compared(stream, products[0], m)
    right = [0, *compared.agreeing(algorithms, run)]
    with ExitStack() as stack:
        graphs: dict[int, CudaGraph] = {}
        for algorithm in right:
            graphs[algorithm] = _captured(stream, in_turn, algorithm, run)
            stack.callback(graphs[algorithm].close)
        watch = stack.enter_context(Stopwatch(device, stream))
        stack.callback(stream.synchronize)
        times: dict[int, list[float]] = {algorithm: [] for algorithm in right}
        for _ in range(ROUNDS):
            for algorithm, graph in graphs.items():
                graph.launch()  # keeps the GPU busy until the timed launch is queued
                times[algorithm].append(watch.milliseconds(graph.launch))
    medians = {
        algorithm: statistics.median(milliseconds) * 1e3 / runs for algorithm, milliseconds in times.items()
    }
    fastest = min(right, key=lambda algorithm: medians[algorithm])
    return AlgorithmTimes(
        best=fastest if medians[fastest] <= medians[0] * (1 - MARGIN) else 0,
        microseconds=tuple(medians.get(algorithm) for algorithm in range(algorithms)),
        in_cache=len({product.weight for product in in_turn}) * weight_bytes < PASSED_OVER_BYTES,
    )


def _captured(stream: Stream, products: Sequence[MatrixProduct], algorithm: int, run: Run) -> CudaGraph:
    with stream.capture() as capture:
        for product in products:
            run(product, algorithm)
    assert capture.graph is not None, "a capture that ended well has a graph"
    return capture.graph


def _fill_with_random(stream: Stream, address: int, product: MatrixProduct, m: int) -> None:
    """Fill x [m, k] with normally distributed numbers, the same in every `_RANDOM_ROWS` rows."""
    element = dtypes.dtype(product.dtype)
    values = _random(min(m, _RANDOM_ROWS), product.k, element)
    width, pitch = product.k * element.bytes, product.x_stride * element.bytes
    for row in range(0, m, len(values)):
        rows = min(len(values), m - row)
        stream.upload_rows(address + row * pitch, pitch, values.ctypes.data, width, width, rows)
    stream.synchronize()


def _random(rows: int, columns: int, element: dtypes.DType) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32).astype(element.numpy)


class _Compared:
    """Compares the results of algorithms on some rows of a product, spread over all rows."""

    def __init__(self, stream: Stream, product: MatrixProduct, m: int) -> None:
        self._stream = stream
        self._product = product
        self._m = m
        self._element = dtypes.dtype(product.out_dtype)
        self._rows = np.unique(np.linspace(0, m - 1, _COMPARED_ROWS).astype(int)).tolist()
        self._residual = _random(len(self._rows), product.n, self._element)

    def agreeing(self, algorithms: int, run: Run) -> list[int]:
        """The algorithms from 1 on whose result agrees with algorithm 0 and does not vary. Raises DeviceError."""
        first = self._result(0, run)
        if not np.isfinite(first.astype(np.float32)).all():
            raise DeviceError(
                f"{self._product.name}: {self._product.describe(self._m)} gives values that are no numbers, so that"
                " no algorithm can be compared; look at the weights"
            )
        return [number for number in range(1, algorithms) if self._agrees(number, run, first)]

    def _agrees(self, algorithm: int, run: Run, first: np.ndarray[Any, Any]) -> bool:
        try:
            once, again = self._result(algorithm, run), self._result(algorithm, run)
        except DeviceError:
            return False
        return once.tobytes() == again.tobytes() and self._near(once, first)

    def _near(self, result: np.ndarray[Any, Any], first: np.ndarray[Any, Any]) -> bool:
        """True when every element is within the type's tolerance of the first result."""
        expected = first.astype(np.float32)
        scale = np.abs(expected) + np.sqrt(np.mean(expected**2))
        tolerance = max(self._element.tolerance, _TOLERANCE)
        return bool((np.abs(result.astype(np.float32) - expected) <= tolerance * scale).all())

    def _result(self, algorithm: int, run: Run) -> np.ndarray[Any, Any]:
        product, size = self._product, self._element.bytes
        result = np.empty_like(self._residual)
        for into, row in enumerate(self._rows) if product.residual else ():
            to = product.residual + row * product.residual_stride * size
            self._stream.upload(to, self._residual[into].ctypes.data, product.n * size)
        run(product, algorithm)
        for into, row in enumerate(self._rows):
            source = product.out + row * product.out_stride * size
            self._stream.download(result[into].ctypes.data, source, product.n * size)
        self._stream.synchronize()
        return result
