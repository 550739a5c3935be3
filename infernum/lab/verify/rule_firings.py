"""What a rule changes in a graph each time that it fires: the part that goes and the part that takes its place."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infernum.codegen.weights import fold_weights
from infernum.dtypes import DType
from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import Target
from infernum.ir.op import Fused
from infernum.ir.rewrite import Rule, candidates
from infernum.ir.text import print_graph
from infernum.lab.verify.rule_values import RuleTrial


@dataclass(frozen=True)
class GraphPair:
    """Two graphs of the same inputs whose outputs, one by one, must mean the same.

    `computed` is True for parts of larger graphs which compute some of the inputs, so that these may depend on each
    other.
    """

    before: Graph
    after: Graph
    computed: bool = False

    @property
    def size(self) -> int:
        """Calls before and after."""
        return len(self.before.calls) + len(self.after.calls)

    def __str__(self) -> str:
        return f"before:\n{print_graph(self.before)}after:\n{print_graph(self.after)}"

    def bytes(self, tokens: int) -> int:
        """Bytes of all inputs as float32."""
        facts = RuleTrial(tokens).facts
        return 4 * sum(math.prod(facts.sizes(node.types[0])) for node in self.before.inputs)

    def mistyped(self) -> str | None:
        """A sentence on the first output whose type differs; None where all types agree."""
        for old, new in zip(self.before.outputs, self.after.outputs, strict=True):
            old_type, new_type = self.before.type(old), self.after.type(new)
            if old_type != new_type:
                return f"{old} is {old_type}, and what takes its place, {new}, is {new_type}"
        return None

    def typed(self, old: DType, new: DType) -> GraphPair:
        """The same graphs in another element type."""
        return replace(self, before=_typed(self.before, old, new), after=_typed(self.after, old, new))


@dataclass(frozen=True)
class AppliedRule:
    """One firing of a rule: its name and place, the whole graphs, and the part of them that differs."""

    rule: str
    at: str
    whole: GraphPair
    part: GraphPair


def firings(rule: Rule, graph: Graph, target: Target) -> Iterator[AppliedRule | str]:
    """Apply a rule until it fires no more; a sentence ends the firings of a rule that raises or never ends."""
    most = 2 * len(graph.calls) + 8
    for count in range(1, most + 2):
        try:
            chosen = next((c for c in candidates(rule, graph, target) if c.reason is None), None)
            if chosen is None:
                return
            after = fold_weights(chosen.apply())
            part = changed_part(graph, after)
        except Exception as error:  # a rule is anybody's code
            yield f"it raised {type(error).__name__}: {error}"
            return
        if count > most or len(after.calls) > 2 * most:
            yield f"it fired {count} times in one graph: does it match what it makes?"
            return
        yield AppliedRule(rule.name, chosen.at, GraphPair(graph, after), part)
        graph = after


def changed_part(before: Graph, after: Graph) -> GraphPair:
    """The smallest parts in which two graphs differ. Raises CompileError for another number of outputs."""
    if len(before.outputs) != len(after.outputs):
        raise CompileError(f"the graph returns {len(after.outputs)} values instead of {len(before.outputs)}")
    same = _same_calls(before, after)
    replaced = {node.name for node in before.calls} - same
    read = (
        pair
        for name in before.order
        if name in same
        for pair in zip(before.operands(name), after.operands(name), strict=True)
    )
    changed = [(old, new) for old, new in read if old.node in replaced]
    returned = zip(before.outputs, after.outputs, strict=True)
    changed += [(old, new) for old, new in returned if old.node in replaced or old != new]
    pairs = list(dict.fromkeys(changed))
    old_part = _part(before, same, [old for old, _ in pairs])
    new_part = _part(after, same, [new for _, new in pairs])
    computed = {node.name for node in before.nodes if not node.is_input}
    inputs = {node.name for node in old_part.inputs}
    if any(node.name in computed - inputs for node in new_part.inputs):
        return GraphPair(
            before, after
        )  # it reads what the old part did not: only the whole graphs relate the two
    return GraphPair(old_part, new_part, any(name in computed or name not in before.nx for name in inputs))


def _same_calls(before: Graph, after: Graph) -> set[str]:
    """Calls that both graphs have, and whose operands are the same values, or results of calls that differ."""
    same: set[str] = set()
    for old in before.calls:
        if old.name not in after.nx:
            continue
        new, old_read, new_read = after.node(old.name), before.operands(old.name), after.operands(old.name)
        differing = [o for o, n in zip(old_read, new_read, strict=False) if o != n]
        if (
            (old.op is new.op and old.types == new.types and old.attrs == new.attrs)
            and len(old_read) == len(new_read)
            and not any(before.node(o.node).is_input or o.node in same for o in differing)
        ):
            same.add(old.name)
    return same


def _part(graph: Graph, same: Collection[str], outputs: Sequence[Value]) -> Graph:
    """The calls outside `same` that the outputs need, over what these calls read of the others."""
    needed = {v.node for v in outputs}
    for name in reversed(graph.order):
        if name in needed and name not in same:
            needed |= {v.node for v in graph.operands(name)}
    entries: dict[str, tuple[Node, tuple[Value, ...]]] = {}

    def inside(value: Value) -> Value:
        if value.node not in same:
            return value
        name = value.node if value.index == 0 else f"{value.node}__{value.index}"
        entries.setdefault(name, (Node(name, Input("stream"), (graph.type(value),)), ()))
        return Value(name)

    for node in graph.nodes:
        if node.name in needed and node.name not in same:
            operands = tuple(inside(v) for v in graph.operands(node.name))
            entries[node.name] = (node, operands)
    ends = [inside(v) for v in outputs]
    return Graph.build(graph.name, entries.values(), ends)


def _typed(graph: Graph, old: DType, new: DType) -> Graph:
    if old is new:
        return graph
    names = {old.name: new.name, old.long_name: new.long_name}

    def typed(node: Node) -> Node:
        op = replace(node.op, body=_typed(node.op.body, old, new)) if isinstance(node.op, Fused) else node.op
        types = tuple(TensorType(t.shape, new if t.dtype is old else t.dtype) for t in node.types)
        attrs: dict[str, Any] = {
            k: names.get(v, v) if isinstance(v, str) else v for k, v in node.attrs.items()
        }
        return replace(node, op=op, types=types, attrs=attrs)

    return Graph.build(graph.name, [(typed(n), operands) for n, operands in graph.entries()], graph.outputs)
