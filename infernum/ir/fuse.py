"""Making one fused node of several nodes of a graph, and taking fused nodes apart again."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.host import hosted
from infernum.ir.kernel import KernelSpec
from infernum.ir.op import Fused


def fuse_nodes(
    graph: Graph,
    names: frozenset[str],
    rule: str,
    outputs: Sequence[Value],
    inputs: Mapping[str, Value] | None = None,
    kernels: tuple[KernelSpec, ...] = (),
    results: tuple[str, ...] = (),
    attrs: Mapping[str, Any] | None = None,
) -> Graph:
    """The graph with the nodes `names` made one Fused node with the given results; fused nodes among them dissolve.

    `inputs` names the body's inputs; without it they are named after the nodes they come from. `attrs` are the
    attributes of the node.
    """
    flat = inlined(graph, names)
    rules = [*rules_of(graph, names), rule]
    inner = {node.name for node, _ in flat.entries}
    read = list(dict.fromkeys(v for _, operands in flat.entries for v in operands if v.node not in inner))
    if inputs is None:
        inputs = _input_names(read)
    named = {value: name for name, value in reversed(list(inputs.items()))}
    body_inputs = [(Node(name, Input("stream"), (graph.type(value),)), ()) for name, value in inputs.items()]
    clash: dict[str, str] = {}
    for name in sorted(inner & inputs.keys()):
        clash[name] = _unlike(f"{name}_inner", inner | inputs.keys() | set(clash.values()))

    def inside(value: Value) -> Value:
        if value.node in inner:
            return Value(clash.get(value.node, value.node), value.index)
        return Value(named[value])

    body_calls = [
        (renamed(n, clash.get(n.name, n.name)), [inside(v) for v in ops]) for n, ops in flat.entries
    ]
    body = Graph.build(rule, [*body_inputs, *body_calls], [inside(flat.values.get(v, v)) for v in outputs])
    types = tuple(graph.type(v) for v in outputs)
    name = outputs[0].node  # free again: its node is one of those that go
    fused = Node(
        name,
        Fused(rule, body, tuple(dict.fromkeys(rules)), kernels, results, tuple(inputs) if kernels else ()),
        types,
        attrs or {},
        lines_of(graph, names),
        origins_of(graph, names),
    )
    values = {v: Value(name, i) for i, v in enumerate(outputs)}
    return graph.replaced(names, [(fused, list(inputs.values()))], values)


def copied_for_each_reader(graph: Graph, node: Node) -> tuple[Graph, list[str]]:
    """The graph with a copy of a node for each read of its result, and their names; the first is the node itself."""
    copies = [node.name]
    for _ in graph.users(Value(node.name))[1:]:
        copies.append(graph.fresh_call(node.op.name, copies))
    unread = list(copies)
    entries: list[tuple[Node, Sequence[Value]]] = []
    for each, operands in graph.entries():
        entries.append((each, [Value(unread.pop(0)) if v == Value(node.name) else v for v in operands]))
        if each is node:
            entries += [(renamed(node, copy), operands) for copy in copies[1:]]
    return Graph.build(graph.name, entries, graph.outputs), copies


def absorb_rows(graph: Graph, node: Node, rule: str) -> Graph | str:
    """The graph in which the one reader of a row op computes it while it reads; or why the reader cannot."""
    ((reader, slot),) = graph.users(Value(node.name))
    op, host = graph.node(reader).op, hosted(graph, graph.node(reader))
    if host is None:
        return f"{reader} reads it too, and cannot compute it for itself"
    rows = Value(host.body.inputs[slot].name)
    params = [param for param, value in host.operands.items() if value == rows]
    if len(params) != 1 or len(host.body.users(rows)) != 1:
        return f"{reader} reads it otherwise than as rows that it could compute"
    if isinstance(op, Fused) and op.kernels:
        return into_slot(graph, graph.node(reader), params[0], node, rule)
    outputs = [Value(reader, i) for i in range(len(graph.node(reader).types))]
    return fuse_nodes(graph, frozenset((node.name, reader)), rule, outputs)


def into_slot(graph: Graph, host: Node, operand: str, row: Node, rule: str) -> Graph:
    """The graph with a row op computed by `host`, a fusion with kernels of its own, while it reads `operand`.

    The op is taken out of the graph, and must have no other reader.
    """
    fused = host.op
    assert isinstance(fused, Fused) and fused.kernels, f"{host.name} has no kernels of its own"
    outer = dict(zip(fused.params, graph.operands(host.name), strict=True))
    in_use = {n.name for n in fused.body.nodes}
    name = _unlike(row.name, in_use)
    inputs = {value: inner for inner, value in reversed(list(outer.items())) if inner != operand}
    rows, *others = graph.operands(row.name)
    added: dict[str, Value] = {}
    read = [Value(operand)]
    for value in others:
        if value not in inputs:
            inputs[value] = _unlike(value.node, in_use | {name} | set(added))
            added[inputs[value]] = value
        read.append(Value(inputs[value]))
    calls: list[tuple[Node, list[Value]]] = [(renamed(row, name), read)]
    calls += [
        (each, [Value(name) if v == Value(operand) else v for v in fused.body.operands(each.name)])
        for each in fused.body.calls
    ]
    body_inputs = [
        *((n, ()) for n in fused.body.inputs),
        *((Node(n, Input("stream"), (graph.type(v),)), ()) for n, v in added.items()),
    ]
    body = Graph.build(fused.name, [*body_inputs, *calls], fused.body.outputs)
    row_ops = {**fused.row_ops, operand: (name, *fused.row_ops.get(operand, ()))}
    names = frozenset((row.name, host.name))
    rules = tuple(dict.fromkeys((*rules_of(graph, names), rule)))
    absorbing = replace(
        host,
        op=replace(fused, body=body, rules=rules, row_ops=row_ops),
        where=lines_of(graph, names),
        origin=origins_of(graph, names),
    )
    operands = [*({**outer, operand: rows}).values(), *added.values()]
    values = {Value(host.name, i): Value(host.name, i) for i in range(len(host.types))}
    return graph.replaced(names, [(absorbing, operands)], values)


@dataclass(frozen=True)
class Flattened:
    """Some nodes of a graph with every Fused among them replaced by its body; `values` maps its results inside."""

    entries: tuple[tuple[Node, tuple[Value, ...]], ...]
    values: Mapping[Value, Value]


def inlined(graph: Graph, names: frozenset[str]) -> Flattened:
    """The primitive calls of the nodes `names`, in graph order, with unique names."""
    entries: list[tuple[Node, tuple[Value, ...]]] = []
    values: dict[Value, Value] = {}
    names_in_use = {n.name for n in graph.nodes if n.name not in names or not isinstance(n.op, Fused)}
    for name in (n for n in graph.order if n in names):
        node, operands = graph.node(name), tuple(values.get(v, v) for v in graph.operands(name))
        if not isinstance(node.op, Fused):
            entries.append((node, operands))
            continue
        body = node.op.body
        inner = {Value(n.name): v for n, v in zip(body.inputs, operands, strict=True)}
        for call in body.calls:
            fresh = _unlike(call.name, names_in_use)
            names_in_use.add(fresh)
            entries.append((renamed(call, fresh), tuple(inner[v] for v in body.operands(call.name))))
            inner |= {Value(call.name, i): Value(fresh, i) for i in range(len(call.types))}
        values |= {Value(name, i): inner[v] for i, v in enumerate(body.outputs)}
    return Flattened(tuple(entries), values)


def decomposed(graph: Graph) -> Graph:
    """The graph with every Fused node replaced by its body: what its kernels mean, op by op."""
    flat = inlined(graph, frozenset(n.name for n in graph.calls))
    entries = [(n, ()) for n in graph.inputs]
    return Graph.build(graph.name, [*entries, *flat.entries], [flat.values.get(v, v) for v in graph.outputs])


def renamed(node: Node, name: str) -> Node:
    """The same node under another name; its origins stay those of the old name."""
    return replace(node, name=name, origin=node.origins)


def made_by(node: Node) -> tuple[str, ...]:
    """The rules that made a node: rewrites, and what fused them."""
    return node.op.rules if isinstance(node.op, Fused) else node.rules


def rules_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The rules that made the nodes `names`, in graph order, each once."""
    chosen = set(names)
    return tuple(dict.fromkeys(r for n in graph.order if n in chosen for r in made_by(graph.node(n))))


def lines_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The DSL lines that the nodes `names` came from, in graph order, each once."""
    chosen = set(names)
    return tuple(dict.fromkeys(line for n in graph.order if n in chosen for line in graph.node(n).where))


def origins_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The traced nodes whose work the nodes `names` do, in graph order, each once."""
    chosen = set(names)
    return tuple(dict.fromkeys(o for n in graph.order if n in chosen for o in graph.node(n).origins))


def _input_names(values: Sequence[Value]) -> dict[str, Value]:
    names: dict[str, Value] = {}
    for value in values:
        name = value.node if value.index == 0 else f"{value.node}_r{value.index}"
        names[_unlike(name, names)] = value
    return names


def _unlike(name: str, in_use: Container[str]) -> str:
    """`name`, with underscores behind it as long as it is taken."""
    while name in in_use:
        name += "_"
    return name
