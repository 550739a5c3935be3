"""Ops that write in place, such as `append`: nothing may read the old value after they have run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.kernel import View
from infernum.ir.op import Op


def check_in_place(graph: Graph) -> None:
    """Raise CompileError, with the DSL line, for a value that may be read after its memory has been overwritten.

    Kernels run in some order that keeps operands before users, so whatever reads the old value (or a view of it) must
    be something that the overwriting op depends on. A result of it must be used: a call that nothing reads is dropped.
    """
    for node in graph.calls:
        for slot in _in_place(node).values():
            old = graph.operands(node.name)[slot]
            late = _reads_after(graph, old, node)
            if late:
                raise CompileError(
                    f"{', '.join(node.where)}: {node.op.name} changes {old} in place, but {late} may read it later; "
                    f"use the result of {node.op.name} there"
                )
            if not _is_wanted(graph, node):
                raise CompileError(
                    f"{', '.join(node.where)}: {node.op.name} changes {old} in place, but nothing uses its result: "
                    "return it"
                )


def _is_wanted(graph: Graph, node: Node) -> bool:
    results = [Value(node.name, i) for i in range(len(node.types))]
    return any(graph.users(result) or graph.is_output(result) for result in results)


def _reads_after(graph: Graph, old: Value, writer: Node) -> str | None:
    """A read of the memory of `old`, outside `writer`, that `writer` does not depend on."""
    import networkx as nx

    before = nx.ancestors(graph.nx, writer.name)
    for value in _same_memory(graph, old):
        if graph.is_output(value):
            return "what comes after the block"
        for user, _ in graph.users(value):
            if user != writer.name and user not in before and not _is_view(graph.node(user)):
                return user
    return None


def _same_memory(graph: Graph, value: Value) -> Iterator[Value]:
    """The value, what it is a view of, and all views of that."""
    while _is_view(graph.node(value.node)):
        value = graph.operands(value.node)[0]
    todo = [value]
    while todo:
        seen = todo.pop()
        yield seen
        todo += [Value(user) for user, _ in graph.users(seen) if _is_view(graph.node(user))]


def _is_view(node: Node) -> bool:
    return isinstance(node.op, Op) and isinstance(node.op.lowering, View)


def _in_place(node: Node) -> Mapping[int, int]:
    return {} if isinstance(node.op, Input) else node.op.in_place
