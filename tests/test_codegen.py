"""From fused graphs to CUDA: memory, launch order, source that is the same every time and compiles without a spill."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.configs import CASES, case

from infernum import bundle, ops
from infernum.codegen import emit
from infernum.codegen.cubin import Cubin, KernelResources
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock
from infernum.codegen.memory import ALIGNMENT, Lifetime, check_no_overlap, plan_memory
from infernum.codegen.nvrtc import ARCHS, compile_all, supported_archs
from infernum.codegen.places import places_of
from infernum.codegen.plan import BlockPlan, plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.templates import render
from infernum.codegen.weights import fold_weights
from infernum.compiler import Options, Sources, describe, emit_blocks, emit_sources, prepare
from infernum.dtypes import BF16
from infernum.errors import CompileError
from infernum.fusion import RULES, select_rules
from infernum.fusion.hosts import into_epilogue
from infernum.ir.apply import apply_rules
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.ir.graph import Graph, Value
from infernum.ir.kernel import Target
from infernum.ir.op import OPS, pointwise
from infernum.ir.rewrite import fusion
from infernum.ir.text import parse_graph
from infernum.manifest import BlockVariant, Launch, Manifest, Pointer, any_step, spec_of
from infernum.models.config import understand
from infernum.models.fields import Fields
from infernum.models.presets import ModelSource
from infernum.models.sampler import SAMPLERS
from infernum.roofline import MAX_ROWS
from infernum.rope import Rope

GOLDEN = Path(__file__).parent / "golden"
T1, T8 = Target(90, "t1", 1, 1, BF16), Target(90, "t8", 2, 8, BF16)
PREFILL = Target(90, "prefill", 65, 512, BF16)

try:
    NVRTC_ARCHS = supported_archs()
except CompileError:
    NVRTC_ARCHS = ()
needs_nvrtc = pytest.mark.skipif(not NVRTC_ARCHS, reason="needs NVRTC")


def source(config: dict[str, Any], name: str = "tiny") -> ModelSource:
    return understand(Fields(config, name))


TINY = case("plain").config | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def emitted(config: dict[str, Any] = TINY, **options: Any) -> Sources:
    return emit_sources(source(config), Options(**options))


def block_of(sources: Sources, stem: str) -> CompiledBlock:
    return next(b for b in sources.blocks if b.stem == stem)


def planned(traced: Graph, target: Target = T1, rules: bool = True) -> BlockPlan:
    chosen = select_rules(rules)
    return plan_block(apply_rules(traced, chosen, target, normalise=fold_weights).graph, target)


# ---- memory

lifetimes = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 4)).map(
        lambda t: Lifetime("", t[0], t[1], t[1] + t[2])
    ),
    max_size=12,
).map(lambda found: [dataclasses.replace(t, name=f"t{i}") for i, t in enumerate(found)])


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(tensors=lifetimes)
def test_tensors_that_live_at_the_same_time_share_no_byte(tensors: list[Lifetime]) -> None:
    offsets, arena = plan_memory(tensors)
    for i, a in enumerate(tensors):
        start, end = offsets[a.name], offsets[a.name] + a.bytes
        assert start % ALIGNMENT == 0 and end <= arena
        for b in tensors[i + 1 :]:
            if a.first <= b.last and b.first <= a.last:
                assert end <= offsets[b.name] or offsets[b.name] + b.bytes <= start or 0 in (a.bytes, b.bytes)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(tensors=lifetimes)
def test_the_arena_is_no_larger_than_all_tensors_side_by_side(tensors: list[Lifetime]) -> None:
    _, arena = plan_memory(tensors)
    assert arena <= sum(-(-t.bytes // ALIGNMENT) * ALIGNMENT for t in tensors)


def test_tensors_that_follow_each_other_share_their_bytes() -> None:
    offsets, arena = plan_memory([Lifetime("a", 1000, 0, 1), Lifetime("b", 1000, 2, 3)])
    assert offsets == {"a": 0, "b": 0}
    assert arena == 1024


def test_the_check_sees_tensors_that_share_bytes() -> None:
    tensors = [Lifetime("a", 1000, 0, 1), Lifetime("b", 1000, 1, 3)]
    check_no_overlap(tensors, {"a": 0, "b": 1024})
    with pytest.raises(AssertionError, match="a and b share bytes while both are alive"):
        check_no_overlap(tensors, {"a": 0, "b": 999})


@pytest.mark.parametrize("fuse", [True, False])
def test_no_kernel_of_a_llama_writes_over_what_it_or_a_later_one_reads(fuse: bool) -> None:
    sources = emitted(case("all_biases").config, fuse=fuse)
    manifest = describe(sources, no_cubins(sources))
    for name, variants in manifest.blocks.items():
        for variant, found in variants.items():
            check_arena(block_of(sources, f"{name}.{variant}").plan, found, manifest)


def check_arena(plan: BlockPlan, found: BlockVariant, manifest: Manifest) -> None:
    """Replay the steps: each byte of the arena that a step reads was last written by the tensor it reads."""
    spec = spec_of(manifest.variants, found.variant)
    symbols = {"tokens": spec.max_tokens, "rows": spec.max_rows, "seqs": spec.max_tokens}
    owner: dict[int, str] = {}

    def bytes_of(tensor: str) -> range:
        buffer = found.buffers[tensor]
        count = {"f32": 4, "i32": 4, "u32": 4}.get(buffer.spec.dtype, 2)
        for dim in buffer.spec.shape:
            count *= dim if isinstance(dim, int) else symbols[dim]
        return range(buffer.offset // ALIGNMENT, -(-(buffer.offset + count) // ALIGNMENT))

    for step in plan.steps:
        reads = {plan.places[v].tensor for v in plan.graph.operands(step.node.name)}
        writes = {plan.places[Value(step.node.name, i)].tensor for i in range(len(step.node.types))}
        writes |= {name for name, (_, node) in plan.workspaces.items() if node == step.node.name}
        for tensor in reads & set(found.buffers):
            assert {owner[page] for page in bytes_of(tensor)} == {tensor}
        for tensor in writes & set(found.buffers):
            assert not reads & {owner[p] for p in bytes_of(tensor) if p in owner} - {tensor}
            owner |= dict.fromkeys(bytes_of(tensor), tensor)


def no_cubins(sources: Sources) -> dict[str, Cubin]:
    names = {b.stem: [s.name for s in b.plan.steps if isinstance(s, KernelStep)] for b in sources.blocks}
    return {s: Cubin(b"", dict.fromkeys(found, KernelResources(1, 0, 0, 0))) for s, found in names.items()}


# ---- places

VIEWS = """\
graph g {
  stream %x : bf16[tokens, 192]
  weight %w : bf16[64, 64] = "w"
  weight %v : bf16[64, 32] = "v"
  state %kv : bf16[pages, 2, 2, 64, 16]
  batch %positions : i32[tokens]
  batch %sequence : i32[tokens]
  batch %page_table : i32[seqs, max_pages]

  %linear_1 = linear(%x, %w) : bf16[tokens, 192]
  %columns_1 = columns(%linear_1) {start = 64, stop = 160} : bf16[tokens, 96]
  %columns_2 = columns(%columns_1) {start = 32, stop = 64} : bf16[tokens, 32]
  %heads_1 = heads(%columns_2) {dim = 16} : bf16[tokens, 2, 16]
  %flatten_1 = flatten(%heads_1) : bf16[tokens, 32]
  %append_1 = append(%kv, %heads_1, %heads_1, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]
  %silu_1 = silu(%flatten_1) : bf16[tokens, 32]
  return %silu_1, %append_1
}
"""


def test_views_are_the_same_tensor_with_another_offset_and_the_same_stride() -> None:
    places = places_of(parse_graph(VIEWS))
    found = {v.node: (p.tensor, p.offset, p.stride) for v, p in places.items()}
    assert found["linear_1"] == ("linear_1", 0, 192)
    assert found["columns_1"] == ("linear_1", 64, 192)
    assert found["columns_2"] == ("linear_1", 96, 192)
    assert found["heads_1"] == ("linear_1", 96, 192)
    assert found["flatten_1"] == ("linear_1", 96, 192)
    assert found["silu_1"] == ("silu_1", 0, 32)
    assert found["page_table"] == ("page_table", 0, 0)


def test_a_result_in_place_is_where_its_operand_is() -> None:
    places = places_of(parse_graph(VIEWS))
    assert places[Value("append_1")] == places[Value("kv")]


def test_a_fused_result_in_place_is_where_its_operand_is_and_is_not_a_parameter_twice() -> None:
    plan = block_of(emitted(), "decoder.t8").plan
    (attend,) = [s for s in plan.steps if isinstance(s, KernelStep) and s.name == "attend_cluster"]
    assert plan.places[Value(attend.node.name, 1)] == plan.places[Value("kv")]
    assert [o.name for o in attend.operands if o.place.tensor == "kv"] == ["kv"]
    assert not next(o for o in attend.operands if o.name == "kv").const


def test_the_offsets_of_merged_queries_keys_and_values_reach_the_manifest_in_bytes() -> None:
    sources = emitted()
    steps = describe(sources, no_cubins(sources)).blocks["decoder"]["t8"].steps
    (attend,) = [s for s in steps if isinstance(s, Launch) and s.kernel == "attend_cluster"]
    q, k, v = (arg for arg in attend.args[:3] if isinstance(arg, Pointer))
    assert len({q.tensor, k.tensor, v.tensor}) == 1
    assert (q.offset, k.offset, v.offset) == (0, 2 * 64, 2 * 96)


def test_stacked_computed_values_are_refused_with_their_line() -> None:
    text = VIEWS.replace("%silu_1 = silu(%flatten_1) : bf16[tokens, 32]", STACKED)
    with pytest.raises(CompileError, match=r"^m\.py:9: stack_rows stacks weights only, not computed values$"):
        places_of(parse_graph(text))


STACKED = "%silu_1 = stack_rows(%flatten_1, %v) : bf16[64, 32]  # m.py:9"


# ---- what a plan refuses

CFG = SimpleNamespace(hidden_size=64)


@block(x="tokens hidden_size")
def returns_columns(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return ops.columns(ops.silu(x), start=0, stop=32)


@block(x="tokens hidden_size")
def adds_vectors(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return ops.add(x, ops.add(w.tensor("a", 64), w.tensor("b", 64)))


@block(x="tokens hidden_size")
def norms_odd_columns(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    half = ops.columns(ops.silu(x), start=4, stop=36)
    return ops.rms_norm(half, w.tensor("norm", 32), eps=1e-5)


@block(x="tokens hidden_size")
def multiplies_odd_columns(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return ops.linear(ops.columns(ops.silu(x), start=2, stop=34), w.tensor("proj", 64, 32))


@block(x="tokens hidden_size")
def selects_odd_columns(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return ops.select_rows(ops.columns(ops.silu(x), start=4, stop=36), batch.output_rows)


@block(x="tokens hidden_size")
def adds_to_each_head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return ops.add(ops.heads(x, dim=4), w.tensor("bias", 4))


@block(x="tokens hidden_size")
def post_norm(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    h = ops.rms_norm(x, w.tensor("norm", 64), eps=1e-5)
    return ops.add(h, ops.linear(h, w.tensor("proj", 64, 64)))


@block(x="tokens hidden_size")
def three_products(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
    return tuple(ops.linear(x, w.tensor(name, 64, 64)) for name in "abc")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (returns_columns, "a block cannot return columns of silu_1, only whole tensors"),
        (adds_vectors, "add gives bf16[64]; kernels compute rows, not vectors"),
        (
            selects_odd_columns,
            "x is a view of silu_1 from element 4 on, rows 64 apart; select_rows reads 8 elements at once",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_no_kernel_can_do_is_refused_with_its_line(wrong: Block, message: str) -> None:
    with pytest.raises(CompileError) as error:
        planned(wrong.trace(CFG, BF16))
    assert re.fullmatch(r"test_codegen\.py:\d+: (.*)", str(error.value))[1] == message  # pyright: ignore


@pytest.mark.parametrize(
    ("views", "vector"),
    [(norms_odd_columns, 4), (multiplies_odd_columns, 2)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_rows_that_begin_anywhere_are_read_in_accesses_that_they_allow(views: Block, vector: int) -> None:
    step = planned(views.trace(CFG, BF16)).steps[-1]
    assert isinstance(step, KernelStep)
    assert step.context["VECTOR"] == vector


def test_a_vector_added_to_each_head_is_read_anew_for_each() -> None:
    plan = planned(adds_to_each_head.trace(CFG, BF16))
    assert "load_vector(bias_values, bias + column % 4);" in emit_block(plan, "g")
    assert [s.context["VECTOR"] for s in plan.steps if isinstance(s, KernelStep)] == [4]


@pytest.mark.parametrize("target", [T1, T8, PREFILL], ids=lambda t: t.variant)
@pytest.mark.parametrize("made", [post_norm, three_products], ids=lambda b: b.name)
def test_blocks_that_rules_must_leave_alone_are_planned_all_the_same(made: Block, target: Target) -> None:
    plan = planned(made.trace(CFG, BF16), target)
    assert emit_block(plan, "g")
    assert len({plan.places[v].tensor for v in plan.graph.outputs}) == len(plan.graph.outputs)


def test_an_attribute_of_a_pointwise_op_is_a_number_in_its_expression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("infernum.ir.op.OPS", dict(OPS))

    @pointwise("fminf({x}, {limit})")
    def below(x: np.ndarray, *, limit: float) -> np.ndarray:
        """x, at most `limit`."""
        return np.minimum(x, limit)

    @block(x="tokens hidden_size")
    def limited(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return below(x, limit=0.5)

    text = emit_block(planned(limited.trace(CFG, BF16)), "g")
    assert "const float below_1 = fminf(x_value, 0.5f);  // test_codegen.py:" in text


def test_a_fusion_may_keep_values_that_come_before_the_normalised_one() -> None:
    @fusion(why="Both sums and the norm of the second, in one kernel.")
    def add_add_norm(x: Tensor, y: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, ...]:
        first = ops.add(x, y)
        second = ops.add(first, z)
        return first, second, ops.rms_norm(second, weight, eps=eps)

    @block(x="tokens hidden_size", y="tokens hidden_size", z="tokens hidden_size")
    def sums(x: Tensor, y: Tensor, z: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Any:
        first = ops.add(x, y)
        second = ops.add(first, z)
        return first, second, ops.rms_norm(second, w.tensor("norm", 64), eps=1e-5)

    found = apply_rules(sums.trace(CFG, BF16), [add_add_norm], T1)
    text = emit_block(plan_block(found.graph, T1), "g")
    assert "out_add_1_values[i] = add_1;" in text
    assert "store_vector(out_add_1 + token * 64 + column, out_add_1_values);" in text
    assert "store_vector(out_add_2 + token * 64 + column, kept[v]);" in text


def test_what_follows_a_host_without_an_epilogue_is_refused() -> None:
    @fusion(why="A rotation has no epilogue, so this cannot be emitted.")
    def rope_silu(x: Tensor, positions: Tensor, *, rope: Rope) -> Tensor:
        return ops.silu(ops.rope(x, positions, rope=rope))

    @block(x="tokens hidden_size")
    def gated(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return ops.silu(ops.rope(ops.heads(x, dim=16), batch.positions, rope=Rope()))

    fused = apply_rules(gated.trace(CFG, BF16), [rope_silu], T1)
    with pytest.raises(CompileError, match="rope writes its result as it is: it has no epilogue"):
        plan_block(fused.graph, T1)


def test_ranges_of_a_normalised_row_are_not_combined_by_the_norm() -> None:
    @block(x="tokens hidden_size")
    def halves(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        h = ops.rms_norm(x, w.tensor("norm", 64), eps=1e-5)
        return ops.mul(ops.columns(h, start=0, stop=32), ops.columns(h, start=32, stop=64))

    (refused,) = apply_rules(halves.trace(CFG, BF16), [into_epilogue], T1).refused
    assert refused.reason.endswith("a norm writes whole rows, and these are ranges of columns")


# ---- source


def test_two_emissions_are_the_same_text() -> None:
    first, second = emitted(), emitted()
    assert {b.stem: b.source for b in first.blocks} == {b.stem: b.source for b in second.blocks}


COMPILE = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_codegen import TINY, source
from infernum.compiler import Options, compile_model
compile_model(source(TINY), Options(max_batch_tokens=8), Path(sys.argv[1]))
"""


@needs_nvrtc
def test_two_compilations_in_different_processes_give_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "XDG_CACHE_HOME": str(tmp_path / f"cache{seed}")}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(bundle.__file__).parents[1]), *sys.path])
        )
        command = [sys.executable, "-c", COMPILE, str(tmp_path / seed), str(Path(__file__).parent)]
        subprocess.run(command, check=True, env=environment)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / seed).iterdir()} for seed in ("1", "2"))
    assert one.keys() == two.keys()
    assert bundle.MANIFEST in one
    assert [name for name in one if one[name] != two[name]] == []


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of cubins that the tests of this file share."""
    return tmp_path_factory.mktemp("cubins")


def check_compiles(sources: Sources, arch: str, cache: Path) -> None:
    """Layers for every variant, and the other blocks, which hardly differ between variants, for one."""
    blocks = [b for b in sources.blocks if b.block == "decoder" or b.target.variant == "t8"]
    found = compile_all([(f"{b.stem}.cu", b.source) for b in blocks], arch, cache=cache)
    for made in blocks:
        kernels = [step.name for step in made.plan.steps if isinstance(step, KernelStep)]
        assert sorted(found[f"{made.stem}.cu"].kernels) == sorted(kernels)
    spills = {
        f"{file} {name}": used.spill_bytes
        for file, cubin in found.items()
        for name, used in cubin.kernels.items()
        if used.spill_bytes
    }
    assert not spills, f"registers spilled for {arch}, in bytes"


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("all_biases", "float32"),
        ("all_biases", "bfloat16"),
        ("fourteen_to_two", "float16"),
        ("seven_to_one", "bfloat16"),
    ],
)
def test_every_dtype_compiles_without_a_spill(name: str, dtype: str, arch: str, cubins: Path) -> None:
    check_compiles(emitted(case(name).config, dtype=dtype, arch=arch), arch, cubins)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_compiles_without_a_spill(arch: str, cubins: Path) -> None:
    check_compiles(emitted(arch=arch), arch, cubins)


@pytest.mark.parametrize("name", [c.name for c in CASES if c.name != "dynamic_in_range"])
def test_every_oracle_model_is_emitted_in_every_dtype(name: str) -> None:
    for dtype, fuse in (("float32", True), ("float16", True), ("bfloat16", True), ("bfloat16", False)):
        for made in emitted(case(name).config, dtype=dtype, fuse=fuse).blocks:
            check_source(made)


def check_source(made: CompiledBlock) -> None:
    """What holds of every emitted file."""
    kernels = [step for step in made.plan.steps if isinstance(step, KernelStep)]
    assert len({k.name for k in kernels}) == len(kernels)
    for kernel in kernels:
        comment = comment_over(made.source, kernel.name)
        assert kernel.node.where
        assert f"// from {', '.join(kernel.node.where)}" in comment
        lines = [w for w in kernel.node.where if not w.startswith("models/")]
        assert not lines, "every kernel comes from lines of the model"
        signature = made.source.split(f"{kernel.name}(\n")[1].split(") {")[0]
        restricted = set(re.findall(r"__restrict__ (\w+)", signature))
        assert restricted == {o.name for o in kernel.operands if o.place.weight}
    assert made.source.count("__restrict__") == sum(o.place.weight for k in kernels for o in k.operands)
    assert not re.search(r"[ \t]$", made.source, re.MULTILINE)
    assert "\n\n\n" not in made.source
    assert made.source.endswith("}\n") or not kernels


def comment_over(text: str, kernel: str) -> list[str]:
    """The comment lines over a kernel's definition."""
    section = text.split(f"// ---- {kernel}\n")[1]
    return [line for line in section.splitlines()[:3] if line.startswith("// ")]


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("variant", ["t1", "t8"])
def test_a_layer_takes_five_kernels_for_few_tokens_and_six_where_there_are_no_clusters(
    attention_bias: bool, mlp_bias: bool, arch: str, variant: str
) -> None:
    sources = emitted(TINY | {"attention_bias": attention_bias, "mlp_bias": mlp_bias}, arch=arch)
    layer = block_of(sources, f"decoder.{variant}")
    assert len(layer.plan.steps) == (5 if arch == "sm_90a" else 6)
    assert len(layer.before.steps) >= 18


def test_a_kernel_that_may_start_early_and_never_waits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_wait(name: str, context: dict[str, Any], *, arch: int) -> str:
        text = render(name, context, arch=arch)
        return text.replace("wait_for_previous_kernel();", "") if name == "rope_append" else text

    monkeypatch.setattr(emit, "render", without_the_wait)
    with pytest.raises(CompileError, match=r"rope_append.*must call wait_for_previous_kernel\(\)"):
        emitted(arch="sm_90a")
    emitted(arch="sm_80")  # where no kernel starts early


def test_the_comment_over_a_kernel_says_ops_rules_and_lines() -> None:
    made = block_of(emitted(), "decoder.t1")
    ops_line, from_line, cost = comment_over(made.source, "gemv_mma_gate_up_proj")
    assert ops_line == (
        "// rms_norm -> linear -> columns -> columns -> silu -> mul, "
        "by merge_products, into_epilogue, into_prologue"
    )
    assert re.fullmatch(r"// from (models/llama\.py:\d+(, )?)+", from_line)
    assert re.fullmatch(r"// 1 token\(s\): .*B, .*FLOP; at least .* us on one H200", cost)


@pytest.mark.parametrize(("dtype", "rounded"), [("bfloat16", "round_to<bf16_t>("), ("float32", "")])
def test_a_value_inside_a_kernel_is_rounded_as_it_would_be_in_memory(dtype: str, rounded: str) -> None:
    layer = block_of(emitted(dtype=dtype), "decoder.prefill").source
    (silu, value) = re.findall(r"const float silu_\d+ = (.*?)__fdividef\((\w+_value), ", layer)[0]
    assert (silu, value.startswith("columns_")) == (rounded, True)


def test_each_rule_can_be_switched_off_and_on_alone() -> None:
    biased = TINY | {"attention_bias": True, "mlp_bias": True}
    for rule in RULES:
        for options in ({"rules": (f"-{rule.name}",)}, {"fuse": False, "rules": (f"+{rule.name}",)}):
            for made in emitted(biased, **options).blocks:
                assert rule.name not in made.outcome.fired or not options["rules"][0].startswith("-")
                check_source(made)


# ---- samplers


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda block: block.name)
def test_a_sampler_is_compiled_once_and_its_code_would_be_the_same_for_every_variant(sampler: Block) -> None:
    sources = emitted()
    (compiled,) = [b for b in sources.blocks if b.block == sampler.name]
    spec = any_step(sources.variants)
    assert (compiled.stem, spec.min_tokens) == (f"{sampler.name}.any", 1)
    assert (spec.max_tokens, spec.max_rows) == (sources.variants[-1].max_tokens, MAX_ROWS)
    for each in sources.variants:
        target = dataclasses.replace(
            compiled.target, variant=each.name, min_tokens=each.min_tokens, max_tokens=each.max_tokens
        )
        assert code_of(emit_block(planned(compiled.traced, target), "")) == code_of(compiled.source)


def test_samplers_are_emitted_first_and_listed_last() -> None:
    sources = prepare(source(TINY), Options())
    emitted_first = next(emit_blocks(sources))
    assert emitted_first.block == "sample"
    listed = [b.block for b in emitted().blocks]
    assert list(dict.fromkeys(listed)) == [*("embed", "decoder", "head", "greedy", "sample", "logprobs")]


def code_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("//")]


# ---- golden files


def golden_sources() -> dict[str, str]:
    fused, plain = emitted(), emitted(fuse=False)
    chosen = {
        **{f"{stem}.cu": block_of(fused, stem) for stem in ("decoder.t1", "decoder.t8", "decoder.prefill")},
        "decoder.t1.nofuse.cu": block_of(plain, "decoder.t1"),
        **{f"{stem}.cu": block_of(fused, stem) for stem in ("head.t1", "greedy.any")},
    }
    return {name: made.source for name, made in chosen.items()}


def test_the_emitted_source_of_a_tiny_llama_is_the_golden_one(update_golden: bool) -> None:
    made = golden_sources()
    if update_golden:
        GOLDEN.mkdir(exist_ok=True)
        for name, text in made.items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
    kept = {path.name: path.read_text(encoding="utf-8") for path in sorted(GOLDEN.glob("*.cu"))}
    assert sorted(kept) == sorted(made)
    for name, text in made.items():
        assert text == kept[name], f"{name} differs; read the difference, then run pytest --update-golden"


@needs_nvrtc
def test_the_golden_files_compile(cubins: Path) -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(GOLDEN.glob("*.cu"))}
    assert files
    for name, cubin in compile_all(files.items(), "sm_90a", cache=cubins).items():
        assert cubin.kernels and not any(k.spill_bytes for k in cubin.kernels.values()), name
