"""Graphs as plain data: nodes in order, with operands and what becomes of each."""

from __future__ import annotations

from typing import Any

from infernum.ir.graph import Graph, Input, Node
from infernum.ir.kernel import LoadTime, View
from infernum.ir.op import Fused, Op
from infernum.recipes import tensor_names


def kind_of(node: Node) -> str:
    """What becomes of a node: "input", "fused", "view" (costs nothing), "load" (done once, at load time), or "op"."""
    match node.op:
        case Input():
            return "input"
        case Fused():
            return "fused"
        case Op(lowering=View()):
            return "view"
        case Op(lowering=LoadTime()):
            return "load"
        case _:
            return "op"


def ops_of(node: Node) -> list[str]:
    """The primitive ops of a node."""
    return [n.op.name for n in node.op.body.calls] if isinstance(node.op, Fused) else [node.op.name]


def graph_data(graph: Graph) -> dict[str, Any]:
    """A graph as JSON holds it: nodes in order, each with operands as (node, result, parameter)."""
    return {
        "name": graph.name,
        "nodes": [_node_data(graph, node) for node in (*graph.inputs, *graph.calls)],
        "outputs": [[value.node, value.index] for value in graph.outputs],
    }


def _node_data(graph: Graph, node: Node) -> dict[str, Any]:
    data: dict[str, Any] = {"id": node.name, "op": node.op.name, "kind": kind_of(node)}
    data["types"] = [str(type_) for type_ in node.types]
    if node.where:
        data["where"] = list(node.where)
    if isinstance(node.op, Input):
        return data | ({"parts": tensor_names(node.op.recipe)} if node.op.recipe else {})
    operands = graph.operands(node.name)
    params = node.op.params
    if len(params) != len(operands):
        params = tuple(f"{params[0]}{i}" for i in range(len(operands)))
    data["operands"] = [[v.node, v.index, param] for v, param in zip(operands, params, strict=True)]
    if node.attrs:
        data["attrs"] = {name: repr(value) for name, value in node.attrs.items()}
    if isinstance(node.op, Fused):
        data["rules"] = list(node.op.rules)
        data["body"] = graph_data(node.op.body)
    return data
