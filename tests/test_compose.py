"""What rules make of blocks that none was written for: few kernels, the same meaning, and code that compiles."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import composed
import numpy as np
import pytest
from composed import BY_POSITION, geglu, layer, long_rope, offset_norm, turning
from graph_inputs import copied, random_inputs, stacked

from infernum import ops
from infernum.codegen import templates
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_cuda, parse_arch, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16, F32, DType
from infernum.errors import CompileError
from infernum.fusion import RULES
from infernum.ir.apply import Outcome, apply_rules
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.ir.fuse import decomposed
from infernum.ir.graph import Graph
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target
from infernum.ir.op import OPS
from infernum.ir.text import parse_graph, print_graph
from infernum.ops import linear, rms_norm
from infernum.rope import Rope

ARCHS = [arch for arch in ("sm_80", "sm_90a") if arch in supported_archs()]
FEW = {"t1": (1, 1), "t8": (2, 8)}
OURS = FEW | {"t64": (9, 64)}
"""Variants whose products have epilogues of any pointwise ops; those of t64 only on Hopper, in 16 bits."""
VARIANTS = OURS | {"prefill": (65, 512)}
NORMS = ((rms_norm, 1e-5), (rms_norm, 1e-3))


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops and the include file of `composed`; products are summed exactly, in whatever order they are stacked."""

    def exactly(x: np.ndarray, weight: np.ndarray, *, out: str = "") -> np.ndarray:
        del out
        return x.astype(np.float64) @ weight.astype(np.float64).T

    for name, each in composed.OWN.items():
        monkeypatch.setitem(OPS, name, each)
    monkeypatch.setattr(templates, "FOLDERS", [composed.FOLDER])
    monkeypatch.setitem(vars(linear), "meaning", exactly)


def config(dim: int = 64, **settings: int) -> SimpleNamespace:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return SimpleNamespace(**(sizes | {"head_dim": dim} | settings))


def target(variant: str, dtype: DType = BF16, arch: str = "sm_90a") -> Target:
    return Target(parse_arch(arch), variant, *VARIANTS[variant], dtype)


def fused(graph: Graph, goal: Target) -> Outcome:
    return apply_rules(graph, RULES, goal, normalise=fold_weights)


def steps(graph: Graph, goal: Target) -> list[str]:
    return [step.name for step in plan_block(graph, goal).steps]


def source(graph: Graph, goal: Target) -> str:
    return emit_block(plan_block(graph, goal), "test")


def check_meaning(plain: Graph, made: Graph) -> None:
    """To the last bit, through the fused nodes and without them; also of what is left in the cache."""
    inputs = random_inputs(plain)
    wanted = copied(inputs)
    of_plain = interpret(plain, wanted)
    for graph in (made, decomposed(made)):
        own = stacked(graph, plain, inputs)
        for out, ref in zip(interpret(graph, own), of_plain, strict=True):
            assert np.array_equal(out, ref)
        assert "kv" not in own or np.array_equal(own["kv"], wanted["kv"])


def check_compiles(text: str, arch: str) -> None:
    for name, used in compile_cuda(text, name="test.cu", arch=arch, cache=None).kernels.items():
        assert used.spill_bytes == 0 and used.stack_bytes == 0, f"{name}: {used}"


# ---- a feed-forward layer


@block(x="tokens hidden_size")
def geglu_layer(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.add(x, geglu(rms_norm(x, w.tensor("norm.weight", cfg.hidden_size), eps=1e-5), w, cfg))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_geglu_with_a_scaled_residual_is_two_kernels_for_few_tokens(dtype: DType, variant: str) -> None:
    plain, goal = geglu_layer.trace(config(), dtype), target(variant, dtype)
    made = fused(plain, goal).graph
    in_epilogues = 3 if variant in OURS and dtype is BF16 else 5
    assert len(steps(made, goal)) == (2 if variant in FEW else in_epilogues)
    check_meaning(plain, made)
    for arch in ARCHS if variant in FEW else ():
        other = target(variant, dtype, arch)
        check_compiles(source(fused(plain, other).graph, other), arch)


# ---- attention

LAYERS: dict[str, tuple[Block, int, int, int]] = {
    "norms of q and k": (layer(norms=NORMS), 64, 5, 5),
    "norms of q and k, heads of 128": (layer(norms=NORMS), 128, 5, 5),
    "norms of q and k, heads of 256": (layer(norms=NORMS), 256, 5, 5),
    "norms of q and k, heads of 80": (layer(norms=NORMS), 80, 7, 7),
    "heads of 96": (layer(), 96, 5, 5),
    "heads of 256, long and short frequencies": (turning(long_rope(128), norms=NORMS), 256, 5, 5),
    "heads of 96, three quarters turned by long frequencies": (
        turning(long_rope(36, partial=0.75)),
        96,
        5,
        5,
    ),
    "heads of 80, a quarter turned": (turning(Rope(partial=0.25)), 80, 5, 5),
    "half turned, neighbours, normed": (turning(Rope(partial=0.5, interleaved=True), norms=NORMS), 64, 5, 5),
    "neighbours of 256, half of them": (turning(Rope(partial=0.5, interleaved=True), norms=NORMS), 256, 5, 5),
    "queries by position, yarn": (turning(BY_POSITION, norms=NORMS), 128, 5, 5),
    "a quarter of the pairs, to the end": (turning(Rope("proportional", partial=0.25)), 64, 5, 5),
    "an odd number of pairs": (turning(Rope(partial=0.375, attention_factor=1.3), norms=NORMS), 16, 5, 5),
    "a norm of q": (layer(norms=(NORMS[0], None)), 64, 5, 5),
    "a norm of k of its own, only q turned": (
        layer(norms=(None, (offset_norm, 1e-6)), ropes=(Rope(), None)),
        64,
        5,
        5,
    ),
    "no turn": (layer(ropes=(None, None)), 64, 5, 5),
    "norms and no turn": (layer(norms=NORMS, ropes=(None, None)), 64, 5, 5),
    "biases of q and k, and norms of them": (composed.LAYERS[composed.NormedConfig], 64, 6, 6),
    "a geglu between norms of a plugin": (composed.LAYERS[composed.GegluConfig], 64, 5, 5),
}
"""Layers with the size of their heads, and their kernels for one token and for eight."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYERS)
def test_attention_absorbs_norms_and_turns_of_queries_and_keys(name: str, variant: str) -> None:
    made_by, dim, *few = LAYERS[name]
    plain, goal = made_by.trace(config(dim), BF16), target(variant)
    made = fused(plain, goal).graph
    if variant in FEW:
        assert len(steps(made, goal)) == few[variant == "t8"], steps(made, goal)
    check_meaning(plain, made)
    assert source(made, goal)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("variant", FEW)
@pytest.mark.parametrize("name", LAYERS)
def test_attention_with_what_it_absorbed_compiles_without_a_spill(name: str, variant: str, arch: str) -> None:
    made_by, dim, *_ = LAYERS[name]
    goal = target(variant, arch=arch)
    check_compiles(source(fused(made_by.trace(config(dim), BF16), goal).graph, goal), arch)


def test_each_norm_keeps_its_own_eps() -> None:
    text = source(*ready(layer(norms=NORMS)))
    assert "n < 0 ? RmsNorm{1e-05f, 0.0f} : RmsNorm{0.001f, 0.0f}" in text, re.findall(r".*RmsNorm\{.*", text)


def test_queries_and_keys_of_different_norms_share_no_kernel() -> None:
    made, goal = ready(layer(norms=(NORMS[0], (offset_norm, 1e-6))))
    names = steps(made, goal)
    assert [name for name in names if "norm" in name] == ["offset_norm_k_norm"] and len(names) == 6
    refused = fused(layer(norms=(NORMS[0], (offset_norm, 1e-6))).trace(config(), BF16), goal).refused
    assert "queries and keys are normalised by different ops, and the kernel has one" in str(refused)


def ready(made_by: Block, variant: str = "t1") -> tuple[Graph, Target]:
    """The fused graph of a block, and what it is compiled for."""
    goal = target(variant)
    return fused(made_by.trace(config(), BF16), goal).graph, goal


# ---- products of one input


@block(x="tokens hidden_size")
def parallel(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    h = rms_norm(x, w.tensor("norm.weight", cfg.hidden_size), eps=1e-5)
    return ops.add(ops.add(x, composed.attention(h, batch, w, cfg)), composed.swiglu(h, w, cfg))


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_and_feed_forward_on_one_norm_are_merged_at_once(variant: str) -> None:
    plain, goal = parallel.trace(config(), BF16), target(variant)
    found = fused(plain, goal)
    assert found.fired["merge_products"] == 1
    check_meaning(plain, found.graph)
    if variant == "t1":
        assert len(steps(found.graph, goal)) == 5 and "rms_norm" not in " ".join(steps(found.graph, goal))


@block(x="tokens hidden_size")
def many(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> tuple[Tensor, ...]:
    h = rms_norm(x, w.tensor("norm.weight", cfg.hidden_size), eps=1e-5)
    rows = [ops.heads(ops.dense(h, w, f"p{i}", 64), dim=64) for i in range(32)]
    return tuple(ops.rope(each, batch.positions, rope=Rope()) for each in rows)


def test_many_products_are_merged_at_once_and_soon() -> None:
    plain, goal = many.trace(config(), BF16), target("t1")
    seconds: list[float] = []
    for _ in range(3):
        begin = time.process_time()
        found = fused(plain, goal)
        seconds.append(time.process_time() - begin)
    assert found.fired["merge_products"] == 1 and len(steps(found.graph, goal)) == 1 + 32
    assert min(seconds) < 0.05


@block(x="tokens hidden_size")
def gated_with_one_bias(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    gate = ops.silu(ops.dense(x, w, "gate", 512, bias=True))
    return ops.mul(gate, ops.dense(x, w, "up", 512))


def test_products_with_a_bias_are_merged_among_themselves_and_a_pair_stays_one() -> None:
    for biased, weights in {
        "q": {"q_proj", "q_proj_bias", "k_v_proj"},
        "qk": {"q_k_proj", "q_k_proj_bias", "v_proj"},
        "qkv": {"q_k_v_proj", "q_k_v_proj_bias"},
    }.items():
        made_by = layer(biased=biased)
        plain, goal = made_by.trace(config(), BF16), target("t1")
        made = fused(plain, goal).graph
        assert weights == {n.name for n in made.inputs if re.match(r"[qkv]_", n.name)}
        check_meaning(plain, made)
    plain, goal = gated_with_one_bias.trace(config(), BF16), target("t1")
    made = fused(plain, goal).graph
    assert steps(made, goal) == ["gemv_mma_gate_up"]
    check_meaning(plain, made)


@block(x="tokens hidden_size")
def thirds(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    y = ops.dense(x, w, "w", 192)
    return composed.add_three(*(ops.columns(y, start=i, stop=i + 64) for i in (0, 64, 128)))


@block(x="tokens hidden_size")
def with_itself(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    y = ops.dense(x, w, "w", 64)
    return ops.add(ops.add(ops.columns(y, start=0, stop=64), y), w.tensor("b", 64))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("made_by", [thirds, with_itself], ids=lambda b: b.name)
def test_a_sum_of_ranges_of_columns_that_no_kernel_takes_in_is_one_of_its_own(
    made_by: Block, variant: str
) -> None:
    plain, goal = made_by.trace(config(), BF16), target(variant)
    found = fused(plain, goal)
    taken_in = variant in (OURS if made_by is with_itself else {"t64"})
    assert len(steps(found.graph, goal)) == (1 if taken_in else 2)
    assert made_by is with_itself or variant not in FEW or "combines 3 ranges" in found.refused[0].reason
    check_meaning(plain, found.graph)
    assert source(found.graph, goal)


# ---- ops of a plugin


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_norm_of_a_plugin_brings_its_own_gain(variant: str) -> None:
    @block(x="tokens hidden_size")
    def normalised(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        h = offset_norm(x, w.tensor("norm", cfg.hidden_size), eps=1e-5)
        return ops.mul(ops.gelu_tanh(ops.dense(h, w, "gate", 512)), ops.dense(h, w, "up", 512))

    plain, goal = normalised.trace(config(), BF16), target(variant)
    made = fused(plain, goal).graph
    assert len(steps(made, goal)) == (1 if variant in FEW else 2 if variant in OURS else 3)
    text = source(made, goal)
    assert re.search(r"OffsetNorm( norm)?\{1e-05f\}", text) and "RmsNorm" not in text
    assert "return x * scale * (1.0f + gain);" in text
    check_meaning(plain, made)
    check_compiles(text, "sm_90a")


@pytest.mark.parametrize(
    "by", [float("inf"), float("-inf"), float("nan"), np.float32(0.1), np.float64(1e39), 3], ids=repr
)
def test_an_attribute_may_be_any_number(by: Any) -> None:
    @block(x="tokens hidden_size")
    def scaled(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return ops.scale(x, by=by)

    made, goal = ready(scaled)
    check_compiles(source(made, goal), "sm_90a")
    assert print_graph(parse_graph(print_graph(made))) == print_graph(made)


NAMES = "slot stream T norm new out_x x rows weight part_0 static_cast bf16_t round_to RmsNorm __global__ sum_value"


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_weight_may_be_called_as_anything(dtype: DType) -> None:
    """As a local of a template, a type, a keyword; in a GEMV's epilogue and in a norm's kernel."""

    @block(x="tokens hidden_size")
    def named(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> tuple[Tensor, ...]:
        y, z = ops.dense(rms_norm(x, w.tensor("sum", 256), eps=1e-5), w, "WIDTH", 256), x
        for name in NAMES.split():
            y, z = ops.add(y, w.tensor(name, 256)), ops.mul(z, w.tensor(name, 256))
        return y, rms_norm(z, w.tensor("stride", 256), eps=1e-5)

    goal = target("t1", dtype)
    check_compiles(source(fused(named.trace(config(), dtype), goal).graph, goal), "sm_90a")


# ---- sizes


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_width_of_8192_compiles_for_four_tokens(dtype: DType) -> None:
    goal = Target(90, "t4", 2, 4, dtype)
    wide = config(hidden_size=8192, intermediate_size=1024)
    made = fused(geglu_layer.trace(wide, dtype), goal).graph
    check_compiles(source(made, goal), "sm_90a")


def test_the_rows_of_a_kernel_are_counted_by_the_symbol_they_have() -> None:
    @block(x="seqs hidden_size")
    def of_sequences(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return ops.silu(x)

    (kernel,) = plan_block(*ready(of_sequences)).steps
    assert isinstance(kernel, KernelStep)
    assert kernel.grid[0] == "ceildiv(seqs * 32, 256)" and kernel.symbols == (("tokens", "seqs"),)
    twice = parse_graph(print_graph(of_sequences.trace(config(), BF16)).replace("seqs", "2 * tokens"))
    with pytest.raises(
        CompileError, match=r"silu has 2 \* tokens rows; the rows of a kernel are counted by a symbol"
    ):
        plan_block(twice, target("t1"))
