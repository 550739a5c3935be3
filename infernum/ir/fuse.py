"""Making one fused node of several nodes of a graph, and taking fused nodes apart again."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from infernum.ir.graph import Graph, Input, Node, Value
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
) -> Graph:
    """The graph with the nodes `names` made one Fused node with the given results; fused nodes among them dissolve.

    `inputs` names the body's inputs; without it they are named after the nodes they come from.
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
        Fused(rule, body, tuple(dict.fromkeys(rules)), kernels, results),
        types,
        {},
        lines_of(graph, names),
        origins_of(graph, names),
    )
    values = {v: Value(name, i) for i, v in enumerate(outputs)}
    return graph.replaced(names, [(fused, list(inputs.values()))], values)


@dataclass(frozen=True)
class Flattened:
    """Some nodes of a graph with every Fused among them replaced by its body; `values` maps its results inside."""

    entries: tuple[tuple[Node, tuple[Value, ...]], ...]
    values: Mapping[Value, Value]


def inlined(graph: Graph, names: frozenset[str]) -> Flattened:
    """The primitive calls of the nodes `names`, in graph order, with unique names."""
    entries: list[tuple[Node, tuple[Value, ...]]] = []
    values: dict[Value, Value] = {}
    taken = {n.name for n in graph.nodes if n.name not in names or not isinstance(n.op, Fused)}
    for name in (n for n in graph.order if n in names):
        node, operands = graph.node(name), tuple(values.get(v, v) for v in graph.operands(name))
        if not isinstance(node.op, Fused):
            entries.append((node, operands))
            continue
        body = node.op.body
        inner = {Value(n.name): v for n, v in zip(body.inputs, operands, strict=True)}
        for call in body.calls:
            fresh = _unlike(call.name, taken)
            taken.add(fresh)
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
    """The same node under another name; whose work it does stays known."""
    return replace(node, name=name, origin=node.origins)


def made_by(node: Node) -> tuple[str, ...]:
    """The rules that made a node: rewrites, and what fused them."""
    return node.op.rules if isinstance(node.op, Fused) else node.rules


def rules_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The rules that made the nodes `names`, in graph order, each once."""
    wanted = set(names)
    return tuple(dict.fromkeys(r for n in graph.order if n in wanted for r in made_by(graph.node(n))))


def lines_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The DSL lines that the nodes `names` came from, in graph order, each once."""
    wanted = set(names)
    return tuple(dict.fromkeys(line for n in graph.order if n in wanted for line in graph.node(n).where))


def origins_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The traced nodes whose work the nodes `names` do, in graph order, each once."""
    wanted = set(names)
    return tuple(dict.fromkeys(o for n in graph.order if n in wanted for o in graph.node(n).origins))


def _input_names(values: Sequence[Value]) -> dict[str, Value]:
    names: dict[str, Value] = {}
    for value in values:
        name = value.node if value.index == 0 else f"{value.node}_r{value.index}"
        names[_unlike(name, names)] = value
    return names


def _unlike(name: str, taken: Container[str]) -> str:
    """`name`, with underscores behind it as long as it is taken."""
    while name in taken:
        name += "_"
    return name
