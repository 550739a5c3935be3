"""Pointwise ops that follow each other become one kernel, whatever their number and shape of connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infernum.fusion.examples import POINTWISE
from infernum.ir.fuse import fuse_nodes
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.host import is_pointwise_kernel
from infernum.ir.kernel import Target
from infernum.ir.match import why_not_replaceable
from infernum.ir.rewrite import Candidate, Examples


@dataclass(frozen=True)
class MergePointwise:
    """Joins a pointwise node with one that reads it. Values that others read too are written as well."""

    name: str = "merge_pointwise"
    why: str = (
        "A chain of element-by-element ops reads its inputs once and keeps what is between in registers."
    )
    examples: Examples = POINTWISE

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        del target
        results = [Value(node.name, i) for i in range(len(node.types))] if is_pointwise_kernel(node) else []
        readers = [reader for result in results for reader in graph.readers(result)]
        for reader in dict.fromkeys(n.name for n in readers if is_pointwise_kernel(n)):
            yield self._candidate(graph, node, graph.node(reader))

    def _candidate(self, graph: Graph, first: Node, second: Node) -> Candidate:
        names = frozenset((first.name, second.name))
        values = [Value(node.name, i) for node in (first, second) for i in range(len(node.types))]
        read_outside = [
            v for v in values if graph.is_output(v) or any(n.name not in names for n in graph.readers(v))
        ]
        inputs = frozenset(v for n in names for v in graph.operands(n) if v.node not in names)
        reason = why_not_replaceable(graph, names, frozenset(read_outside), inputs)
        if reason is None and len({t.shape for node in (first, second) for t in node.types}) > 1:
            reason = f"{first.name} is {first.types[0]} and {second.name} {second.types[0]}: one kernel has one shape"
        return Candidate(
            f"{first.name}, {second.name}", reason, lambda: fuse_nodes(graph, names, self.name, read_outside)
        )


merge_pointwise = MergePointwise()
