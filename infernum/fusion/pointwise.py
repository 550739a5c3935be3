"""Pointwise ops that follow each other become one kernel, whatever their number and shape of connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infernum.ir.fuse import fuse_nodes
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.kernel import Pointwise, Target
from infernum.ir.match import why_not_replaceable
from infernum.ir.op import Fused, Op
from infernum.ir.rewrite import Candidate


def is_pointwise_kernel(node: Node) -> bool:
    """True for a pointwise op and for a fusion of nothing but pointwise ops."""
    if isinstance(node.op, Fused):
        return not node.op.kernels and all(is_pointwise_kernel(n) for n in node.op.body.calls)
    return isinstance(node.op, Op) and isinstance(node.op.emit, Pointwise)


@dataclass(frozen=True)
class MergePointwise:
    """Joins a pointwise node with one that reads it. Values that others read too are written as well."""

    name: str = "merge_pointwise"
    why: str = (
        "A chain of element-by-element ops reads its inputs once and keeps what is between in registers."
    )

    def candidates(self, graph: Graph, target: Target) -> Iterator[Candidate]:
        del target
        for first in (n for n in graph.calls if is_pointwise_kernel(n)):
            for index in range(len(first.types)):
                for user, _ in graph.users(Value(first.name, index)):
                    if is_pointwise_kernel(graph.node(user)):
                        yield self._candidate(graph, first, graph.node(user))

    def _candidate(self, graph: Graph, first: Node, second: Node) -> Candidate:
        names = frozenset((first.name, second.name))
        kept = [
            value
            for node in (first, second)
            for value in (Value(node.name, i) for i in range(len(node.types)))
            if graph.is_output(value) or any(user not in names for user, _ in graph.users(value))
        ]
        inputs = frozenset(v for n in names for v in graph.operands(n) if v.node not in names)
        reason = why_not_replaceable(graph, names, frozenset(kept), inputs)
        shapes = {t.shape for node in (first, second) for t in node.types}
        if reason is None and len(shapes) > 1:
            reason = f"{first.name} is {first.types[0]} and {second.name} {second.types[0]}: one kernel has one shape"
        return Candidate(
            f"{first.name}, {second.name}", reason, lambda: fuse_nodes(graph, names, self.name, kept)
        )


merge_pointwise = MergePointwise()
