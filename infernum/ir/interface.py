"""What a block's graph takes and gives, as the records of a bundle's manifest."""

from __future__ import annotations

from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.op import Op
from infernum.manifest import TensorSpec, Weight


def spec(name: str, type_: TensorType) -> TensorSpec:
    """The record of a tensor."""
    return TensorSpec(name=name, dtype=type_.dtype.name, shape=list(type_.shape))


def inputs_of(graph: Graph, role: str) -> list[TensorSpec]:
    """The inputs of a graph that are a stream, a batch input or a state."""
    return [
        spec(node.name, node.types[0])
        for node in graph.inputs
        if isinstance(node.op, Input) and node.op.role == role
    ]


def weights_of(graph: Graph) -> dict[str, Weight]:
    """The weights of a graph by name, with their recipes."""
    weights: dict[str, Weight] = {}
    for node in graph.inputs:
        if isinstance(node.op, Input) and node.op.role == "weight":
            assert node.op.recipe, f"%{node.name} is a weight made of nothing"
            weights[node.name] = Weight(spec=spec(node.name, node.types[0]), recipe=node.op.recipe)
    return weights


def streams_out(graph: Graph) -> list[TensorSpec]:
    """What a traced graph hands to the next block: its outputs, but for inputs that were updated in place."""
    outputs = [(value, graph.node(value.node).op) for value in graph.outputs]
    return [
        spec(value.node, graph.type(value))
        for value, op in outputs
        if not (isinstance(op, Op) and value.index in op.in_place)
    ]
