"""Everything a report shows of a bundle, as one object that JSON can hold."""

from __future__ import annotations

from typing import Any

import msgspec

from infernum.bundle import Bundle
from infernum.ir.graph import Graph
from infernum.lab.explain.facts import KernelFacts, facts_of
from infernum.lab.explain.graphs import graphs_of
from infernum.lab.explain.history import reasons
from infernum.lab.explain.measurements import MeasuredKernel, Measurements
from infernum.lab.report.graphs import graph_data
from infernum.lab.report.memory import buffer_data
from infernum.lab.report.rules import rule_data
from infernum.lab.report.sources import Texts, parts_of
from infernum.manifest import (
    BlockVariant,
    Gemm,
    Kernel,
    Launch,
    Manifest,
    Step,
    VariantSpec,
    any_step,
    named_tensors,
    spec_of,
)
from infernum.roofline import CONTEXT, gpu_of


def report_data(bundle: Bundle, bench: Measurements | None = None) -> dict[str, Any]:
    """Model, graphs, kernels with their sources and costs, rules and memory plans of a bundle.

    Costs are for the largest step of each variant at `CONTEXT` positions, or for the step that was measured. Texts
    and graphs that several variants share are there once, and numbered. Raises BundleError.
    """
    manifest, texts, graphs = bundle.manifest, Texts(), Texts()
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
        "rules": {name: why for name, why in reasons().items() if _mentions(manifest, name)},
        "blocks": blocks,
        "graphs": [msgspec.json.decode(text) for text in graphs.texts],
        "texts": texts.texts,
    }


def _bundle_data(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    layers: dict[str, int] = {}
    for stage in manifest.program:
        layers[stage.block] = layers.get(stage.block, 0) + 1
    copied = (
        "infernum",
        "nvrtc",
        "arch",
        "dtype",
        "fuse",
        "rules",
        "page_size",
        "samplers",
        "plugins",
        "edits",
    )
    return {
        "name": bundle.folder.resolve().name,
        **{name: msgspec.to_builtins(getattr(manifest, name)) for name in copied},
        "model": msgspec.to_builtins(manifest.model),
        "variants": msgspec.to_builtins(manifest.variants),
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
    if bench is None:
        return None
    whole = msgspec.to_builtins(bench)
    return {name: value for name, value in whole.items() if name != "kernels"}


def _mentions(manifest: Manifest, rule: str) -> bool:
    return any(rule in v.fired for variants in manifest.blocks.values() for v in variants.values())


def _variant_data(
    bundle: Bundle,
    block: BlockVariant,
    variant: VariantSpec,
    bench: Measurements | None,
    texts: Texts,
    graphs: Texts,
) -> dict[str, Any]:
    traced, final = graphs_of(bundle, block)
    parts = parts_of(bundle.read(block.source).decode())
    return {
        "traced": graphs.number(_json(graph_data(traced))),
        "graph": graphs.number(_json(graph_data(final))),
        "source": block.source,
        "parts": {name: texts.number(text) for name, text in parts.items()},
        "edited": list(bundle.manifest.edits[block.source].kernels)
        if block.source in bundle.manifest.edits
        else [],
        "kernels": _kernels_data(bundle, block, bench, parts),
        "kernels_before": block.kernels_before_fusion,
        "fates": fates(block, traced, final),
        "rules": rule_data(block, traced, final),
        "arena_bytes": block.arena_bytes,
        "buffers": buffer_data(block, variant),
    }


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
    here = bench is not None and (not bench.variant or block.serves(bench.variant))
    tokens, context = (bench.tokens, bench.context) if bench is not None and here else (None, None)
    facts = facts_of(bundle, block, tokens=tokens, context=context or CONTEXT)
    measured = {
        k.kernel: k
        for k in (bench.kernels if bench is not None else ())
        if (k.block, k.variant) == (block.block, block.variant)
    }
    return [
        _kernel_data(kernel, step, known, measured.get(kernel.name), parts)
        for kernel, step, known in zip(block.kernels, block.steps, facts, strict=True)
    ]


def _kernel_data(
    kernel: Kernel, step: Step, facts: KernelFacts, measured: MeasuredKernel | None, parts: dict[str, str]
) -> dict[str, Any]:
    described = ("name", "node", "template", "ops", "rules", "where", "origin", "passed_over")
    used = ("registers", "stack_bytes", "spill_bytes", "static_shared_bytes")
    amounts = ("kernels", "bytes", "flops", "floor_us")
    data: dict[str, Any] = {name: getattr(kernel, name) for name in (*described, *used)}
    data |= {name: getattr(facts, name) for name in ("tokens", "bytes", "flops", "floor_us")}
    data["formulas"] = {"bytes": str(kernel.bytes), "FLOPs": str(kernel.flops)}
    data["before"] = {name: getattr(facts.before, name) for name in amounts}
    data["part"] = None if isinstance(step, Gemm) else kernel.name if kernel.name in parts else ""
    data["tensors"] = named_tensors(step)
    if isinstance(step, Launch):
        data |= {"grid": [str(n) for n in step.grid], "cluster": str(step.cluster)}
        data |= {"block": step.block, "shared_bytes": step.shared_bytes, "programmatic": step.programmatic}
    else:
        data["product"] = {"m": str(step.m), "n": step.n, "k": step.k, "dtype": step.dtype}
    if facts.occupancy is not None:
        names = ("blocks_per_sm", "warps", "limit", "fraction")
        data["occupancy"] = {name: getattr(facts.occupancy, name) for name in names}
    if measured is not None:
        names = ("us", "alone_us", "bytes", "flops", "floor_us", "fraction", "gain_us", "layers")
        data["measured"] = {name: getattr(measured, name) for name in names}
    return data


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
