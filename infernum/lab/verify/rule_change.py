"""What one firing of a rule changed: the part of the graph that went, the part that came, and what surrounds both."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infernum.dtypes import DType
from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.op import Fused
from infernum.lab.verify.rule_values import RuleTrial


@dataclass(frozen=True)
class GraphPair:
    """Two graphs of the same inputs whose outputs, one by one, must mean the same.

    `computed` is True where some of the inputs are computed by the graph that the change was made in, so that they
    may depend on each other.
    """

    before: Graph
    after: Graph
    computed: bool = False

    @property
    def size(self) -> int:
        """Calls before and after: what a person has to read."""
        return len(self.before.calls) + len(self.after.calls)

    @property
    def text(self) -> str:
        """Both graphs, as a person reads them."""
        return f"before:\n{self.before}after:\n{self.after}"

    def bytes(self, tokens: int) -> int:
        """Bytes of all inputs as float32."""
        facts = RuleTrial(tokens).facts
        return 4 * sum(math.prod(facts.sizes(node.types[0])) for node in self.before.inputs)

    def mistyped(self) -> str | None:
        """Which output has another type than before; None when all have theirs."""
        for old, new in zip(self.before.outputs, self.after.outputs, strict=True):
            was, made = self.before.type(old), self.after.type(new)
            if was != made:
                return f"{old} is {was}, and what takes its place, {new}, is {made}"
        return None

    def typed(self, old: DType, new: DType) -> GraphPair:
        """The same change in another element type."""
        return replace(self, before=_typed(self.before, old, new), after=_typed(self.after, old, new))


def change_of(before: Graph, after: Graph) -> GraphPair:
    """The smallest change that turns `before` into `after`. Raises CompileError for another number of outputs."""
    if len(before.outputs) != len(after.outputs):
        raise CompileError(f"the graph returns {len(after.outputs)} values instead of {len(before.outputs)}")
    kept = _kept(before, after)
    gone = {n.name for n in before.calls} - kept
    pairs: dict[tuple[Value, Value], None] = {}
    for name in (n for n in before.order if n in kept):
        for old, new in zip(before.operands(name), after.operands(name), strict=True):
            if old.node in gone:
                pairs[old, new] = None
    for old, new in zip(before.outputs, after.outputs, strict=True):
        if old.node in gone or old != new:
            pairs[old, new] = None
    parts = [_part(before, kept, [old for old, _ in pairs]), _part(after, kept, [new for _, new in pairs])]
    computed = any(n.name not in before.nx or not before.node(n.name).is_input for n in parts[0].inputs)
    read = {n.name for n in parts[0].inputs}
    own = {n.name for n in before.nodes}
    foreign = any(n.name in own - read and not before.node(n.name).is_input for n in parts[1].inputs)
    # where it reads what the part that went did not, only the whole graphs tell how the two are related
    return GraphPair(before, after) if foreign else GraphPair(parts[0], parts[1], computed)


def _kept(before: Graph, after: Graph) -> set[str]:
    """Calls that are in both graphs and read the same, but for results of calls that are not."""
    old = {node.name: node for node in before.calls}
    kept = {node.name for node in after.calls if node.name in old and _same(old[node.name], node)}
    while True:
        rewired = {name for name in kept if not _reads_alike(before, after, name, kept)}
        if not rewired:
            return kept
        kept -= rewired


def _same(old: Node, new: Node) -> bool:
    return old.op is new.op and old.types == new.types and old.attrs == new.attrs


def _reads_alike(before: Graph, after: Graph, name: str, kept: Collection[str]) -> bool:
    old, new = before.operands(name), after.operands(name)
    if len(old) != len(new):
        return False
    return all(
        a == b or not (before.node(a.node).is_input or a.node in kept) for a, b in zip(old, new, strict=True)
    )


def _part(graph: Graph, kept: Collection[str], outputs: Sequence[Value]) -> Graph:
    """The calls that are not kept, as far as the outputs need them; what they read of the others are inputs."""
    entries: dict[str, tuple[Node, tuple[Value, ...]]] = {}
    wanted = {v.node for v in outputs}
    for name in reversed(graph.order):
        if name in wanted and name not in kept:
            wanted |= {v.node for v in graph.operands(name)}

    def inside(value: Value) -> Value:
        if value.node not in kept:
            return value
        name = value.node if value.index == 0 else f"{value.node}__{value.index}"
        entries.setdefault(name, (Node(name, Input("stream"), (graph.type(value),)), ()))
        return Value(name)

    for node in graph.nodes:
        if node.name in wanted and node.name not in kept:
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
