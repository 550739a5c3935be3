"""The ops that one kernel holds, and their dataflow drawn in lanes, as version control draws its branches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.op import Fused, Op
from infernum.recipes import tensor_names

LONGEST_ATTRIBUTE = 24


@dataclass(frozen=True)
class OpCall:
    """One op: the names of its results and operands, its attributes where they are not the default, its type."""

    results: list[str]
    op: str
    operands: list[str]
    attrs: dict[str, str]
    types: list[str]
    where: list[str]

    @property
    def text(self) -> str:
        """The call as Python writes it."""
        attrs = [f"{name}={value}" for name, value in self.attrs.items()]
        return f"{', '.join(self.results)} = {self.op}({', '.join((*self.operands, *attrs))})"


@dataclass(frozen=True)
class KernelRead:
    """A value that a kernel reads: its type, and "stream", "batch", "state", "weight" or the kernel that wrote it.

    `parts` are the checkpoint tensors of a weight.
    """

    name: str
    type: str
    source: str
    parts: list[str]


@dataclass(frozen=True)
class KernelWrite:
    """A value that a kernel writes: its name and type in the block, and its name inside the kernel (`value`)."""

    name: str
    type: str
    value: str


def call_of(graph: Graph, node: Node, names: Mapping[Value, str] | None = None) -> OpCall:
    """A primitive call of a graph; `names`: names of values that differ from their own."""
    assert isinstance(node.op, Op), f"{node.name} is no primitive call"
    called = names or {}
    defaults = node.op.defaults
    attrs = {n: _short(v) for n, v in node.attrs.items() if n not in defaults or defaults[n] != v}
    return OpCall(
        results=[_name(Value(node.name, i)) for i in range(len(node.op.results))],
        op=node.op.name,
        operands=[called.get(v) or _name(v) for v in graph.operands(node.name)],
        attrs=attrs,
        types=[str(t) for t in node.types],
        where=list(node.where),
    )


def calls_of(graph: Graph, name: str) -> list[OpCall]:
    """The primitive calls of one node, in order; operands from outside have their names in `graph`."""
    node = graph.node(name)
    if not isinstance(node.op, Fused):
        return [call_of(graph, node)]
    body = node.op.body
    outer = zip(body.inputs, graph.operands(name), strict=True)
    names = {Value(inner.name): _name(value) for inner, value in outer}
    return [call_of(body, call, names) for call in body.calls]


def reads_of(graph: Graph, name: str, kernels: Mapping[str, str]) -> list[KernelRead]:
    """What one node reads, each value once. `kernels`: the last kernel of each node that has any."""
    reads: list[KernelRead] = []
    for value in dict.fromkeys(graph.operands(name)):
        seen = graph.node(value.node)
        while seen.name not in kernels and not isinstance(seen.op, Input):
            seen = graph.node(graph.operands(seen.name)[0].node)  # a view of what its first operand is
        source = seen.op.role if isinstance(seen.op, Input) else kernels[seen.name]
        recipe = seen.op.recipe if isinstance(seen.op, Input) else None
        parts = tensor_names(recipe) if recipe else []
        reads.append(KernelRead(_name(value), str(graph.type(value)), source, parts))
    return reads


def writes_of(graph: Graph, name: str) -> list[KernelWrite]:
    """The results of one node, by their names in `graph`."""
    node = graph.node(name)
    results = [Value(name, i) for i in range(len(node.types))]
    inside = node.op.body.outputs if isinstance(node.op, Fused) else results
    return [
        KernelWrite(_name(result), str(type_), _name(value))
        for result, type_, value in zip(results, node.types, inside, strict=True)
    ]


def draw(calls: Sequence[OpCall], written: Collection[str]) -> list[tuple[str, OpCall | None]]:
    """Rails to print before each call; a None is a line where lanes part, meet, or at last leave the kernel.

    A lane is a value on its way from the call that makes it to the last call that reads it. A value in `written` has a
    lane to the end.
    """
    last = {name: i for i, call in enumerate(calls) for name in call.operands} | dict.fromkeys(
        written, len(calls)
    )
    lanes: list[str | None] = []
    rows: list[tuple[str, OpCall | None]] = []
    for i, call in enumerate(calls):
        read = [at for at, value in enumerate(lanes) if value in call.operands]
        ending = [at for at in read if last[str(lanes[at])] == i]
        here = ending[0] if ending else _free(lanes)
        others = [at for at in read if at != here]
        if here == len(lanes):
            lanes.append(None)
        if others:
            rows.append((_join(lanes, here, others, ending), None))
        for at in ending:
            lanes[at] = None
        rows.append((_rail(lanes, here), call))
        needed = [name for name in call.results if last.get(name, -1) > i]
        lanes[here] = needed[0] if needed else None
        for name in needed[1:]:
            at = _free(lanes)
            lanes[at:] = [name, *lanes[at + 1 :]]
        while lanes and lanes[-1] is None:
            lanes.pop()
    rows.append((" ".join("▼" if value else " " for value in lanes), None))
    return rows


def _free(lanes: Sequence[str | None]) -> int:
    return next((at for at, value in enumerate(lanes) if value is None), len(lanes))


def _rail(lanes: Sequence[str | None], here: int) -> str:
    marks = ["●" if at == here else "│" if value else " " for at, value in enumerate(lanes)]
    return " ".join(marks).rstrip()


def _join(lanes: Sequence[str | None], here: int, others: Sequence[int], ending: Sequence[int]) -> str:
    """The line on which other lanes come to the lane `here`, or part for it, where they do not end."""
    low, high = min(here, *others), max(here, *others)
    opens = here not in ending
    marks: list[str] = []
    for at, value in enumerate(lanes):
        if at == here:
            marks.append(("╮" if at == high else "╭") if opens else ("├" if at == low else "┤"))
        elif at in others:
            marks.append(("╯" if at == high else "╰") if at in ending else ("├" if at == low else "┤"))
        else:
            inside = low < at < high
            marks.append("┼" if value and inside else "│" if value else "─" if inside else " ")
    between = ["─" if low <= at < high else " " for at in range(len(marks))]
    return "".join(m + b for m, b in zip(marks, between, strict=True)).rstrip()


def _name(value: Value) -> str:
    return str(value).removeprefix("%")


def _short(value: Any) -> str:
    text = repr(value)
    kind = text.partition("(")[0]
    return text if len(text) <= LONGEST_ATTRIBUTE else f"{kind}(…)" if kind.isidentifier() else "…"
