"""The emitted kernels that turn heads, compiled as C++, against their NumPy meaning; and head sizes of every kind."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graph_inputs import Arrays, copied, random_inputs, step
from host_bench import COMPILER, kernels_for_host

from infernum import ops
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_cuda, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.dims import evaluate
from infernum.dtypes import BF16, F16, F32, DType
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.ir.graph import Graph
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target
from infernum.rope import Rope

VARIANTS = {"t1": (1, 1), "t8": (2, 8), "t64": (9, 64), "prefill": (65, 512)}
LONG = {"short_factor": (1.0, 1.5, 2.5, 4.0), "long_factor": (1.5, 3.0, 5.0, 9.0)}
ROPES = {
    "llama": Rope(),
    "factor": Rope(attention_factor=1.3),
    "three quarters": Rope(partial=0.75, attention_factor=1.3),
    "neighbours": Rope(interleaved=True),
    "half of neighbours": Rope(partial=0.5, interleaved=True, attention_factor=0.8),
    "odd pairs": Rope(partial=0.375),
    "by position": Rope(original_max_position=3, beta=0.5),
    "by length": Rope("longrope", partial=0.5, attention_factor=1.2, original_max_position=40, **LONG),
    "proportional": Rope("proportional", partial=0.5, factor=2.0),
}
NAMES = ("rope", "append", "rope_append", "attend")
NO_PTX = {
    'asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));': "out.bits = (__float_as_uint(x) + 0x7fff + "
    "(__float_as_uint(x) >> 16 & 1)) >> 16;",
    'asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));': "out = 0;",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));': "out.bits = 0;",
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));': "out = exp2f(x);",
}
"""Inline PTX, and C++ that computes the same; of f16, of which no kernel here makes use, nothing."""


def attended(rope: Rope, heads: int, kv_heads: int, dim: int, *, outer: bool = False) -> Block:
    """Heads of one tensor, turned, stored and attended to; `outer`: the turned queries are a result too."""

    @block(x="tokens width")
    def attend(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
        ends = np.cumsum([heads * dim, kv_heads * dim, kv_heads * dim]).tolist()
        parts = [ops.columns(x, start=a, stop=b) for a, b in zip([0, *ends], ends, strict=False)]
        q, k, v = (ops.heads(part, dim=dim) for part in parts)
        q, k = ops.turn(q, batch, rope), ops.turn(k, batch, rope.of_keys)
        kv = ops.append(batch.kv(kv_heads, dim), k, v, batch.positions, batch.sequence, batch.page_table)
        facts = batch.positions, batch.sequence, batch.query_start, batch.page_table
        out = ops.attention(q, kv, *facts, scale=dim**-0.5)
        return (out, q) if outer else out

    return attend


def graphs(made_by: Block, width: int, variant: str, dtype: DType, arch: int) -> tuple[Graph, Graph, Target]:
    """The block as traced, the same after all rules, and what it is compiled for."""
    target = Target(arch, variant, *VARIANTS[variant], dtype)
    plain = made_by.trace(SimpleNamespace(width=width), dtype)
    return plain, apply_rules(plain, RULES, target).graph, target


class Host:
    """Runs the kernels of a graph on the host, over memory of its own."""

    def __init__(self, graph: Graph, target: Target, folder: Path) -> None:
        self.plan = plan_block(graph, target)
        source = emit_block(self.plan, "test")
        for ptx, same in NO_PTX.items():
            source = source.replace(ptx, same)
        self.library = kernels_for_host(source, folder)

    def run(self, inputs: Arrays, sizes: Mapping[str, int]) -> Arrays:
        """Every tensor after the kernels have run, as float32 or int32 arrays."""
        memory: Arrays = {}
        for node in self.plan.graph.inputs:
            array = inputs[node.name]
            memory[node.name] = stored(array, node.types[0].dtype)
        for each in self.plan.steps:
            assert isinstance(each, KernelStep), "no product"
            addresses: list[int] = []
            for operand in each.operands:
                place = operand.place
                if place.tensor not in memory:
                    rows = int(evaluate(place.type.shape[0], sizes))
                    memory[place.tensor] = np.zeros(
                        rows * place.stride, stored(np.zeros(1), place.type.dtype).dtype
                    )
                array = memory[place.tensor]
                addresses.append(array.ctypes.data + place.offset * array.itemsize)
            arguments = [*addresses, *(int(evaluate(formula, sizes)) for _, formula in each.symbols)]
            grid = [int(evaluate(formula, sizes | each.context)) for formula in each.grid]
            launch = getattr(self.library, f"host_{each.name}")
            launch((ctypes.c_int * 3)(*grid), each.threads, (ctypes.c_uint64 * len(arguments))(*arguments))
        return memory


def stored(array: np.ndarray, dtype: DType) -> np.ndarray:
    return np.ascontiguousarray(array, dtype.numpy).copy()


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("variant", ["t8", "t64"])
@pytest.mark.parametrize("name", ROPES)
def test_kernels_turn_heads_as_their_meaning_says(name: str, variant: str, tmp_path: Path) -> None:
    heads, kv_heads, dim = 3, 1, 16
    made_by = attended(ROPES[name], heads, kv_heads, dim, outer=variant == "t64")
    plain, fused, target = graphs(made_by, (heads + 2 * kv_heads) * dim, variant, F32, 80)
    tokens = 5 if variant == "t8" else 11
    inputs, (sizes, _) = random_inputs(plain, tokens), step(tokens)
    expected = copied(inputs)
    results = interpret(plain, expected)
    host = Host(fused, target, tmp_path)
    memory = host.run(inputs, sizes)
    turning = {
        "t8": ["attend"],
        "t64": ["rope", "rope", "append"] if name == "by length" else ["rope_append"],
    }
    assert [s.template.name for s in host.plan.steps if s.template.name in NAMES] == turning[variant]
    close = 1e-5
    np.testing.assert_allclose(memory["kv"].astype(np.float32).ravel(), expected["kv"].ravel(), close, close)
    for value, result in zip(fused.outputs, results, strict=True):
        turned = memory[host.plan.places[value].tensor].astype(np.float32)
        np.testing.assert_allclose(turned.ravel(), result.ravel(), 2 * close, 2 * close)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_even_head_size_up_to_256_has_kernels(variant: str, dtype: DType, arch: int) -> None:
    for dim in (2, 6, 18, 50, 80, 96, 112, 160, 192, 224, 250, 256):
        for rope in (Rope(), Rope(interleaved=True, original_max_position=3, beta=0.5)):
            _, fused, target = graphs(attended(rope, 3, 1, dim), 5 * dim, variant, dtype, arch)
            plan = plan_block(fused, target)
            assert emit_block(plan, "test")
            kernels = [step.template.name for step in plan.steps if isinstance(step, KernelStep)]
            if arch == 90 and dtype.bytes == 2 and target.max_tokens <= 8 and dim % 16 == 0:
                assert kernels == ["attend_cluster"]


@pytest.mark.skipif("sm_90a" not in supported_archs(), reason="NVRTC does not know Hopper")
@pytest.mark.parametrize("dim", [96, 160, 224])
def test_clusters_copy_rows_that_no_warp_shares_evenly_without_a_spill(dim: int) -> None:
    _, fused, target = graphs(attended(Rope(), 24, 3, dim), 30 * dim, "t8", BF16, 90)
    cubin = compile_cuda(
        emit_block(plan_block(fused, target), "test"), name="test.cu", arch="sm_90a", cache=None
    )
    for name, used in cubin.kernels.items():
        assert used.spill_bytes == 0 and used.stack_bytes == 0, f"{name}: {used}"
