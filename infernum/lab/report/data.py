"""Everything a report shows of a bundle, as one object that JSON can hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import msgspec

from infernum.bundle import SECTION, Bundle, sections
from infernum.ir.graph import Graph
from infernum.lab.explain.facts import KernelFacts, facts_of
from infernum.lab.explain.graphs import graphs_of
from infernum.lab.explain.history import reasons
from infernum.lab.explain.measurements import MeasuredKernel, Measurements
from infernum.lab.report.graphs import graph_data
from infernum.lab.report.memory import buffer_data
from infernum.lab.report.rules import rule_data
from infernum.manifest import (
    BlockVariant,
    Gemm,
    Kernel,
    Launch,
    Step,
    VariantSpec,
    any_step,
    every_variant,
    named_tensors,
    spec_of,
)
from infernum.roofline import CONTEXT, gpu_of


def report_data(bundle: Bundle, bench: Measurements | None = None) -> dict[str, Any]:
    """Model, graphs, kernels with their sources and costs, rules and memory plans of a bundle.

    Costs are for the largest step of each variant at `CONTEXT` positions, or for the step that was measured. Texts
    and graphs that several variants share are there once, and numbered. Raises BundleError.
    """
    manifest = bundle.manifest
    texts: dict[str, int] = {}
    graphs: dict[str, int] = {}
    tried = {rule for variant in every_variant(manifest) for rule in variant.fired}
    blocks = {
        name: {
            variant: _variant_data(bundle, block, spec_of(manifest.variants, variant), bench, texts, graphs)
            for variant, block in block_variants.items()
        }
        for name, block_variants in manifest.blocks.items()
    }
    return {
        "bundle": _bundle_data(bundle),
        "roof": _roof_data(bundle, bench),
        "bench": _bench_data(bench),
        "rules": {name: why for name, why in reasons().items() if name in tried},
        "blocks": blocks,
        "graphs": [msgspec.json.decode(text) for text in graphs],
        "texts": list(texts),
    }


def _bundle_data(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    layers = Counter(stage.block for stage in manifest.program)
    copied = "infernum nvrtc arch dtype ranks fuse rules page_size samplers plugins edits model variants"
    return {
        "name": bundle.folder.resolve().name,
        **msgspec.to_builtins(_fields(manifest, copied)),
        "any_step": msgspec.to_builtins(any_step(manifest.variants)),
        "layers": layers,
    }


def _roof_data(bundle: Bundle, bench: Measurements | None) -> dict[str, Any]:
    """The ceilings: of the GPU that stands for the architecture, or as measured along with the kernels."""
    gpu = gpu_of(bundle.arch)
    measured = bench is not None
    return {
        "gpu": str(bench.gpu) if bench is not None and bench.gpu else gpu.name,
        "stands_for": gpu.name,
        "bytes_per_second": bench.read_bandwidth_gb_s * 1e9 if measured else gpu.bytes_per_second,
        "flops_per_second": (bench.flops_per_second if measured else None) or gpu.flops_per_second,
        "bytes_measured": measured,
        "flops_measured": bool(bench is not None and bench.flops_per_second),
    }


def _bench_data(bench: Measurements | None) -> dict[str, Any] | None:
    data = msgspec.to_builtins(bench)
    return data and {name: value for name, value in data.items() if name != "kernels"}


def _variant_data(
    bundle: Bundle,
    block: BlockVariant,
    variant: VariantSpec,
    bench: Measurements | None,
    texts: dict[str, int],
    graphs: dict[str, int],
) -> dict[str, Any]:
    """One block variant. `texts` and `graphs` number the distinct texts of the report; new ones are added."""
    traced, final = graphs_of(bundle, block)
    parts = _parts_of(bundle.read(block.source).decode())
    before, after = (
        graphs.setdefault(msgspec.json.encode(graph_data(graph)).decode(), len(graphs))
        for graph in (traced, final)
    )
    edit = bundle.manifest.edits.get(block.source)
    return {
        "traced": before,
        "graph": after,
        "source": block.source,
        "parts": {name: texts.setdefault(text, len(texts)) for name, text in parts.items()},
        "edited": edit.kernels if edit else [],
        "kernels": _kernels_data(bundle, block, bench, parts),
        "kernels_before": block.kernels_before_fusion,
        "fates": fates(block, traced, final),
        "rules": rule_data(block, traced, final),
        "arena_bytes": block.arena_bytes,
        "buffers": buffer_data(block, variant),
    }


def _parts_of(source: str) -> dict[str, str]:
    """The parts of an emitted file by name: included files and kernels; "" is what comes before them."""
    head, _, _ = ("\n" + source).partition(SECTION)
    return {"": head.strip() + "\n", **sections(source)}


def fates(block: BlockVariant, traced: Graph, final: Graph) -> dict[str, dict[str, Any]]:
    """What became of each traced node: the kernels (by number) that do its work, and its node in the final graph.

    A node without kernels costs nothing: a view, or done to weights when they are loaded.
    """
    home = {origin: kernel.node for kernel in reversed(block.kernels) for origin in kernel.origin}
    there = {node.name for node in final.nodes}
    return {
        node.name: {
            "kernels": [i for i, kernel in enumerate(block.kernels) if node.name in kernel.origin],
            "node": home.get(node.name) or (node.name if node.name in there else None),
        }
        for node in traced.nodes
    }


def _kernels_data(
    bundle: Bundle, block: BlockVariant, bench: Measurements | None, parts: dict[str, str]
) -> list[dict[str, Any]]:
    tokens, context, measured = None, None, dict[str, MeasuredKernel]()
    if bench is not None:
        if not bench.variant or block.serves(bench.variant):
            tokens, context = bench.tokens, bench.context
        here = (block.block, block.variant)
        measured = {k.kernel: k for k in bench.kernels if (k.block, k.variant) == here}
    facts = facts_of(bundle, block, tokens=tokens, context=context or CONTEXT)
    return [
        _kernel_data(kernel, step, known, measured.get(kernel.name), parts)
        for kernel, step, known in zip(block.kernels, block.steps, facts, strict=True)
    ]


def _kernel_data(
    kernel: Kernel, step: Step, facts: KernelFacts, measured: MeasuredKernel | None, parts: dict[str, str]
) -> dict[str, Any]:
    data = _fields(kernel, "name node template ops rules where origin passed_over")
    data |= _fields(kernel, "registers stack_bytes spill_bytes static_shared_bytes")
    data |= _fields(facts, "tokens bytes flops floor_us")
    data["formulas"] = {"bytes": str(kernel.bytes), "FLOPs": str(kernel.flops)}
    data["before"] = asdict(facts.before)
    data["part"] = None if isinstance(step, Gemm) else kernel.name if kernel.name in parts else ""
    data["tensors"] = named_tensors(step)
    if isinstance(step, Launch):
        data |= {"grid": [str(n) for n in step.grid], "cluster": str(step.cluster)}
        data |= _fields(step, "block shared_bytes programmatic")
    else:
        data["product"] = {"m": str(step.m), "n": step.n, "k": step.k, "dtype": step.dtype}
    if facts.occupancy is not None:
        data["occupancy"] = _fields(facts.occupancy, "blocks_per_sm warps limit fraction")
    if measured is not None:
        names = "us alone_us bytes flops floor_us fraction gain_us layers"
        data["measured"] = _fields(measured, names)
    return data


def _fields(record: object, names: str) -> dict[str, Any]:
    """Some fields of a record, by name."""
    return {name: getattr(record, name) for name in names.split()}
