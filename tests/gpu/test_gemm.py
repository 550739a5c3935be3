"""cuBLASLt's algorithms on a GPU: timed, kept, and run again by a library that has not timed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from gpu.recipes import PAGES, Bundles, Recipe
from infernum import dtypes
from infernum.lab.measure.workload import chunk_batch
from infernum.runtime import cublaslt
from infernum.runtime.device import Device
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.gemm import CublasLt
from infernum.runtime.gemm_algorithms import ALGORITHM_BYTES, bucket, known_algorithms
from infernum.runtime.product import MatrixProduct
from infernum.runtime.stream import Stream

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

M = 192
LAYERS = 3


@dataclass(frozen=True)
class Case:
    """A product of bf16 operands."""

    n: int
    k: int
    out_dtype: str = "bf16"
    bias: bool = False
    residual: bool = False

    def __str__(self) -> str:
        extras = ("-bias" if self.bias else "") + ("-residual" if self.residual else "")
        return f"{self.n}-{self.k}-{self.out_dtype}{extras}"


CASES = [
    Case(3072, 2048),
    Case(2048, 8192, residual=True),
    Case(1152, 896, bias=True),
    Case(4099, 2048, out_dtype="f32"),
]


class Operands:
    """Memory of one product in several layers, filled with random numbers."""

    def __init__(self, device: Device, stream: Stream, case: Case, stack: ExitStack) -> None:
        self._device, self._stream, self._case, self._stack = device, stream, case, stack
        self._out = dtypes.dtype(case.out_dtype)
        self._rng = np.random.default_rng(2)
        n, k = case.n, case.k
        self.x, x = self._random(dtypes.BF16, M, k)
        pairs = [self._random(dtypes.BF16, n, k, scale=k**-0.5) for _ in range(LAYERS)]
        self.weights = [values for values, _ in pairs]
        self.bias, bias = self._random(dtypes.BF16, n)
        self.residual, self.out = self._random(self._out, M, n)
        self.products = [
            MatrixProduct(
                *(f"layer {layer}", x, weight, self.out, n, k, k, n, "bf16", case.out_dtype),
                bias=bias if case.bias else 0,
                bias_dtype="bf16" if case.bias else "",
                residual=self.out if case.residual else 0,
                residual_stride=n if case.residual else 0,
            )
            for layer, (_, weight) in enumerate(pairs)
        ]

    def check(self, library: CublasLt, m: int) -> None:
        """Every layer gives what NumPy gives, from x and out as they were made."""
        self._upload(self.products[0].x, self.x)
        for layer, product in enumerate(self.products):
            self._upload(self.out, self.residual)
            library.run(product, m)
            found = np.empty((m, self._case.n), self._out.numpy)
            self._stream.download(found.ctypes.data, self.out, found.nbytes)
            self._stream.synchronize()
            expected = _f32(self.x[:m]) @ _f32(self.weights[layer]).T
            expected += _f32(self.bias) if self._case.bias else 0
            expected += _f32(self.residual[:m]) if self._case.residual else 0
            error = np.linalg.norm(_f32(found) - expected) / np.linalg.norm(expected)
            assert error <= max(self._out.tolerance, 1e-4), f"{product.name}, {m} rows: {error:.1e}"

    def _random(self, element: dtypes.DType, *shape: int, scale: float = 1.0) -> tuple[np.ndarray, int]:
        values = (self._rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(element.numpy)
        memory = self._device.alloc(values.nbytes, "operands of a test")
        self._stack.callback(memory.free)
        self._upload(memory.address, values)
        return values, memory.address

    def _upload(self, to: int, values: np.ndarray) -> None:
        self._stream.upload(to, values.ctypes.data, values.nbytes)
        self._stream.synchronize()


def _f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Device, Stream, ExitStack]]:
    """The first GPU, a stream, and what closes them; with a cache of its own."""
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    with ExitStack() as stack:
        device = Device.open(0)
        stack.callback(device.close)
        stream = device.stream()
        stack.callback(stream.close)
        yield device, stream, stack


def _never(*arguments: Any) -> NoReturn:
    raise AssertionError("the heuristic was asked although the algorithm is known")


def test_structures_lie_in_memory_as_in_the_bindings() -> None:
    theirs = import_module("nvmath.bindings.cublasLt").matmul_heuristic_result_dtype
    ours = cublaslt.HeuristicResult
    assert (ours.algorithm.size, ours.workspace_size.offset, ours.state.offset) == (
        ALGORITHM_BYTES,
        theirs.fields["workspace_size"][1],
        theirs.fields["state"][1],
    )
    assert np.dtype(ours).itemsize == theirs.itemsize


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_timed_is_right_and_the_next_library_runs_it_without_asking(
    gpu: tuple[Device, Stream, ExitStack], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, stream, stack = gpu
    operands = Operands(device, stream, case, stack)
    first = CublasLt(device, stream)
    stack.callback(first.close)
    operands.check(first, M)
    tuned = first.tune(operands.products, M)
    assert 0 < tuned.microseconds <= tuned.first_microseconds < 10_000
    assert tuned.rejected < tuned.candidates
    operands.check(first, M)

    monkeypatch.setattr(cublaslt, "proposals", _never)
    second = CublasLt(device, stream)
    stack.callback(second.close)
    operands.check(second, M)
    assert [known.tuned for known in known_algorithms()] == [tuned]


def test_a_known_algorithm_is_right_for_fewer_rows(gpu: tuple[Device, Stream, ExitStack]) -> None:
    device, stream, stack = gpu
    operands = Operands(device, stream, CASES[1], stack)
    library = CublasLt(device, stream)
    stack.callback(library.close)
    library.tune(operands.products, M)
    assert bucket(M - 33) == M
    for m in (M - 1, M - 33):
        operands.check(library, m)


def test_an_executor_tunes_the_products_of_a_prompt_and_answers_as_before(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles.get(Recipe("dante", "bfloat16", True))
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    tokens = 100
    with CudaExecutor.open(bundle, None, max_pages_total=PAGES) as executor:
        pages = np.arange(-(-tokens // executor.page_size), dtype=np.int32)
        prompt = np.arange(tokens, dtype=np.int32) % 50
        batch = chunk_batch(prompt, 0, pages[None])
        before = executor.logits(batch)
        tuned = executor.tune_products(tokens)
        after = executor.logits(batch)
    assert {found.m for found in tuned} >= {tokens}
    assert len({(found.shape, found.m) for found in tuned}) == len(tuned) == len(known_algorithms())
    assert np.linalg.norm(after - before) <= 3 * dtypes.BF16.tolerance * np.linalg.norm(before)
