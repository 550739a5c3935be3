"""The decomposed form of a fused node: a kernel for each of its ops, compiled to be compared with the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from infernum.cache import cache_folder
from infernum.codegen.cubin import Cubin
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock, describe_block
from infernum.codegen.nvrtc import compile_all
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.compiler import Progress
from infernum.errors import CompileError
from infernum.ir.apply import apply_rules
from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.op import Fused
from infernum.lab.verify.units import Unit, UnitProgram, target_of
from infernum.manifest import spec_of

_NOTHING = Cubin(b"", {})


def decomposed_programs(
    units: Sequence[Unit], progress: Progress | None = None
) -> dict[str, UnitProgram | str]:
    """The decomposed form of every fused unit, by `str(unit)`, or a sentence on why it has none. Compiles them.

    The units are of one bundle.
    """
    refused: dict[str, UnitProgram | str] = {}
    planned: list[tuple[Unit, CompiledBlock]] = []
    for unit in units:
        if not isinstance(unit.node.op, Fused):
            continue
        try:
            planned.append((unit, _decomposed_block(unit)))
        except CompileError as error:
            refused[str(unit)] = f"it has no decomposed form: {error}"
    sources = {  # a node that the library computes as a whole has none
        f"{_name(unit)}.cu": block.source
        for unit, block in planned
        if any(isinstance(step, KernelStep) for step in block.plan.steps)
    }
    numbers = count(1)

    def on_compiled(name: str, seconds: float) -> None:
        del name, seconds
        if progress:
            progress("taking kernels apart", next(numbers), len(sources))

    cubins: dict[str, Cubin] = {}
    if sources:
        arch = units[0].bundle.arch
        cubins = compile_all(sources.items(), arch, progress=on_compiled, cache=cache_folder())
    return refused | {
        str(unit): _program(unit, block, cubins.get(f"{_name(unit)}.cu", _NOTHING)) for unit, block in planned
    }


def decomposed_graph(unit: Unit) -> Graph:
    """The primitive ops of a fused node over inputs of the roles that the block gives its operands."""
    inputs: list[tuple[Node, tuple[()]]] = []
    for inner, place in zip(unit.body.inputs, unit.program.operands, strict=True):
        source = unit.source(place)
        role = source.op if source is not None and source.types == inner.types else Input("stream")
        inputs.append((Node(inner.name, role, inner.types), ()))
    calls = [(node, unit.body.operands(node.name)) for node in unit.body.calls]
    return Graph.build(unit.node.name, [*inputs, *calls], unit.body.outputs)


def _name(unit: Unit) -> str:
    return f"{unit.variant.block}.{unit.variant.variant}.{unit.node.name}.decomposed"


def _decomposed_block(unit: Unit) -> CompiledBlock:
    """Raises CompileError when some op has no kernel of its own, or a result would be a view."""
    target = target_of(unit.bundle, spec_of(unit.bundle.manifest.variants, unit.variant.variant))
    graph = decomposed_graph(unit)
    plan = plan_block(graph, target)
    source = emit_block(plan, f"{unit}, taken apart into its ops.")
    return CompiledBlock(
        unit.variant.block, target, graph, apply_rules(graph, [], target), plan, plan, source
    )


def _program(unit: Unit, block: CompiledBlock, cubin: Cubin) -> UnitProgram:
    plan = block.plan
    return UnitProgram(
        _name(unit),
        unit.node,
        describe_block(block, spec_of(unit.bundle.manifest.variants, unit.variant.variant), cubin),
        cubin.data,
        tuple(plan.places[Value(node.name)] for node in unit.body.inputs),
        tuple(plan.places[value] for value in plan.graph.outputs),
    )
