"""`infernum explain`: what it says of every kernel of Llama is held against graphs, source lines and firings."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from conftest import Outcome, Tiny, graphs_only

import infernum.ops  # noqa: F401 - registers what graphs call
from infernum import roofline
from infernum.bundle import Bundle, write_bundle
from infernum.codegen.weights import fold_weights
from infernum.compiler import Options
from infernum.dtypes import BF16
from infernum.errors import BundleError
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.op import Fused
from infernum.ir.text import parse_graph
from infernum.lab.explain.amounts import change, microseconds, nbytes
from infernum.lab.explain.block import explain_block
from infernum.lab.explain.block_text import block_text
from infernum.lab.explain.calls import calls_of, draw
from infernum.lab.explain.facts import facts_of
from infernum.lab.explain.history import RuleExplanation, explain_rule
from infernum.lab.explain.kernel import KernelExplanation, explain_kernels, explain_variant
from infernum.lab.explain.kernel_text import kernel_text
from infernum.lab.explain.lines import text_of
from infernum.lab.explain.names import find
from infernum.lab.explain.occupancy import occupancy
from infernum.lab.explain.overview import explain_bundle
from infernum.lab.explain.rule_text import rule_text
from infernum.manifest import ANY, BlockVariant, Edit, Plugin, RuleRefusal
from infernum.models.presets import resolve
from infernum.resources import PACKAGE
from infernum.runtime.layout import block_variant

EVERY = [
    (block, variant)
    for block in ("embed", "decoder", "head")
    for variant in ("t1", "t8", "t64", "d128", "decode", "prefill")
] + [("greedy", ANY), ("sample", ANY)]
RULE = {rule.name: rule for rule in RULES}
every_block = pytest.mark.parametrize(("block", "variant"), EVERY, ids=[".".join(pair) for pair in EVERY])


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Llama with all rules, without cubins."""
    return graphs_only(resolve("llama"), Options(), tmp_path_factory.mktemp("explain") / "llama")


@pytest.fixture(scope="session")
def llama_unfused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Llama without any rule, without cubins."""
    return graphs_only(resolve("llama"), Options(fuse=False), tmp_path_factory.mktemp("explain") / "unfused")


def graph_in(bundle: Bundle, name: str) -> Graph:
    return parse_graph(bundle.read(name).decode())


def shown(told: KernelExplanation) -> str:
    return "\n".join(line.plain for line in kernel_text(told, 160))


def told_of(told: RuleExplanation) -> str:
    return "\n".join(line.plain for line in rule_text(told, 500))


# ---- every kernel of Llama


@every_block
def test_each_traced_kernel_is_the_work_of_exactly_one_node(
    llama: Bundle, llama_unfused: Bundle, block: str, variant: str
) -> None:
    fused = llama.manifest.blocks[block][variant]
    unfused = Counter(kernel.node for kernel in llama_unfused.manifest.blocks[block][variant].kernels)
    of_node = {kernel.node: kernel.origin for kernel in fused.kernels}
    assert Counter(o for origin in of_node.values() for o in origin if o in unfused) == dict.fromkeys(
        unfused, 1
    )
    told = explain_block(llama, fused)
    assert told.before.kernels == unfused.total() == fused.kernels_before_fusion
    assert told.after.kernels == len(fused.kernels)


@every_block
def test_each_kernel_names_the_ops_of_its_node_in_the_graph(llama: Bundle, block: str, variant: str) -> None:
    found = llama.manifest.blocks[block][variant]
    graph = graph_in(llama, found.graph)
    for told in explain_variant(llama, found):
        op = graph.node(told.facts.kernel.node).op
        expected = [n.op.name for n in op.body.calls] if isinstance(op, Fused) else [op.name]
        assert Counter(call.op for call in told.calls) == Counter(expected)
        assert f"Ops: {' → '.join(call.op for call in told.calls)}" in shown(told)


def firings_of(variant: BlockVariant) -> dict[str, list[str]]:
    """By node, the rules that fired for it and for the nodes it was made of, in order."""
    found: dict[str, set[int]] = {}
    for i, firing in enumerate(variant.firings):
        numbers = {i}.union(*(found.get(name, ()) for name in firing.at.split(", ")))
        found |= dict.fromkeys(firing.made.split(", "), numbers)
    return {node: [variant.firings[i].rule for i in sorted(numbers)] for node, numbers in found.items()}


@every_block
def test_each_kernel_names_the_rules_that_fired_for_its_node_in_order(
    llama: Bundle, block: str, variant: str
) -> None:
    found = llama.manifest.blocks[block][variant]
    for told in explain_variant(llama, found):
        kernel = told.facts.kernel
        expected = firings_of(found).get(kernel.node, [])
        assert [rule.rule for rule in told.rules] == expected
        assert list(dict.fromkeys(expected)) == kernel.rules
        text = shown(told)
        for i, rule in enumerate(expected, start=1):
            why = f": {RULE[rule].why[:60]}" if rule not in expected[: i - 1] else "\n"
            assert f"\n  {i} {rule}{why}" in text
        assert expected or "Rules: none" in text


@pytest.mark.parametrize("variant", ["t1", "t64"])
def test_a_rule_whose_result_another_rule_took_over_is_not_forgotten(
    tiny: Callable[[str], Tiny], variant: str
) -> None:
    bundle = tiny("all_biases").bundle()
    found = bundle.manifest.blocks["decoder"][variant]
    rules = {told.facts.kernel.name: [r.rule for r in told.rules] for told in explain_variant(bundle, found)}
    for kernel in found.kernels:
        told = list(dict.fromkeys(rules[kernel.name]))
        assert told == sorted(kernel.rules, key=list(RULE).index), kernel.name
    merged = ["merge_products", "into_epilogue", "into_prologue"]
    assert (merged if variant == "t1" else ["merge_products", "into_library"]) in rules.values()


HELPERS = {"linear": ("dense",), "rope": ("turn",)}
"""Functions of the DSL that make an op of another name."""


@every_block
def test_each_python_line_of_a_kernel_calls_one_of_its_ops(llama: Bundle, block: str, variant: str) -> None:
    found = llama.manifest.blocks[block][variant]
    traced = graph_in(llama, found.traced)
    for told in explain_variant(llama, found):
        assert told.lines, told.facts.kernel.name
        for line in told.lines:
            file, _, number = line.where.rpartition(":")
            source = (PACKAGE / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
            assert line.text == source.strip()
            here = [n for n in traced.calls if line.where in n.where and n.name in told.facts.kernel.origin]
            assert here, f"{told.facts.kernel.name} does no work that {line.where} asked for"
            called = {name for n in here for name in (n.op.name, *HELPERS.get(n.op.name, ()))}
            assert any(re.search(rf"\b{name}\(", source) for name in called), (line.where, called)
            assert {n.name for n in here} <= set(line.made)
            assert f"{line.where}  " in shown(told)
        lines = {where for n in traced.calls if n.name in told.facts.kernel.origin for where in n.where}
        assert {line.where for line in told.lines} == lines


@every_block
def test_what_a_kernel_reads_from_others_was_written_before_it(
    llama: Bundle, block: str, variant: str
) -> None:
    found = llama.manifest.blocks[block][variant]
    before: set[str] = {"stream", "batch", "state", "weight"}
    for told in explain_variant(llama, found):
        assert {read.source for read in told.reads} - before <= {told.facts.kernel.name}
        before.add(told.facts.kernel.name)


# ---- numbers


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "expected"),
    [
        # 125 -> 128 registers, 4096 a warp: 4 warps in each quarter, 16 on the SM, one block of 16
        (90, 512, 125, 4160, (1, 16, 0.25, "registers")),
        # 32 registers, 1024 a warp: 64 warps; 2048 threads are 8 blocks of 256, as are 64 warps by registers
        (90, 256, 32, 0, (8, 64, 1.0, "threads")),
        # 48 KiB + 1 KiB reserved: 4 in 228 KiB; threads allow 16
        (90, 128, 32, 48 * 1024, (4, 16, 0.25, "shared memory")),
        # 99 KiB + 1 KiB: one in the 100 KiB of sm_86
        (86, 128, 32, 99 * 1024, (1, 4, 4 / 48, "shared memory")),
        # blocks of one warp: 16 an SM, long before 48 warps
        (86, 32, 16, 0, (16, 16, 16 / 48, "blocks")),
        # 33 registers are given out as 40, 1280 a warp: 12 warps a quarter, 48 on the SM, 12 blocks of 4
        (90, 128, 33, 0, (12, 48, 0.75, "registers")),
        # 33 threads are two warps; 40 registers are 1280 a warp: 12 warps a quarter, 48 on the SM, 24 blocks
        (80, 33, 40, 0, (24, 48, 0.75, "registers")),
        # 1024 threads of 96 registers: 3072 a warp, 5 warps a quarter, 20 on the SM: no room for 32
        (90, 1024, 96, 0, (0, 0, 0.0, "registers")),
    ],
)
def test_occupancy_follows_the_programming_guide(
    arch: int, threads: int, registers: int, shared: int, expected: tuple[int, int, float, str]
) -> None:
    found = occupancy(roofline.GPUS[arch], threads=threads, registers=registers, shared_bytes=shared)
    assert (found.blocks_per_sm, found.warps, found.fraction, found.limit) == expected


def test_facts_of_the_feed_forward_product_are_those_worked_by_hand(llama: Bundle) -> None:
    facts = facts_of(llama, llama.manifest.blocks["decoder"]["t1"])
    (gate_up,) = [f for f in facts if f.kernel.name == "gemv_mma_gate_up_proj"]
    weights, row, wide = 2 * 8192 * 2048 * 2, 2048 * 2, 8192 * 2
    assert gate_up.bytes == weights + row + row + wide
    # before: the norm reads and writes a row, both products read and write, silu and mul go over wide rows
    assert gate_up.before.bytes == weights + 3 * row + 2 * (row + wide) + 2 * wide + 3 * wide
    assert gate_up.before.kernels == 5
    assert gate_up.flops == 4 * 2048 + 2 * 2048 * 16384 + 4 * 8192 + 8192
    assert gate_up.floor_us == pytest.approx(gate_up.bytes / 4.71e12 * 1e6)
    assert gate_up.bound == "memory"
    assert gate_up.grid == (132, 1, 1)
    assert gate_up.occupancy is None  # nothing was compiled here, so registers are not known


def test_a_block_takes_as_much_as_its_kernels_together(llama: Bundle) -> None:
    found = llama.manifest.blocks["decoder"]["t64"]
    facts, told = facts_of(llama, found), explain_block(llama, found)
    assert told.after.bytes == sum(f.bytes for f in facts)
    assert told.after.flops == sum(f.flops for f in facts)
    assert told.after.floor_us == pytest.approx(sum(f.floor_us for f in facts))
    assert told.before.bytes == sum(f.before.bytes for f in facts) > told.after.bytes


def test_a_long_prompt_is_bound_by_arithmetic_and_longer_context_costs_attention_only(llama: Bundle) -> None:
    prefill = llama.manifest.blocks["decoder"]["prefill"]
    bounds = {f.kernel.name: f.bound for f in facts_of(llama, prefill)}
    assert bounds["gemm_gate_up_proj"] == "compute"
    assert bounds["silu_mul"] == "memory"
    decode = llama.manifest.blocks["decoder"]["t1"]
    pairs = zip(facts_of(llama, decode), facts_of(llama, decode, context=8192), strict=True)
    grown = {short.kernel.name for short, long in pairs if long.bytes > short.bytes}
    assert grown == {"attend_cluster"}


def test_a_compiled_kernel_has_its_occupancy_and_a_library_product_has_none(dante_bundle: Bundle) -> None:
    for told in explain_variant(dante_bundle, dante_bundle.manifest.blocks["decoder"]["t64"]):
        if told.facts.kernel.template == "cublaslt":
            assert (told.facts.occupancy, told.facts.grid) == (None, None)
            assert "cuBLASLt" in shown(told)
            continue
        assert told.facts.occupancy is not None
        assert 0 < told.facts.occupancy.fraction <= 1
        registers = told.facts.kernel.registers
        assert f"{registers} a thread" in shown(told)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (nbytes(0), "0 B"),
        (nbytes(999), "999 B"),
        (nbytes(67_133_440), "67.13 MB"),
        (nbytes(525_900_000), "525.9 MB"),
        (change(67_244_032, 67_133_440, "B"), "−110.6 kB"),
        (change(1, 1, "B"), "±0"),
        (microseconds(14.253), "14.25 µs"),
        (microseconds(0.002), "<0.01 µs"),
    ],
)
def test_amounts_are_short(said: str, expected: str) -> None:
    assert said == expected


# ---- a kernel's dataflow


def test_lanes_part_where_a_value_is_read_twice_and_meet_where_both_are_read(llama: Bundle) -> None:
    graph = graph_in(llama, "decoder.t1.ir")
    rows = draw(calls_of(graph, "mul_1"), ["mul_1"])
    assert [(marks, call.op if call else "") for marks, call in rows] == [
        ("●", "rms_norm"),
        ("●", "linear"),
        ("├─╮", ""),
        ("│ ●", "columns"),
        ("● │", "columns"),
        ("│ ●", "silu"),
        ("├─╯", ""),
        ("●", "mul"),
        ("▼", ""),
    ]


def test_a_value_that_is_written_keeps_its_lane_to_the_end(llama: Bundle) -> None:
    graph = graph_in(llama, "decoder.t64.ir")
    rows = draw(calls_of(graph, "rope_1"), ["rope_1", "append_1"])
    assert [marks for marks, _ in rows] == ["●", "│ ●", "│ ●", "▼ ▼"]


# ---- blocks


@pytest.mark.parametrize("width", [160, 120, 80])
def test_a_block_shows_every_traced_node_and_every_kernel_within_the_width(llama: Bundle, width: int) -> None:
    found = llama.manifest.blocks["decoder"]["t1"]
    lines = [line.plain for line in block_text(explain_block(llama, found), width)]
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for node in graph_in(llama, found.traced).calls:
        assert f"{node.name} = {node.op.name}(" in text
        assert node.where[0] in text
    for kernel in found.kernels:
        assert kernel.name in text
    assert "before: 18 kernels" in text
    beside = any("rms_norm_1 = " in line and "gemv_mma_q_k_v_proj" in line for line in lines)
    assert beside == (width >= 100)


def test_each_traced_node_stands_beside_the_kernel_that_does_its_work(llama: Bundle) -> None:
    found = llama.manifest.blocks["decoder"]["t1"]
    told = explain_block(llama, found)
    for group in told.groups:
        own = [t.call.results[0] for t in group.before if not t.free]
        assert sorted(own) == sorted(group.kernels[0].kernel.origin)
    views = {t.call.results[0]: g.node for g in told.groups for t in g.before if t.free}
    assert views == {
        "heads_1": "linear_8",
        "heads_2": "linear_8",
        "heads_3": "linear_8",
        "flatten_1": "attention_1",
    }


def test_a_norm_that_several_kernels_compute_stands_beside_the_first_and_is_counted_once(
    tmp_path: Path,
) -> None:
    bundle = graphs_only(resolve("llama"), Options(rules=("-merge_products",)), tmp_path / "copied")
    told = explain_block(bundle, bundle.manifest.blocks["decoder"]["t1"])
    q, k, v = (g for g in told.groups if "rms_norm_1" in g.kernels[0].kernel.origin)
    assert [t.call.op for t in q.before if not t.free] == ["rms_norm", "linear"]
    assert [t.call.op for g in (k, v) for t in g.before if not t.free] == ["linear", "linear"]
    assert [g.amount_before.kernels for g in (q, k, v)] == [2, 1, 1]
    assert told.before.kernels == 18


def test_a_block_that_no_rule_changed_is_said_to_be_as_before(llama: Bundle) -> None:
    def last(block: str) -> str:
        return block_text(explain_block(llama, block_variant(llama.manifest, block, "t1")), 160)[-1].plain

    assert last("greedy") == "  as many kernels as before, and the same bytes"
    assert last("head") == "  1 fewer to launch, 8.19 kB (0.00%) less to move"


def test_the_overview_counts_a_whole_step_by_layers(llama: Bundle) -> None:
    told = explain_bundle(llama)
    steps = {step.variant: (step.before.kernels, step.after.kernels) for step in told.steps}
    assert steps["t1"] == (1 + 16 * 18 + 3, 1 + 16 * 5 + 2)
    rules = {rule.name: (rule.fired, rule.refused) for rule in told.rules}
    assert rules["into_prologue"] == (10, 8)


# ---- rules


@dataclass(frozen=True)
class Refused:
    """A graph that a rule leaves alone, and the reason it gives."""

    rule: str
    reason: str
    graph: str
    max_tokens: int = 1


PRODUCT = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %residual : bf16[tokens, 96]
  weight %w : bf16[96, 64] = "w"

  %linear_1 = linear(%x, %w) : bf16[tokens, 96]
  %add_1 = add(%linear_1, %residual) : bf16[tokens, 96]
  return %add_1
}
"""
TWO_PRODUCTS = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %a : bf16[96, 64] = "a"
  weight %b : bf16[96, 64] = "b"

  %linear_1 = linear(%x, %a) : bf16[tokens, 96]
  %linear_2 = linear(%x, %b) : bf16[tokens, 96]
  return %linear_1, %linear_2
}
"""
NORM = """\
graph g {
  stream %x : bf16[tokens, WIDTH]
  weight %norm : bf16[WIDTH] = "norm"
  weight %w : bf16[96, WIDTH] = "w"

  %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, WIDTH]
  %linear_1 = linear(%rms_norm_1, %w) : bf16[tokens, 96]
  return %linear_1
}
"""

REFUSED = {
    "an interior value is used twice": Refused(
        "into_epilogue",
        "%linear_1 would be gone, but silu_1 reads it too",
        PRODUCT.replace(
            "  return %add_1", "  %silu_1 = silu(%linear_1) : bf16[tokens, 96]\n  return %add_1, %silu_1"
        ),
    ),
    "an interior value is an output": Refused(
        "merge_products",
        "%linear_1 is an output of the block, which columns of a merged product cannot be",
        TWO_PRODUCTS,
    ),
    "the library adds nothing else": Refused(
        "into_library",
        "silu_1 is computed by cublaslt: the library can only add to a product, and silu is no addition",
        PRODUCT.replace("add(%linear_1, %residual)", "silu(%linear_1)")
        .replace("add_1", "silu_1")
        .replace("  stream %residual : bf16[tokens, 96]\n", ""),
        512,
    ),
    "normalised rows do not fit in shared memory": Refused(
        "into_prologue",
        "linear_1 is computed by gemv_mma: 8 normalised rows of 8192 need 128 KiB of shared memory, over 96 KiB: "
        "room for 6",
        NORM.replace("WIDTH", "8192"),
        8,
    ),
    "a product is left to the library": Refused(
        "into_prologue",
        "linear_1 is computed by cublaslt: the library reads rows as they are: it has no prologue",
        NORM.replace("WIDTH", "64"),
        512,
    ),
}


def with_refusals(variant: BlockVariant, refused: Refused) -> BlockVariant:
    """The block variant with the refusals of a rule in another graph in place of what rules did in its own."""
    target = Target(90, f"t{refused.max_tokens}", 1, refused.max_tokens, BF16)
    graph = parse_graph(refused.graph)
    found = apply_rules(graph, [RULE[refused.rule]], target, normalise=fold_weights).refused
    refusals = [RuleRefusal(rule=r.rule, at=r.at, reason=r.reason) for r in found]
    return msgspec.structs.replace(variant, firings=[], refused=refusals)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_rule_says_where_and_which_value_shape_or_use_stood_in_the_way(
    llama: Bundle, name: str
) -> None:
    refused = REFUSED[name]
    variant = with_refusals(llama.manifest.blocks["decoder"]["t1"], refused)
    text = told_of(explain_rule(llama, refused.rule, [variant]))
    assert RULE[refused.rule].why in text
    assert "It fired nowhere in this bundle." in text
    assert re.search(rf"\n  decoder\.t1\n    .*{re.escape(refused.reason)}", text)


NAMED = re.compile(r"%\w+|\b\w+_\d+\b|\[[^\]]*\]|\d+ KiB|up to \d+ tokens")
"""A value, a node, a shape, or a size."""


def test_every_refusal_of_a_llama_names_a_value_a_node_a_shape_or_a_size(llama: Bundle) -> None:
    variants = [v for block in llama.manifest.blocks.values() for v in block.values()]
    reasons = {refused.reason for v in variants for refused in v.refused}
    assert len(reasons) > 3
    assert not [reason for reason in reasons if not NAMED.search(reason)]


def test_what_is_refused_alike_in_several_variants_is_told_once(llama: Bundle) -> None:
    variants = list(llama.manifest.blocks["decoder"].values())
    told = explain_rule(llama, "into_prologue", variants)
    many = ["decoder.decode", "decoder.prefill"]
    assert [(place.at, place.variants) for place in told.refused] == [
        (["rms_norm_1, linear_8"], many),
        (["rms_norm_2, linear_1"], many),
    ]
    assert told.refusals == 4


def test_a_rule_of_a_bundle_compiled_without_rules_is_said_not_to_be_enabled(llama_unfused: Bundle) -> None:
    variants = list(llama_unfused.manifest.blocks["decoder"].values())
    assert "Not enabled in this bundle" in told_of(explain_rule(llama_unfused, "merge_products", variants))


def test_a_rule_whose_pattern_occurs_nowhere_says_so(llama: Bundle) -> None:
    variants = list(llama.manifest.blocks["embed"].values())
    text = told_of(explain_rule(llama, "rope_append", variants))
    assert "fired nowhere in this bundle, and its pattern was found nowhere" in text


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("attend", "fusion: makes one kernel of several ops"),
        ("into_epilogue", "general: looks at a call and at whatever stands around it"),
    ],
)
def test_a_rule_says_of_what_kind_it_is(llama: Bundle, rule: str, kind: str) -> None:
    told = explain_rule(llama, rule, list(llama.manifest.blocks["decoder"].values()))
    assert told_of(told).splitlines()[0] == f"{rule}  {kind}"


# ---- names, files and the command


def test_a_name_of_two_kinds_asks_which_and_takes_the_kind_in_front(llama: Bundle) -> None:
    with pytest.raises(
        BundleError, match=r"rope_append is a kernel and a rule .* kernel:rope_append or rule:rope_append"
    ):
        find(llama, "rope_append")
    assert find(llama, "kernel:rope_append").kind == "kernel"
    assert find(llama, "rule:rope_append").kind == "rule"
    assert find(llama, "block:sample").kind == "block"
    assert find(llama, "decoder.t8").variant == "t8"


@pytest.mark.parametrize(("asked", "tokens"), [("t1", 1), ("t8", 8), ("prefill", 4096), ("any", 4096)])
def test_a_sampler_is_explained_in_the_step_of_the_variant_asked_for(
    llama: Bundle, infernum: Callable[..., Outcome], asked: str, tokens: int
) -> None:
    told = [
        infernum("explain", llama.folder, *args, "--json").out
        for args in (("greedy", "--variant", asked), (f"greedy.{asked}",))
    ]
    assert told[0] == told[1]
    (block,) = json.loads(told[0])["blocks"]
    assert (block["variant"], block["tokens"]) == ("any", tokens)


def test_a_variant_that_is_not_there_is_named_with_those_that_are(
    llama: Bundle, infernum: Callable[..., Outcome]
) -> None:
    for args in (("greedy.t3",), ("greedy", "--variant", "zzz")):
        assert (
            "it has t1, t8, t64, d128, decode, prefill, any" in infernum("explain", llama.folder, *args).err
        )


def test_an_unknown_name_is_answered_with_near_ones(llama: Bundle) -> None:
    with pytest.raises(BundleError, match="'gemv_mma_gate_up'; did you mean gemv_mma_gate_up_proj"):
        find(llama, "gemv_mma_gate_up")
    with pytest.raises(BundleError, match="its blocks are embed, decoder, head, greedy, sample"):
        find(llama, "zzzzzz")


def test_a_line_of_a_file_that_is_not_at_hand_has_no_text() -> None:
    first = text_of("models/llama.py:1")
    assert first is not None and first.startswith('"""Llama (Touvron et al. 2023, arXiv:2302.13971;')
    assert text_of("models/nowhere.py:3") is None
    assert text_of("models/llama.py:99999") is None
    assert text_of("?") is None


def test_a_kernel_edited_by_hand_is_said_to_be(llama: Bundle, tmp_path: Path) -> None:
    edits = {"decoder.t1.cu": Edit(emitted_sha256="0" * 64, kernels=["gemv_mma_o_proj"])}
    files = {name: (llama.folder / name).read_bytes() for name in llama.checksums if name != "manifest.json"}
    edited = write_bundle(tmp_path / "edited", msgspec.structs.replace(llama.manifest, edits=edits), files)
    variant = edited.manifest.blocks["decoder"]["t1"]
    said = {t.facts.kernel.name: "edited by hand" in shown(t) for t in explain_variant(edited, variant)}
    assert [name for name, was in said.items() if was] == ["gemv_mma_o_proj"]


def test_a_bundle_of_a_plugin_that_is_not_loaded_names_the_plugin(llama: Bundle, tmp_path: Path) -> None:
    files = {name: (llama.folder / name).read_bytes() for name in llama.checksums if name != "manifest.json"}
    files["head.traced.ir"] = files["head.traced.ir"].replace(b" = rms_norm(", b" = unheard_of(")
    plugins = [Plugin(name="my_ops", sha256="0" * 64)]
    manifest = msgspec.structs.replace(llama.manifest, plugins=plugins, rules=["my_rule"])
    foreign = write_bundle(tmp_path / "foreign", manifest, files)
    variant = foreign.manifest.blocks["head"]["t1"]
    with pytest.raises(BundleError, match=r"unheard_of.* compiled with my_ops: give it with --plugin"):
        explain_block(foreign, variant)
    assert "a plugin that is not loaded" in told_of(explain_rule(foreign, "my_rule", [variant]))


def test_every_kernel_has_a_way_to_its_source(llama: Bundle, infernum: Callable[..., Outcome]) -> None:
    variant = llama.manifest.blocks["decoder"]["t1"]
    for told in explain_variant(llama, variant):
        answer = infernum(*told.see.split()[1:])
        assert answer.code == 0
        assert f"{told.facts.kernel.name}(" in answer.out


def test_the_command_explains_what_it_is_asked(llama: Bundle, infernum: Callable[..., Outcome]) -> None:
    folder = llama.folder
    assert "Ask next" in infernum("explain", folder).out
    assert "\x1b" not in infernum("explain", folder, "decoder").out  # colours are for terminals
    assert (
        "gemv_mma_o_proj in decoder.t1"
        in infernum("explain", folder, "gemv_mma_o_proj", "--variant", "t1").out
    )
    assert infernum("explain", folder, "decoder").out.count("before: 1") == 6
    assert "Refused 8 times" in infernum("explain", folder, "into_prologue").out
    assert "Refused 3 times" in infernum("explain", folder, "into_prologue", "--variant", "decode").out
    assert "decoder.t8  5 tokens, context 99" in infernum(
        "explain", folder, "decoder", "--tokens", "5", "--context", "99"
    ).out  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gemv_mma_o_proj", "--variant", "t2"], "has no variant 't2'"),
        (
            ["decoder", "--variant", "t1", "--tokens", "5"],
            "t1 serves 1 to 1 tokens, not 5; take --variant t8",
        ),
        (["decoder", "--tokens", "99999"], "no variant serves 99999 tokens"),
        (["silu_mul", "--variant", "t1"], "has no kernel 'silu_mul' in that variant"),
        (["nothing"], "no block, kernel or rule is called 'nothing'"),
    ],
)
def test_a_question_without_answer_is_refused_in_one_line(
    llama: Bundle, infernum: Callable[..., Outcome], args: list[str], message: str
) -> None:
    answer = infernum("explain", llama.folder, *args)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_json_has_everything_of_a_kernel_a_rule_and_a_block(
    llama: Bundle, infernum: Callable[..., Outcome]
) -> None:
    def asked(*args: str) -> dict[str, object]:
        return json.loads(infernum("explain", llama.folder, *args, "--json").out)

    (kernel,) = asked("gemv_mma_down_proj", "--variant", "t1")["kernels"]  # pyright: ignore[reportGeneralTypeIssues]
    expected = explain_kernels(llama, "gemv_mma_down_proj", [llama.manifest.blocks["decoder"]["t1"]])
    assert kernel == json.loads(msgspec.json.encode(expected[0]))
    rule = asked("into_prologue")
    assert (rule["firings"], rule["refusals"]) == (10, 8)
    (block,) = asked("decoder.t1")["blocks"]  # pyright: ignore[reportGeneralTypeIssues]
    assert [k["kernel"]["name"] for g in block["groups"] for k in g["kernels"]] == [
        k.name for k in llama.manifest.blocks["decoder"]["t1"].kernels
    ]
    assert len(asked()["blocks"]) == 21  # pyright: ignore[reportArgumentType]
