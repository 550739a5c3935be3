"""From a fused graph to the steps of a block, in launch order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infernum.codegen.places import Place, places_of
from infernum.codegen.planner import NodePlanner
from infernum.codegen.steps import KernelStep, ProductStep
from infernum.errors import CompileError
from infernum.ir.graph import Graph, TensorType, Value
from infernum.ir.hazards import check_in_place
from infernum.ir.host import is_free
from infernum.ir.kernel import Target


@dataclass(frozen=True)
class BlockPlan:
    """The steps of one block for one target, in launch order, and the tensors they work on."""

    graph: Graph
    target: Target
    steps: tuple[KernelStep | ProductStep, ...]
    places: Mapping[Value, Place]
    workspaces: Mapping[str, tuple[TensorType, str]] = field(
        default_factory=dict[str, tuple[TensorType, str]]
    )
    """Scratch tensors by name: their type, and the node that uses them."""


def plan_block(graph: Graph, target: Target) -> BlockPlan:
    """Choose a kernel for every node. Raises CompileError naming the DSL line of a node that has none."""
    check_in_place(graph)
    places = places_of(graph)
    _check_outputs(graph, places)
    steps: list[KernelStep | ProductStep] = []
    workspaces: dict[str, tuple[TensorType, str]] = {}
    names: set[str] = set()
    for node in graph.calls:
        if is_free(node):
            continue
        planner = NodePlanner(graph, target, places, node, names)
        steps += planner.steps()
        workspaces |= planner.workspaces
        names |= {s.name for s in steps if isinstance(s, KernelStep)}
    return BlockPlan(graph, target, tuple(steps), places, workspaces)


def _check_outputs(graph: Graph, places: Mapping[Value, Place]) -> None:
    """A block returns whole tensors: what reads them later knows nothing of offsets and strides."""
    inputs = {node.name for node in graph.inputs}
    for value in graph.outputs:
        node, place = graph.node(value.node), places[value]
        if is_free(node) and (place.tensor in inputs or place.offset or place.stride != place.type.width):
            raise CompileError(
                f"{', '.join(node.where)}: a block cannot return {node.op.name} of {place.tensor}, only whole tensors"
            )
