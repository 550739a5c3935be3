"""The harness of the kernel tests, without a GPU: kernels are played by NumPy, right ones and wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import graphs_only
from fake_gpu import FakeGpu, at
from oracle.configs import case

from gpu import single_step
from gpu.single_step import Bench, Facts, Image, Unit, check_unit, ragged_step, units_of
from infernum.bundle import Bundle, Launch, Pointer
from infernum.compiler import Options
from infernum.dtypes import dtype
from infernum.models.presets import resolve
from infernum.runtime.gemm import Product

TOKENS = {"t1": (1,), "t8": (2, 5, 8), "t64": (9, 33, 64), "prefill": (65, 130, 200)}


def bundle_of(folder: Path, name: str, dtype: str, fuse: bool) -> Bundle:
    """An oracle case's bundle as `compile_model` writes it, but for its machine code."""
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(case(name).config), encoding="utf-8")
    return graphs_only(resolve(str(folder / name)), Options(dtype=dtype, fuse=fuse), folder / "bundle")


class NumpyProducts:
    """Multiplies as the manifest says, from raw memory, when the fake stream gets there."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def run(self, product: Product, m: int) -> None:
        self._stream.put(lambda: self._multiply(product, m))

    def _multiply(self, product: Product, m: int) -> None:
        def read(address: int, name: str, rows: int, stride: int, width: int) -> np.ndarray:
            kind = dtype(name)
            bits = at(address, single_step.bits_of(kind), (rows - 1) * stride + width)
            strides = (stride * kind.bytes, kind.bytes)
            return single_step.from_bits(np.lib.stride_tricks.as_strided(bits, (rows, width), strides), kind)

        x = read(product.x, product.dtype, m, product.x_stride, product.k)
        out = x @ read(product.weight, product.dtype, product.n, product.k, product.k).T
        if product.bias:
            out = out + read(product.bias, product.bias_dtype, 1, product.n, product.n)
        if product.residual:
            out = out + read(product.residual, product.out_dtype, m, product.residual_stride, product.n)
        kind = dtype(product.out_dtype)
        bits = at(product.out, single_step.bits_of(kind), (m - 1) * product.out_stride + product.n)
        for row in range(m):
            begin = row * product.out_stride
            bits[begin : begin + product.n] = single_step.to_bits(single_step.round_to(out[row], kind), kind)

    def close(self) -> None:
        pass


Spoil = Callable[[str, np.ndarray], None]
"""Called with a result's tensor and its bits after a kernel has run, to make a mistake."""


class NumpyBench(Bench):
    """A bench whose kernels evaluate their node on the memory that their arguments point to."""

    def __init__(self, spoil: Spoil | None = None) -> None:
        self.gpu = FakeGpu({}, total=2**40)
        stream = self.gpu.stream()
        super().__init__(self.gpu, stream, NumpyProducts(stream))
        self._spoil = spoil

    def run(self, unit: Unit, image: Image, facts: Facts) -> np.ndarray:
        self.forget_modules()
        for step in unit.steps:
            if isinstance(step, Launch):
                signature = "".join("p" if isinstance(arg, Pointer) else "i" for arg in step.args)
                self.gpu.kernels[step.kernel] = signature, self._kernel(unit, step, image, facts)
        return super().run(unit, image, facts)

    def _kernel(self, unit: Unit, step: Launch, image: Image, facts: Facts) -> Callable[..., None]:
        def compute(grid: tuple[int, int, int], *arguments: int) -> None:
            assert all(size > 0 for size in grid)
            for arg, value in zip(step.args, arguments, strict=True):
                if not isinstance(arg, Pointer):
                    assert value == facts.symbols[arg.symbol]
            if step is not unit.steps[-1]:
                return
            base = {
                arg.tensor: value - arg.offset - image.spans[arg.tensor][0]
                for arg, value in zip(step.args, arguments, strict=True)
                if isinstance(arg, Pointer)
            }
            assert len(set(base.values())) == 1, "all pointers are into one image"
            memory = at(next(iter(base.values())), np.uint8, len(image.bytes))
            self._evaluate(unit, image, facts, memory)

        return compute

    def _evaluate(self, unit: Unit, image: Image, facts: Facts, memory: np.ndarray) -> None:
        operands = {}
        for value in unit.graph.operands(unit.node.name):
            place, kind = single_step.flat_place(unit, value, facts), unit.graph.type(value).dtype
            operands[place] = single_step.from_bits(image.value(place, memory), kind)
        for value, result in zip(unit.results, single_step.meaning(unit, operands, facts), strict=True):
            place, kind = single_step.flat_place(unit, value, facts), unit.graph.type(value).dtype
            bits = image.value(place, memory)
            bits[:] = single_step.to_bits(result.reshape(bits.shape), kind)
            if self._spoil is not None:
                self._spoil(place[0], bits)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("fused"), "all_biases", "bfloat16", True)


@pytest.mark.parametrize(
    ("name", "dtype", "fuse"),
    [
        ("all_biases", "bfloat16", True),
        ("all_biases", "float32", False),
        ("fourteen_to_two", "float16", True),
        ("head_128_tied", "bfloat16", False),
    ],
)
def test_kernels_that_do_what_their_node_means_pass(
    tmp_path: Path, name: str, dtype: str, fuse: bool
) -> None:
    bundle = bundle_of(tmp_path, name, dtype, fuse)
    bench = NumpyBench()
    for variants in bundle.manifest.blocks.values():
        for variant in variants.values():
            for unit in units_of(bundle, variant):
                for tokens in TOKENS[variant.variant]:
                    assert [str(d) for d in check_unit(bench, unit, tokens)] == []


def differences(bundle: Bundle, block: str, op: str, spoil: Spoil, variant: str = "t8") -> str:
    """What the harness says of the node that computes `op` when its kernel makes a mistake."""
    unit = next(u for u in units_of(bundle, bundle.manifest.blocks[block][variant]) if op in u.ops)
    return "\n".join(str(d) for d in check_unit(NumpyBench(spoil), unit, 5))


def test_an_element_that_was_not_written_is_found(fused: Bundle) -> None:
    def forget(name: str, bits: np.ndarray) -> None:
        bits[-1, -1] = 0xFFFF

    assert "1 elements in 1 of 5 rows are NaN" in differences(fused, "decoder", "silu", forget)


def test_a_row_that_is_a_little_off_is_found(fused: Bundle) -> None:
    def shift(name: str, bits: np.ndarray) -> None:
        bits[3] += 3  # three units in the last place

    assert "in 1 of 5 rows more than 0.01" in differences(fused, "decoder", "silu", shift)


def test_writing_to_the_cache_beside_the_new_positions_is_found(fused: Bundle) -> None:
    def overwrite(name: str, bits: np.ndarray) -> None:
        if name == "kv":
            bits[np.argmax((bits == 0xFFFF).all(axis=1)), 7] = 0

    assert "2 bytes of kv changed" in differences(fused, "decoder", "append", overwrite)


def test_writing_past_the_end_of_a_result_is_found(fused: Bundle) -> None:
    def overrun(name: str, bits: np.ndarray) -> None:
        np.lib.stride_tricks.as_strided(bits, (bits.shape[0] + 1, bits.shape[1]), bits.strides)[-1, 0] = 0

    assert "2 bytes behind" in differences(fused, "decoder", "silu", overrun)


def test_a_wrong_token_is_found(fused: Bundle) -> None:
    def other(name: str, bits: np.ndarray) -> None:
        bits[2] ^= 1

    assert "1 of 3 differ, the first at (2,)" in differences(fused, "greedy", "argmax", other)


@pytest.mark.parametrize("tokens", single_step.LENGTHS)
def test_a_ragged_step_is_one_that_a_runtime_could_be_given(tokens: int) -> None:
    facts = ragged_step(tokens, 131, np.random.default_rng(0))
    arrays = facts.arrays
    assert len(arrays["token_ids"]) == len(arrays["positions"]) == len(arrays["sequence"]) == tokens
    assert arrays["query_start"][-1] == tokens and (np.diff(arrays["query_start"]) > 0).all()
    used = arrays["page_table"][arrays["page_table"] >= 0]
    assert len(set(used.tolist())) == len(used) and used.max() < facts.symbols["pages"]
    assert (arrays["page_table"][arrays["sequence"], arrays["positions"] // 64] >= 0).all()
    assert (np.diff(arrays["output_rows"]) > 0).all() or facts.symbols["rows"] == 1
    assert max(facts.ends) > 3 * 64 or tokens == 65


def test_a_kernel_that_does_nothing_is_found(fused: Bundle) -> None:
    class Idle(NumpyBench):
        def run(self, unit: Unit, image: Image, facts: Facts) -> np.ndarray:
            return image.bytes.copy()

    for variants in fused.manifest.blocks.values():
        for unit in units_of(fused, variants["t8"]):
            assert check_unit(Idle(), unit, 5), f"{unit}: its results may be left out"
