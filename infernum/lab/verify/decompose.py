"""The decomposed form of a fused node: a kernel for each of its ops, compiled to be compared with the fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from infernum.cache import cache_folder
from infernum.codegen.cubin import Cubin
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock, describe_block
from infernum.codegen.nvrtc import compile_all
from infernum.codegen.places import Place
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.errors import CompileError
from infernum.ir.apply import apply_rules
from infernum.ir.graph import Graph, Input, Node
from infernum.ir.op import Fused
from infernum.lab.verify.units import Unit, UnitProgram, target_of
from infernum.manifest import BlockVariant, spec_of

Progress = Callable[[str, int, int], None]
_NOTHING = Cubin(b"", {})


@dataclass(frozen=True)
class _Emitted:
    """A decomposed node and its source, which is None when the library computes all of it."""

    unit: Unit
    block: CompiledBlock
    source: str | None

    @property
    def file(self) -> str:
        return f"{self.unit.variant.block}.{self.unit.variant.variant}.{self.unit.node.name}.decomposed.cu"


def decomposed_programs(
    units: Iterable[Unit], progress: Progress | None = None
) -> dict[str, UnitProgram | str]:
    """The decomposed form of every fused unit, by `str(unit)`, or a sentence on why it has none. Compiles them.

    The units are of one bundle.
    """
    refused: dict[str, UnitProgram | str] = {}
    emitted: list[_Emitted] = []
    for unit in units:
        if not isinstance(unit.node.op, Fused):
            continue
        try:
            emitted.append(_emit(unit))
        except CompileError as error:
            refused[str(unit)] = f"it has no decomposed form: {error}"
    sources = {e.file: e.source for e in emitted if e.source is not None}
    done: list[str] = []

    def on_compiled(name: str, seconds: float) -> None:
        del seconds
        done.append(name)
        if progress:
            progress("taking kernels apart", len(done), len(sources))

    cubins: dict[str, Cubin] = {}
    if sources:
        arch = emitted[0].unit.bundle.arch
        cubins = compile_all(sources.items(), arch, progress=on_compiled, cache=cache_folder())
    return refused | {str(e.unit): _program(e, cubins.get(e.file, _NOTHING)) for e in emitted}


def decomposed_graph(unit: Unit) -> Graph:
    """The primitive ops of a fused node over inputs of the roles that the block gives its operands."""
    op = unit.node.op
    assert isinstance(op, Fused), f"{unit} is not fused"
    inputs: list[tuple[Node, tuple[()]]] = []
    for inner, place in zip(op.body.inputs, unit.program.operands, strict=True):
        source = unit.source(place)
        role = source.op if source is not None and source.types == inner.types else Input("stream")
        inputs.append((Node(inner.name, role, inner.types), ()))
    calls = [(node, op.body.operands(node.name)) for node in op.body.calls]
    return Graph.build(unit.node.name, [*inputs, *calls], op.body.outputs)


def _emit(unit: Unit) -> _Emitted:
    """Raises CompileError when some op has no kernel of its own, or a result would be a view."""
    target = target_of(unit.bundle, spec_of(unit.bundle.manifest.variants, unit.variant.variant))
    graph = decomposed_graph(unit)
    plan = plan_block(graph, target)
    source = emit_block(plan, f"{unit}, taken apart into its ops.")
    outcome = apply_rules(graph, [], target)
    block = CompiledBlock(unit.variant.block, target, graph, outcome, plan, plan, source)
    return _Emitted(unit, block, source if any(isinstance(step, KernelStep) for step in plan.steps) else None)


def _program(emitted: _Emitted, cubin: Cubin) -> UnitProgram:
    unit, plan = emitted.unit, emitted.block.plan
    variant = spec_of(unit.bundle.manifest.variants, unit.variant.variant)
    described: BlockVariant = describe_block(emitted.block, variant, cubin)
    op = unit.node.op
    assert isinstance(op, Fused)
    places: dict[str, Place] = {value.node: place for value, place in plan.places.items() if value.index == 0}
    return UnitProgram(
        emitted.file.removesuffix(".cu"),
        unit.node,
        described,
        cubin.data,
        tuple(places[node.name] for node in op.body.inputs),
        tuple(plan.places[value] for value in plan.graph.outputs),
    )
