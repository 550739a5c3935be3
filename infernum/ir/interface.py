"""What a block's graph takes and gives, as the records of a bundle's manifest."""

from __future__ import annotations

from collections.abc import Iterator

from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.op import Fused, Op
from infernum.manifest import State, TensorSpec, Weight


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
            offsets = [reader.attrs.get("offset", 0.0) for reader in _primitive_readers(graph, node.name)]
            weights[node.name] = Weight(
                spec=spec(node.name, node.types[0]), recipe=node.op.recipe, added=max(offsets, default=0.0)
            )
    return weights


def states_of(graph: Graph) -> list[State]:
    """The states of a graph, each with the window within which all ops of the graph read it."""
    return [
        State(state.name, state.dtype, state.shape, _window(graph, state.name))
        for state in inputs_of(graph, "state")
    ]


def _window(graph: Graph, state: str) -> int:
    """The longest window of the ops that read a state in one, or read what others have written to it."""
    values, windows = [Value(state)], list[int]()
    for value in values:
        for name, slot in graph.users(value):
            node = graph.node(name)
            assert not isinstance(node.op, Input), f"{name} reads nothing"
            values += [
                Value(name, result) for result, taken_over in node.op.in_place.items() if taken_over == slot
            ]
            windows += [node.attrs["window"]] if "window" in node.attrs else []
    return max(windows) if windows and all(windows) else 0


def _primitive_readers(graph: Graph, name: str) -> Iterator[Node]:
    """The primitive ops that read a value, within fused nodes too."""
    for reader, slot in graph.users(Value(name)):
        node = graph.node(reader)
        if isinstance(node.op, Fused):
            yield from _primitive_readers(node.op.body, node.op.params[slot])
        else:
            yield node


def streams_out(graph: Graph) -> list[TensorSpec]:
    """What a traced graph hands to the next block: its outputs, but for inputs that were updated in place."""
    outputs = [(value, graph.node(value.node).op) for value in graph.outputs]
    return [
        spec(value.node, graph.type(value))
        for value, op in outputs
        if not (isinstance(op, Op) and value.index in op.in_place)
    ]
