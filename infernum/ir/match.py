"""Finding a pattern in a graph: untyped, through commutative operands and several outputs, in a stable order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from infernum.ir.graph import Graph, Node, Value
from infernum.ir.op import Op


@dataclass(frozen=True)
class AttrVar:
    """An attribute variable of a pattern: it matches any value, and the match binds it."""

    name: str


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: pattern node → graph node, pattern input → value, attribute variable → value."""

    nodes: Mapping[str, str]
    inputs: Mapping[str, Value]
    attrs: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str]:
        """The graph nodes that the pattern covers."""
        return frozenset(self.nodes.values())

    def value(self, pattern_value: Value) -> Value:
        """The graph value that a value of the pattern stands for."""
        if pattern_value.node in self.inputs:
            return self.inputs[pattern_value.node]
        return Value(self.nodes[pattern_value.node], pattern_value.index)


def find_matches(pattern: Graph, graph: Graph, at: Node) -> Iterator[Match]:
    """Every way the pattern fits with its first result computed by the call `at`, in graph order.

    Ways that bind the same nodes and inputs alike count once.
    """
    seen: set[tuple[frozenset[tuple[str, str]], frozenset[tuple[str, Value]]]] = set()
    first, *others = dict.fromkeys(v.node for v in pattern.outputs)
    for begun in _match_node(pattern, graph, pattern.node(first), at, Match({}, {}, {})):
        for match in _match_outputs(pattern, graph, others, begun):
            key = (frozenset(match.nodes.items()), frozenset(match.inputs.items()))
            if key not in seen:
                seen.add(key)
                yield match


def _match_outputs(pattern: Graph, graph: Graph, outputs: list[str], match: Match) -> Iterator[Match]:
    if not outputs:
        yield match
        return
    first, rest = outputs[0], outputs[1:]
    if first in match.nodes:
        yield from _match_outputs(pattern, graph, rest, match)
        return
    pattern_node = pattern.node(first)
    for candidate in _may_be(pattern, graph, pattern_node, match):
        for extended in _match_node(pattern, graph, pattern_node, candidate, match):
            yield from _match_outputs(pattern, graph, rest, extended)


def _may_be(pattern: Graph, graph: Graph, pattern_node: Node, match: Match) -> Iterator[Node]:
    """Calls that may stand for a node of the pattern: readers of an operand that is bound, else all of its op."""
    for operand in pattern.operands(pattern_node.name):
        if operand.node in match.inputs or operand.node in match.nodes:
            readers = dict.fromkeys(user for user, _ in graph.users(match.value(operand)))
            yield from map(graph.node, readers)
            return
    yield from graph.calls_of(pattern_node.op.name)


def _match_node(
    pattern: Graph, graph: Graph, pattern_node: Node, node: Node, match: Match
) -> Iterator[Match]:
    if pattern_node.name in match.nodes:
        if match.nodes[pattern_node.name] == node.name:
            yield match
        return
    if not isinstance(node.op, Op) or node.op is not pattern_node.op or node.name in match.names:
        return
    attrs = _unify(pattern_node.attrs, {**node.op.defaults, **node.attrs}, match.attrs)
    if attrs is None:
        return
    extended = Match({**match.nodes, pattern_node.name: node.name}, match.inputs, attrs)
    patterns, operands = pattern.operands(pattern_node.name), graph.operands(node.name)
    if len(patterns) != len(operands):
        return
    orders = permutations(operands) if node.op.commutative else iter([operands])
    for order in orders:
        yield from _match_operands(pattern, graph, list(zip(patterns, order, strict=True)), extended)


def _match_operands(
    pattern: Graph, graph: Graph, pairs: list[tuple[Value, Value]], match: Match
) -> Iterator[Match]:
    if not pairs:
        yield match
        return
    (pattern_value, value), rest = pairs[0], pairs[1:]
    node = pattern.node(pattern_value.node)
    if node.is_input:
        bound = match.inputs.get(node.name)
        if bound is None or bound == value:
            inputs = {**match.inputs, node.name: value}
            yield from _match_operands(pattern, graph, rest, Match(match.nodes, inputs, match.attrs))
        return
    if pattern_value.index != value.index or graph.node(value.node).is_input:
        return
    for extended in _match_node(pattern, graph, node, graph.node(value.node), match):
        yield from _match_operands(pattern, graph, rest, extended)


def _unify(
    pattern_attrs: Mapping[str, Any], attrs: Mapping[str, Any], bound: Mapping[str, Any]
) -> dict[str, Any] | None:
    unified = dict(bound)
    for name, value in pattern_attrs.items():
        if isinstance(value, AttrVar):
            if unified.setdefault(value.name, attrs[name]) != attrs[name]:
                return None
        elif attrs[name] != value:
            return None
    return unified


def why_not_replaceable(
    graph: Graph, names: frozenset[str], outputs: frozenset[Value], inputs: frozenset[Value]
) -> str | None:
    """What forbids every rule to make one node of the nodes `names`; None when nothing does.

    `outputs` are the results that stay available afterwards, `inputs` the values that the replacement reads.
    """
    reasons = (guard(graph, names, outputs, inputs) for guard in GUARDS)
    return next((reason for reason in reasons if reason is not None), None)


def reads_itself(
    graph: Graph, names: frozenset[str], outputs: frozenset[Value], inputs: frozenset[Value]
) -> str | None:
    """A node inside the match computes an input of the pattern, which the replacement removes."""
    del graph, outputs
    inside = sorted(value for value in inputs if value.node in names)
    return (
        f"{inside[0]} is read by the pattern and computed by the nodes it would replace" if inside else None
    )


def is_used_outside(
    graph: Graph, names: frozenset[str], outputs: frozenset[Value], inputs: frozenset[Value]
) -> str | None:
    """The block or other nodes read a value that the replacement removes."""
    del inputs
    for name in (n for n in graph.order if n in names):
        for index in range(len(graph.node(name).types)):
            value = Value(name, index)
            if value in outputs:
                continue
            if graph.is_output(value):
                return f"{value} would be gone, but the block returns it"
            outside = [user for user, _ in graph.users(value) if user not in names]
            if outside:
                readers = list(dict.fromkeys(outside))
                read = "reads" if len(readers) == 1 else "read"
                return f"{value} would be gone, but {', '.join(readers)} {read} it too"
    return None


def makes_a_cycle(
    graph: Graph, names: frozenset[str], outputs: frozenset[Value], inputs: frozenset[Value]
) -> str | None:
    """Something outside reads a result of the match and computes an operand of it."""
    del outputs, inputs
    between = _between(graph, names)
    if not between:
        return None
    return f"{', '.join(between)} would have to run after some of these nodes and before others, which become one"


Guard = Callable[[Graph, frozenset[str], frozenset[Value], frozenset[Value]], str | None]
GUARDS: tuple[Guard, ...] = (reads_itself, is_used_outside, makes_a_cycle)


def _between(graph: Graph, names: frozenset[str]) -> list[str]:
    """Nodes outside `names` that lie on a path from one of them to another."""
    last = max(graph.rank[name] for name in names)
    after: set[str] = set()
    todo = list(names)
    while todo:
        for name in graph.nx.succ[todo.pop()]:
            if name not in after and graph.rank[name] < last:
                after.add(name)
                todo.append(name)
    before: set[str] = set()
    todo = [name for name in names if after]
    while todo:
        for name in graph.nx.pred[todo.pop()]:
            if name in after and name not in before:
                before.add(name)
                todo.append(name)
    return [n for n in graph.order if n in before - names]
