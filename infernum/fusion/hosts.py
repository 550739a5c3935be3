"""What stands around a kernel's op is taken into the kernel, as far as the kernel can take it.

A rule here finds what could be absorbed, and asks the kernel that was chosen for the host whether it can lay out the
whole (`plan`). What it cannot is refused, with the kernel's own reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infernum.fusion.examples import EPILOGUES, NORMS, PROLOGUES
from infernum.ir.fuse import absorb_rows, copied_for_each_reader, fuse_nodes
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.host import (
    Region,
    has_epilogue,
    has_slot,
    hosted,
    is_pointwise,
    is_row_op,
    kernel_of,
    regions,
    why_not_planned,
)
from infernum.ir.kernel import Library, Target, Template
from infernum.ir.match import why_not_replaceable
from infernum.ir.rewrite import Candidate, Examples, place_of


@dataclass(frozen=True)
class IntoEpilogue:
    """Takes the largest region of pointwise ops behind a host's result that its kernel can compute before it writes.

    A region has one result, and nothing else reads what is inside it. It may read equal parts of the columns.
    """

    name: str
    why: str
    kind: type[Template | Library]
    examples: Examples = EPILOGUES

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        refused: list[tuple[bool, Candidate]] = []
        for region, fused in self.fused(graph, node, target):
            place = place_of(graph, region.names - {node.name})
            if isinstance(fused, Graph):
                yield Candidate(place, None, lambda graph=fused: graph)
                return
            refused.append((region.obstacle is None, Candidate(place, fused, lambda: graph)))
        # Of the reasons, a kernel's own says most, and of several that of the smallest region.
        yield from (candidate for _, candidate in sorted(refused, key=lambda each: each[0])[-1:])

    def fused(self, graph: Graph, node: Node, target: Target) -> Iterator[tuple[Region, Graph | str]]:
        """The regions behind a host, the largest first, each with the graph that has it fused, or why none has."""
        if not has_epilogue(graph, node, target) or not isinstance(kernel_of(graph, node, target), self.kind):
            return
        for region in reversed(regions(graph, node)):
            if region.obstacle:
                yield region, region.obstacle
                continue
            fused = fuse_nodes(graph, region.names, self.name, [region.output])
            yield region, why_not_planned(fused, region.output.node, target) or fused


into_epilogue = IntoEpilogue(
    "into_epilogue",
    "What is done to each element of a result is done in registers, so that the result is never written by itself.",
    Template,
)
into_library = IntoEpilogue(
    "into_library",
    "The library adds a bias and a residual (its beta · C) to the product before it is rounded, and writes it once.",
    Library,
)


@dataclass(frozen=True)
class IntoPrologue:
    """Takes a row op into the kernels that read its result, each of which computes it for itself.

    All of them must be able to: else the op's own kernel stays, and nothing is gained.
    """

    name: str = "into_prologue"
    why: str = (
        "A kernel computes the few rows it reads by itself, which is cheaper than a kernel and a round trip."
    )
    examples: Examples = PROLOGUES

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        value = Value(node.name)
        readers = [name for name, _ in graph.users(value)]
        if not is_row_op(node) or not any(has_slot(graph, graph.node(n), node, target) for n in readers):
            return
        absorbed: Graph | str = f"{value} is returned by the block"
        if not graph.is_output(value):
            absorbed, copies = copied_for_each_reader(graph, node)
            for copy, reader in zip(copies, readers, strict=True):
                if isinstance(absorbed, Graph):
                    absorbed = absorb_rows(absorbed, absorbed.node(copy), self.name)
                if isinstance(absorbed, Graph):
                    absorbed = why_not_planned(absorbed, reader, target) or absorbed
        place, reason = (
            place_of(graph, [node.name, *readers]),
            absorbed if isinstance(absorbed, str) else None,
        )
        yield Candidate(place, reason, lambda: absorbed if isinstance(absorbed, Graph) else graph)


into_prologue = IntoPrologue()


@dataclass(frozen=True)
class IntoNorm:
    """Takes pointwise ops into the norm that reads their result; what others read too is written as well."""

    name: str = "into_norm"
    why: str = "A sum is normalised while it is still in registers."
    examples: Examples = NORMS

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        kernel = kernel_of(graph, node, target) if is_row_op(node) else None
        if not isinstance(kernel, Template) or kernel.pointwise_operand is None:
            return
        rows = graph.operands(node.name)[0]
        if not is_pointwise(graph.node(rows.node)):
            return
        names = frozenset((node.name, *_computing(graph, rows, target)))
        read_too = graph.is_output(rows) or len(graph.readers(rows)) > 1
        outputs = [*([rows] if read_too else []), Value(node.name)]
        read = frozenset(v for n in names for v in graph.operands(n) if v.node not in names)
        reason = why_not_replaceable(graph, names, frozenset(outputs), read)
        if reason is None and any(graph.type(Value(n)).shape != graph.type(rows).shape for n in names):
            reason = f"{rows} is computed from vectors, and the kernel computes rows"
        yield Candidate(place_of(graph, names), reason, lambda: fuse_nodes(graph, names, self.name, outputs))


def _computing(graph: Graph, value: Value, target: Target) -> set[str]:
    """The pointwise ops that compute a value and nothing else, but for those that the library adds to a product."""
    names, todo = {value.node}, [value.node]
    while todo:
        for operand in graph.operands(todo.pop()):
            only_here = {n.name for n in graph.readers(operand)} <= names and not graph.is_output(operand)
            node = graph.node(operand.node)
            if is_pointwise(node) and only_here and not _library_adds(graph, node, target):
                names.add(node.name)
                todo.append(node.name)
    return names


def _library_adds(graph: Graph, node: Node, target: Target) -> bool:
    """True for an op behind a library product that the library takes into its epilogue."""
    hosts = [graph.node(v.node) for v in graph.operands(node.name) if hosted(graph, graph.node(v.node))]
    tried = [each for host in hosts for each in into_library.fused(graph, host, target)]
    return any(node.name in region.names for region, fused in tried if isinstance(fused, Graph))


into_norm = IntoNorm()
