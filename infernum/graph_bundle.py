"""Bundles for NumPy: the graphs of a model as they were traced, without rules, kernels, architecture or NVRTC."""

from __future__ import annotations

from pathlib import Path

from infernum import bundle
from infernum.bundle_cache import cached
from infernum.ir.graph import Graph
from infernum.ir.interface import inputs_of, states_of, streams_out, weights_of
from infernum.ir.text import print_graph
from infernum.manifest import ANY, BlockVariant, Manifest, VariantSpec
from infernum.models.presets import ModelSource
from infernum.program import MAX_BATCH_TOKENS, Program, describe_program, read_program
from infernum.roofline import MAX_ROWS


def trace_model(
    source: ModelSource,
    out: Path,
    *,
    dtype: str = "auto",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    ranks: int = 1,
) -> bundle.Bundle:
    """Trace a model and write the graphs of each rank as the bundle `out`.

    Raises CompileError, ConfigError or BundleError.
    """
    bundle.check_replaceable(out)
    program = read_program(source, dtype, max_batch_tokens, ranks)
    graphs = _trace(program)
    files = {bundle.traced_name(name): print_graph(graph).encode() for name, graph in graphs.items()}
    return bundle.write_bundle(out, _describe(program, graphs), files)


def describe_graphs(source: ModelSource, dtype: str = "auto", ranks: int = 1) -> Manifest:
    """The manifest of a model's graphs, of which nothing is written: the weights and the state that a rank needs."""
    program = read_program(source, dtype, MAX_BATCH_TOKENS, ranks)
    return _describe(program, _trace(program))


def cached_graphs(source: ModelSource, dtype: str, ranks: int = 1) -> bundle.Bundle:
    """The bundle of a model's graphs in the user's cache, traced now unless it is there already."""
    facts = ("numpy", dtype, MAX_BATCH_TOKENS, ranks)
    return cached(source, facts, lambda folder: trace_model(source, folder, dtype=dtype, ranks=ranks))


def _trace(program: Program) -> dict[str, Graph]:
    return {block.name: program.trace(block) for block in program.blocks}


def _describe(program: Program, graphs: dict[str, Graph]) -> Manifest:
    """One class of steps, which every block serves with its graph as traced."""
    steps = VariantSpec(
        name=ANY,
        min_tokens=1,
        max_tokens=program.max_tokens,
        max_rows=min(program.max_tokens, MAX_ROWS),
    )
    blocks = {name: {ANY: _describe_block(name, graph)} for name, graph in graphs.items()}
    return describe_program(program, blocks, [steps], arch=None, nvrtc=None, fuse=False, rules=())


def _describe_block(name: str, graph: Graph) -> BlockVariant:
    return BlockVariant(
        block=name,
        variant=ANY,
        traced=bundle.traced_name(name),
        graph=bundle.traced_name(name),
        stream_in=inputs_of(graph, "stream"),
        stream_out=streams_out(graph),
        batch=inputs_of(graph, "batch"),
        state=states_of(graph),
        weights=weights_of(graph),
    )
