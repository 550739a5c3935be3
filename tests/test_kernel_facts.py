"""What the manifest says of kernels: whose work each does, what that cost before, what a step of a size must move."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
from oracle.configs import case

from infernum import roofline
from infernum.codegen.costs import partly_moved_by
from infernum.codegen.cubin import Cubin, KernelResources
from infernum.codegen.manifest import CompiledBlock
from infernum.codegen.places import Place
from infernum.codegen.steps import KernelStep
from infernum.compiler import Options, Sources, describe, emit_sources
from infernum.dims import evaluate
from infernum.ir.fuse import fuse_nodes
from infernum.ir.graph import Value
from infernum.ir.host import is_free
from infernum.ir.op import Fused
from infernum.manifest import BlockVariant, Launch, Manifest
from infernum.models.config import understand
from infernum.models.fields import Fields
from infernum.models.presets import resolve

CASES = ("plain", "all_biases", "fourteen_to_two", "llama32_tied")


def sources_of(name: str, rules: tuple[str, ...] = ()) -> Sources:
    source = understand(Fields(case(name).config, name))
    return emit_sources(source, Options(rules=rules))


def manifest_of(sources: Sources) -> Manifest:
    def cubin(block: CompiledBlock) -> Cubin:
        names = [step.name for step in block.plan.steps if isinstance(step, KernelStep)]
        return Cubin(b"", dict.fromkeys(names, KernelResources(0, 0, 0, 0)))

    return describe(sources, {block.stem: cubin(block) for block in sources.blocks})


@cache
def variants_of(name: str, rules: tuple[str, ...] = ()) -> list[tuple[CompiledBlock, BlockVariant]]:
    """Every compiled block of a case with what its manifest says of it."""
    sources = sources_of(name, rules)
    manifest = manifest_of(sources)
    return [(block, manifest.blocks[block.block][block.target.variant]) for block in sources.blocks]


@pytest.mark.parametrize("name", CASES)
def test_every_traced_node_that_computes_is_the_work_of_one_node_of_the_fused_graph(name: str) -> None:
    for block, variant in variants_of(name):
        of_node = {kernel.node: kernel.origin for kernel in variant.kernels}
        counted = Counter(origin for origins in of_node.values() for origin in origins)
        computing = [node.name for node in block.traced.calls if not is_free(node)]
        assert {node: counted[node] for node in computing} == dict.fromkeys(computing, 1), block.stem


@pytest.mark.parametrize("rules", [(), ("-merge_products",)], ids=["all rules", "norms that are copied"])
@pytest.mark.parametrize("name", CASES)
def test_what_kernels_cost_before_adds_up_to_the_block_without_rules(
    name: str, rules: tuple[str, ...]
) -> None:
    for block, variant in variants_of(name, rules):
        assert sum(k.before.kernels for k in variant.kernels) == variant.kernels_before_fusion
        symbols = roofline.step_symbols(block.target.max_tokens)
        for what in ("bytes", "flops"):
            told = sum(evaluate(getattr(k.before, what), symbols) for k in variant.kernels)
            assert told == sum(evaluate(getattr(step, what), symbols) for step in block.before.steps)


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_described_one_by_one_as_they_are_launched(name: str) -> None:
    for _, variant in variants_of(name):
        launched = [step.kernel if isinstance(step, Launch) else step.name for step in variant.steps]
        assert [kernel.name for kernel in variant.kernels] == launched


@pytest.mark.parametrize("name", CASES)
def test_firings_tell_each_time_that_a_rule_was_applied(name: str) -> None:
    for block, variant in variants_of(name):
        counted = Counter(firing.rule for firing in variant.firings)
        assert counted == Counter({rule: n for rule, n in variant.fired.items() if n}), block.stem
        assert all(firing.at and firing.made for firing in variant.firings)


def test_merged_products_keep_each_ones_line_and_the_rest_its_own() -> None:
    _, variant = next(v for v in variants_of("plain") if v[0].stem == "decoder.prefill")
    gate_up = next(k for k in variant.kernels if "gate_up" in k.name)
    assert gate_up.ops == ["linear"] and len(gate_up.where) == 2 and len(gate_up.origin) == 2
    gated = next(k for k in variant.kernels if k.ops == ["silu", "mul"])
    assert len(gated.where) == 1


def test_a_preferred_kernel_that_could_not_serve_is_named_with_the_reason() -> None:
    _, variant = next(v for v in variants_of("plain") if v[0].stem == "decoder.t64")
    product = next(k for k in variant.kernels if k.template == "cublaslt")
    tensor_cores, scalar, warpgroups = product.passed_over
    assert tensor_cores == "gemv_mma: tensor cores multiply bf16 and f16 here, not f32"
    assert scalar.startswith("gemv: ")
    assert warpgroups == "product_wgmma: tensor cores multiply bf16 and f16 here, not f32"
    split = next(k for k in variant.kernels if k.template == "attention_split")
    wgmma, prefill, units = split.passed_over
    assert wgmma.startswith("attention_prefill_wgmma: with at most 64 tokens")
    assert prefill.startswith("attention_prefill: with at most 64 tokens")
    assert units == "attention_units: tensor cores multiply bf16 and f16 here, not f32"


def test_the_embedding_moves_the_rows_it_takes_and_not_the_table() -> None:
    cfg = resolve("llama").config
    sources = emit_sources(resolve("llama"), Options())
    embed = next(b for b in sources.blocks if b.stem == "embed.t1")
    moved = evaluate(embed.plan.steps[0].bytes, roofline.step_symbols(1))
    assert moved == 2 * cfg.hidden_size * 2 + 4


def test_attention_is_counted_the_cache_that_it_reads_and_its_two_products() -> None:
    sources = emit_sources(resolve("llama"), Options())
    cfg: Any = sources.program.source.config
    steps = {b.stem: [s for s in b.plan.steps if s.name.startswith("att")] for b in sources.blocks}
    heads, kv_heads, dim = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    (attend,) = steps["decoder.t1"]
    at = roofline.step_symbols(1, context=1000)
    token = 2 * (2 * heads + 4 * kv_heads) * dim  # bf16: q, k and v read, k and v stored, out written
    batch = 2 * 4 + 2 * 4 + 16 * 4  # position and sequence, 2 starts, 16 pages
    assert evaluate(attend.bytes, at) == 2 * kv_heads * dim * 2 * 1000 + token + batch
    assert evaluate(attend.flops, at) == 4 * heads * dim * 1000 + 3 * (heads + kv_heads) * dim
    prompt = next(s for s in steps["decoder.prefill"] if s.template.name == "attention_prefill_wgmma")
    at = roofline.step_symbols(2048, context=2048)
    assert evaluate(prompt.flops, at) == 4 * heads * dim * (2048 * 2049 // 2)


def test_a_step_of_few_tokens_is_a_decode_of_as_many_sequences_and_a_larger_one_a_prompt() -> None:
    assert roofline.step_symbols(8, context=100) == {
        "tokens": 8,
        "seqs": 8,
        "rows": 8,
        "max_pages": 2,
        "context_pages": 64,
        "pages": 16,
        "sms": 1,
        "cached": 800,
        "attended": 800,
    }
    prompt = roofline.step_symbols(200, context=300)
    assert (prompt["seqs"], prompt["cached"]) == (1, 300)
    assert prompt["attended"] == sum(range(101, 301))
    assert roofline.step_symbols(200, context=100)["cached"] == 200


def test_the_floor_is_set_by_memory_or_by_arithmetic() -> None:
    gpu = roofline.gpu_of("sm_90a")
    assert roofline.floor_seconds("sm_90a", gpu.bytes_per_second, 1.0) == 1.0
    assert roofline.floor_seconds("sm_90a", 1.0, 2 * gpu.flops_per_second) == 2.0


def test_a_cache_that_is_written_and_read_in_one_kernel_is_counted_for_both() -> None:
    sources = sources_of("plain")
    traced = next(b.traced for b in sources.blocks if b.stem == "decoder.t1")
    names = frozenset(n.name for n in traced.calls if n.op.name in ("append", "attention"))
    (attention,) = (n for n in traced.calls if n.op.name == "attention")
    made = fuse_nodes(traced, names, "both", [Value(attention.name)]).node(attention.name)
    assert isinstance(made.op, Fused)
    body = made.op.body
    places = {Value(n.name): Place(n.name, n.types[0]) for n in body.inputs}
    found = partly_moved_by(body, places, "tokens")
    (formula,) = (text for (tensor, _), text in found.items() if tensor == "kv")
    assert " * tokens" in formula and " * cached" in formula
