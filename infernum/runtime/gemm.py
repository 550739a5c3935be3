"""Large matrix products through cuBLASLt: chooses an algorithm for each shape, and queues products."""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from infernum import logs
from infernum.errors import DeviceError
from infernum.runtime import cublaslt
from infernum.runtime.cublaslt import WORKSPACE_BYTES, Descriptors
from infernum.runtime.device import Device
from infernum.runtime.gemm_algorithms import AlgorithmStore, Shape, TunedProduct
from infernum.runtime.gemm_timing import time_algorithms
from infernum.runtime.product import ALIGNMENT, MatrixProduct
from infernum.runtime.recent import Recent
from infernum.runtime.stream import Stream

CANDIDATES = 16
"""Number of proposals of the library's heuristic that are timed."""

MOST_PREPARED = 4096
"""Prepared products that are held at once; a step needs a handful, one for each shape of its products."""

log = logs.channel("cache")


@dataclass(frozen=True)
class _PreparedProduct:
    """The descriptors and the chosen algorithm of one shape."""

    descriptors: Descriptors
    algorithm: Any


class CublasLt:
    """The library with its workspace, on one stream. A product of a shape seen before does not allocate or wait.

    The first product of a shape takes the algorithm that `tune` stored in the user's cache, or else the first
    proposal of the library's heuristic. Only `tune` times anything.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        """Raises DeviceError when nvmath-python or cuBLASLt is missing, or the workspace does not fit."""
        self._lt = cublaslt.load_library()
        self._device = device
        self._stream = stream
        self._stream_handle = int(stream.handle)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._prepared = Recent[tuple[object, ...], _PreparedProduct](
            MOST_PREPARED, partial(_give_back, self._lt)
        )
        self._collected: list[tuple[MatrixProduct, int]] | None = None
        with ExitStack() as undo:
            try:
                self._handle: int = self._lt.create()
                undo.callback(self._lt.destroy, self._handle)
                version: int = self._lt.get_version()
            except Exception as error:  # the bindings raise several types when the library cannot be loaded
                raise DeviceError(
                    f"cuBLASLt cannot be loaded ({error}); run `pip install nvidia-cublas-cu12 nvmath-python`"
                ) from error
            self._known = AlgorithmStore(device.facts.name, version)
            # With an epilogue the library may overrun the requested size by 16 bytes (nvmath-python documents it too).
            self._workspace = device.alloc(WORKSPACE_BYTES + ALIGNMENT, "the workspace of matrix products")
            undo.pop_all()

    def run(self, product: MatrixProduct, m: int) -> None:
        """Queue the product for `m` rows. Raises DeviceError when the library has no algorithm for it."""
        if self._collected is not None:
            self._collected.append((product, m))
            return
        key = product.shape_key(m)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._choose(product, m)
            self._prepared.put(key, prepared)
        elif product.bias:
            cublaslt.set_bias(self._lt, prepared.descriptors.operation, product.bias)
        self._multiply(product, m, prepared.descriptors, ctypes.addressof(prepared.algorithm))

    @contextmanager
    def collect(self) -> Generator[list[tuple[MatrixProduct, int]]]:
        """Inside the `with` block, products are listed with their rows instead of queued."""
        self._collected = collected = []
        try:
            yield collected
        finally:
            self._collected = None

    def tune(self, products: Sequence[MatrixProduct], m: int) -> TunedProduct:
        """Time the algorithms for `m` rows of a shape, store the fastest in the user's cache, and use it from now on.

        `products` have that shape, and the weights of several layers, so that weights are read from memory and not
        from the L2 cache. All products run with the bias of the first. Their x, out and residual are overwritten, and
        no other work may run. Raises DeviceError.
        """
        first = products[0]
        assert len({product.shape_key(m) for product in products}) == 1, (
            "products of one shape are tuned together"
        )
        descriptors = cublaslt.describe(self._lt, first, m)
        try:
            candidates = cublaslt.proposals(self._lt, self._handle, descriptors, first, m, CANDIDATES)
            algorithms = [cublaslt.Algorithm.from_buffer_copy(candidate) for candidate in candidates]

            def run(product: MatrixProduct, number: int) -> None:
                self._multiply(product, m, descriptors, ctypes.addressof(algorithms[number]))

            timing = time_algorithms(self._device, self._stream, products, m, len(algorithms), run)
        finally:
            cublaslt.destroy(self._lt, descriptors)
        best, heuristic = timing.microseconds[timing.best], timing.microseconds[0]
        assert best is not None and heuristic is not None, (
            "the chosen algorithm and the first have been timed"
        )
        tuned = TunedProduct(
            shape=Shape.of(first),
            m=m,
            algorithm=candidates[timing.best].hex(),
            facts=cublaslt.algorithm_facts(self._lt, candidates[timing.best]),
            rank=timing.best,
            microseconds=best,
            first_microseconds=heuristic,
            candidates=len(candidates),
            rejected=timing.microseconds.count(None),
            in_cache=timing.in_cache,
        )
        self._known.keep(tuned)
        self._prepared.clear()  # the stored algorithm may serve fewer rows too
        return tuned

    def close(self) -> None:
        """Free descriptors and workspace. No product may be running."""
        if not self._handle:
            return
        self._prepared.clear()
        self._workspace.free()
        self._lt.destroy(self._handle)
        self._handle = 0

    def _multiply(self, product: MatrixProduct, m: int, descriptors: Descriptors, algorithm: int) -> None:
        beta = self._one if product.residual else self._zero
        try:
            self._lt.matmul(
                self._handle,
                descriptors.operation,
                ctypes.addressof(self._one),
                product.weight,
                descriptors.weight,
                product.x,
                descriptors.x,
                ctypes.addressof(beta),
                product.residual or product.out,
                descriptors.residual,
                product.out,
                descriptors.out,
                algorithm,
                self._workspace.address,
                self._workspace.nbytes,
                self._stream_handle,
            )
        except self._lt.cuBLASLtError as error:
            raise DeviceError(
                f"{product.name}: cuBLASLt could not multiply {product.describe(m)}: {error}"
            ) from error

    def _choose(self, product: MatrixProduct, m: int) -> _PreparedProduct:
        descriptors = cublaslt.describe(self._lt, product, m)
        try:
            algorithm = self._cached_algorithm(product, m, descriptors)
            if algorithm is None:
                algorithm = cublaslt.proposals(self._lt, self._handle, descriptors, product, m, 1)[0]
        except BaseException:
            cublaslt.destroy(self._lt, descriptors)
            raise
        return _PreparedProduct(descriptors, cublaslt.Algorithm.from_buffer_copy(algorithm))

    def _cached_algorithm(self, product: MatrixProduct, m: int, descriptors: Descriptors) -> bytes | None:
        """The algorithm in the user's cache; None when there is none or the library rejects it for this product."""
        tuned = self._known.find(Shape.of(product), m)
        if tuned is None:
            return None
        algorithm = bytes.fromhex(tuned.algorithm)
        if not cublaslt.can_run(self._lt, self._handle, descriptors, algorithm):
            log.warning(
                "%s: cuBLASLt refuses the algorithm kept for it in %s and runs its own; tune again",
                product.name,
                self._known.path,
            )
            return None
        log.info("%s: algorithm timed for %d rows runs %s", product.name, tuned.m, product.describe(m))
        return algorithm


def _give_back(lt: Any, prepared: _PreparedProduct) -> None:
    cublaslt.destroy(lt, prepared.descriptors)
