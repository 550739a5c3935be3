"""The kernels of attention, rope, the cache and row picking compile without spilling, for the shapes of real models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from infernum.codegen import nvrtc
from infernum.codegen.cubin import KernelResources, parse_resources
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_cuda, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.dims import ceildiv, evaluate, round_pages
from infernum.dtypes import BF16, DType, dtype
from infernum.errors import ShapeError
from infernum.fusion import attend as attend_rule
from infernum.fusion import rope_append
from infernum.ir.apply import apply_rules
from infernum.ir.block import BATCH, Tensor
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.kernel import Choice, Target, choose
from infernum.ir.op import OPS
from infernum.ir.trace import Trace
from infernum.ops import append, attention, embedding, rope, select_rows
from infernum.roofline import GPUS
from infernum.rope import Rope

KNOWN = supported_archs()
ARCHS = [arch for arch in ("sm_80", "sm_90a") if arch in KNOWN]
BATCH_FACTS = ("positions", "sequence", "query_start", "page_table")
LLAMA3 = Rope("llama3", 5e5, 8.0, 1.0, 4.0, 8192)


def target(arch: str, max_tokens: int, of: DType) -> Target:
    return Target(
        int(arch[3:].rstrip("a")),
        "test",
        min(max_tokens, 65) if max_tokens > 8 else min(max_tokens, 2),
        max_tokens,
        of,
    )


class Inputs:
    """The inputs of a graph under construction."""

    def __init__(self, of: DType) -> None:
        self.trace, self.of = Trace(), of

    def stream(self, name: str, *shape: int | str) -> Tensor:
        return self.trace.input(name, Input("stream"), TensorType(shape, self.of))

    def batch(self, name: str) -> Tensor:
        return self.trace.input(name, Input("batch"), BATCH[name])

    def kv(self, kv_heads: int, dim: int) -> Tensor:
        return self.trace.input("kv", Input("state"), TensorType(("pages", 2, kv_heads, 64, dim), self.of))

    def weight(self, name: str, *shape: int) -> Tensor:
        return self.trace.input(name, Input("weight"), TensorType(shape, self.of))


def attend(inputs: Inputs, heads: int, kv_heads: int, dim: int, **attrs: float) -> Tensor:
    facts = [inputs.batch(name) for name in BATCH_FACTS]
    q = inputs.stream("q", "tokens", heads, dim)
    return attention(q, inputs.kv(kv_heads, dim), *facts, scale=dim**-0.5, **attrs)


def append_and_attend(
    inputs: Inputs, heads: int, kv_heads: int, dim: int, **attrs: float
) -> tuple[Tensor, Tensor]:
    positions, sequence, start, pages = (inputs.batch(name) for name in BATCH_FACTS)
    q = inputs.stream("q", "tokens", heads, dim)
    k, v = (inputs.stream(name, "tokens", kv_heads, dim) for name in ("k", "v"))
    kv = append(inputs.kv(kv_heads, dim), k, v, positions, sequence, pages)
    return attention(q, kv, positions, sequence, start, pages, scale=dim**-0.5, **attrs), kv


def kernels(
    build: Callable[[Inputs], Any], arch: str, max_tokens: int, of: str, *, fuse: bool = False
) -> list[str]:
    """Emit and compile what `build` traces; assert that nothing spills; return the kernels' templates."""
    inputs = Inputs(dtype(of))
    built = build(inputs)
    outputs = built if isinstance(built, tuple) else (built,)
    graph = Graph.build("test", inputs.trace.entries.values(), [t.value for t in outputs])
    goal = target(arch, max_tokens, inputs.of)
    if fuse:
        graph = apply_rules(graph, [attend_rule, rope_append], goal).graph
    plan = plan_block(graph, goal)
    cubin = compile_cuda(emit_block(plan, "test"), name="test.cu", arch=arch, cache=None)
    for name, found in cubin.kernels.items():
        assert found.spill_bytes == 0 and found.stack_bytes == 0, f"{name} spills: {found}"
    return [step.template.name for step in plan.steps if isinstance(step, KernelStep)]


LIMITS: list[dict[str, float]] = [
    {"window": 512},
    {"window": 8192},
    {"softcap": 50.0},
    {"window": 4096, "softcap": 30.0},
]
"""Windows on both sides of what the kernels call a long context, capped scores, and both."""

ON_HOPPER = ["attention_prefill_wgmma", "attention_units", "attention_combine"]
"""Kernels of prompts, and of the decodes beside them."""


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_a_decode_of_hundreds_splits_long_contexts_alone(arch: str, kv_heads: int) -> None:
    goal = replace(target(arch, 1024, BF16), decodes=True)
    inputs = Inputs(BF16)
    out = attend(inputs, 8 * kv_heads, kv_heads, 128)
    plan = plan_block(Graph.build("test", inputs.trace.entries.values(), [out.value]), goal)
    cubin = compile_cuda(emit_block(plan, "test"), name="test.cu", arch=arch, cache=None)
    assert all(found.spill_bytes == 0 for found in cubin.kernels.values())
    split, combine = (step for step in plan.steps if isinstance(step, KernelStep))
    assert (split.template.name, combine.template.name) == ("attention_units", "attention_combine")
    sms = GPUS[goal.arch].sms

    def blocks(tokens: int, context: int, of: KernelStep = split) -> int:
        symbols = {"tokens": tokens, "context_pages": round_pages(ceildiv(context, 64))}
        return math.prod(evaluate(size, symbols) for size in of.grid)

    assert blocks(65, 4096) >= 2 * sms, "every SM has two blocks"
    if 65 * kv_heads >= 2 * sms:
        assert blocks(256, 640) == blocks(256, 4096) == 256 * kv_heads, "one block for each context"
        assert blocks(256, 4096, combine) == 0, "which writes the result itself"
    assert blocks(256, 100_000) == 8 * 256 * kv_heads, "a long context would keep others waiting"
    assert blocks(256, 100_000, combine) == 256 * 8 * kv_heads


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("attrs", [{}, *LIMITS], ids=str)
@pytest.mark.parametrize(
    ("dim", "of", "template"),
    [
        (64, "bf16", "units"),
        (96, "f16", "units"),
        (256, "bf16", "units"),
        (128, "f32", "split"),
        (60, "f16", "split"),
    ],
)
def test_dozens_of_tokens_attend_on_tensor_cores_where_these_serve(
    arch: str, attrs: dict[str, float], dim: int, of: str, template: str
) -> None:
    names = kernels(lambda inputs: attend(inputs, 8, 2, dim, **attrs), arch, 64, of)
    assert names == [f"attention_{template}", "attention_combine"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "of"),
    [
        (32, 8, 64, "bf16"),
        (32, 8, 128, "bf16"),
        (14, 2, 64, "f16"),
        (64, 8, 128, "f16"),
        (71, 1, 64, "bf16"),
        (4, 4, 80, "f32"),
        (16, 2, 250, "bf16"),
        (16, 2, 256, "f32"),
    ],
)
def test_one_token_splits_its_context(arch: str, heads: int, kv_heads: int, dim: int, of: str) -> None:
    found = kernels(lambda inputs: attend(inputs, heads, kv_heads, dim), arch, 1, of)
    assert found == ["attention_split", "attention_combine"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "of"),
    [
        (32, 8, 64, "bf16"),
        (32, 8, 128, "bf16"),
        (28, 4, 128, "bf16"),
        (14, 2, 64, "f16"),
        (4, 4, 80, "f16"),
        (16, 2, 256, "bf16"),
    ],
)
def test_a_prompt_runs_on_tensor_cores(arch: str, heads: int, kv_heads: int, dim: int, of: str) -> None:
    found = kernels(lambda inputs: attend(inputs, heads, kv_heads, dim), arch, 8192, of)
    on_hopper = arch == "sm_90a" and dim in (64, 128, 256)
    assert found == (ON_HOPPER if on_hopper else ["attention_prefill"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("attrs", LIMITS, ids=str)
@pytest.mark.parametrize(("dim", "of"), [(64, "bf16"), (128, "f16"), (256, "bf16"), (256, "f32")])
def test_windows_and_capped_scores_compile_for_every_number_of_tokens(
    arch: str, attrs: dict[str, float], dim: int, of: str
) -> None:
    for tokens in (1, 8):
        names = kernels(
            lambda inputs: append_and_attend(inputs, 8, 2, dim, **attrs), arch, tokens, of, fuse=True
        )
        one_kernel = arch == "sm_90a" and of != "f32"
        split = (
            ["attend", "attention_combine"]
            if dim < 256
            else ["append", "attention_split", "attention_combine"]
        )
        assert names == (["attend_cluster"] if one_kernel else split)
    names = kernels(lambda inputs: attend(inputs, 8, 2, dim, **attrs), arch, 8192, of)
    on_hopper = arch == "sm_90a" and dim in (64, 128, 256)
    prefill = ON_HOPPER if on_hopper else ["attention_prefill"]
    assert names == (["attention_split", "attention_combine"] if of == "f32" else prefill)


@pytest.mark.skipif("sm_90a" not in KNOWN, reason="NVRTC does not know Hopper")
@pytest.mark.parametrize("attrs", [{}, *LIMITS[1:]], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "of"),
    [
        (8, 8, 64, "bf16"),
        (64, 8, 64, "bf16"),
        (71, 71, 128, "bf16"),
        (64, 8, 128, "bf16"),
        (14, 2, 128, "f16"),
        (16, 8, 256, "bf16"),
        (4, 1, 256, "f16"),
    ],
)
def test_products_of_a_warpgroup_are_not_serialized(
    heads: int, kv_heads: int, dim: int, of: str, attrs: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []

    def parse(messages: str) -> dict[str, KernelResources]:
        reports.append(messages)
        return parse_resources(messages)

    monkeypatch.setattr(nvrtc, "parse_resources", parse)
    found = kernels(lambda inputs: attend(inputs, heads, kv_heads, dim, **attrs), "sm_90a", 8192, of)
    assert found == ON_HOPPER
    assert len(reports) == 1 and "registers" in reports[0]
    assert "C7" not in reports[0], "ptxas serializes products, or ignores who gives up registers"


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "of", "reason"),
    [
        (4, 4, 64, "f32", "tensor cores"),
        (4, 4, 72, "bf16", "head size 72"),
        (256, 1, 64, "bf16", "256 query heads"),
    ],
)
def test_what_the_prompt_kernel_refuses_goes_to_the_other(
    heads: int, kv_heads: int, dim: int, of: str, reason: str
) -> None:
    inputs = Inputs(dtype(of))
    attend(inputs, heads, kv_heads, dim)
    operands = [inputs.trace.entries[name][0].types[0] for name in OPS["attention"].params]
    call = OPS["attention"].call(operands, (operands[0],), {"scale": 1.0, "window": 0, "softcap": 0.0})
    emitted = OPS["attention"].lowering
    assert isinstance(emitted, tuple)
    choice = choose(emitted, call, target("sm_90a", 8192, inputs.of))
    assert isinstance(choice, Choice) and reason in choice.passed_over[0]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "of"),
    [
        (32, 8, 64, "bf16"),
        (32, 8, 128, "f16"),
        (32, 8, 80, "f32"),
        (32, 8, 18, "bf16"),
        (128, 16, 256, "bf16"),
        (128, 16, 256, "f32"),
    ],
)
def test_rope_and_append_compile_fused_and_apart(
    arch: str, heads: int, kv_heads: int, dim: int, of: str
) -> None:
    def build(inputs: Inputs) -> tuple[Tensor, ...]:
        positions, sequence, table = (inputs.batch(n) for n in ("positions", "sequence", "page_table"))
        q, k, v = (
            inputs.stream(n, "tokens", h, dim) for n, h in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        turned = rope(k, positions, rope=LLAMA3)
        kv = append(inputs.kv(kv_heads, dim), turned, v, positions, sequence, table)
        return rope(q, positions, rope=LLAMA3), kv

    assert sorted(kernels(build, arch, 1, of)) == ["append", "rope", "rope"]
    assert kernels(build, arch, 1, of, fuse=True) == ["rope_append"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("width", "of"), [(2048, "bf16"), (4095, "f16"), (896, "f32")])
def test_rows_are_copied(arch: str, width: int, of: str) -> None:
    def build(inputs: Inputs) -> Tensor:
        rows = embedding(inputs.batch("token_ids"), inputs.weight("table", 1000, width))
        return select_rows(rows, inputs.batch("output_rows"))

    assert kernels(build, arch, 1, of) == ["embedding", "select_rows"]


def test_heads_that_do_not_divide_are_refused_while_tracing() -> None:
    with pytest.raises(ShapeError, match="7 heads, which do not divide among the 2"):
        attend(Inputs(dtype("bf16")), 7, 2, 64)
