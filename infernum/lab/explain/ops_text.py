"""The ops of a kernel as a person reads them: what it reads, the dataflow in lanes, what it writes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from infernum.lab.explain.calls import KernelRead, OpCall, draw
from infernum.lab.explain.kernel import KernelExplanation
from infernum.lab.explain.paper import columns, fold, heading

_SOURCES = {
    "stream": "from the block before",
    "batch": "of the step",
    "state": "KV cache",
    "weight": "weight",
}


def ops_text(explained: KernelExplanation, width: int) -> list[Text]:
    """The ops of a kernel, in `width` columns."""
    rows = draw(explained.calls, [write.value for write in explained.writes])
    margin = max(len("writes"), *(len(rail) for rail, _ in rows))
    reads = [(r.name, r.type, _source(r)) for r in explained.reads]
    writes = [(w.name if w.value == w.name else f"{w.name} = {w.value}", w.type) for w in explained.writes]
    lines = [heading(f"Ops: {' → '.join(call.op for call in explained.calls)}")]
    lines += _values("reads", columns(reads, indent=""), margin)
    for rail, call in rows:
        lines += _row(rail, call, margin, width)
    return [*lines, *_values("writes", columns(writes, indent=""), margin)]


def _values(word: str, values: list[str], margin: int) -> Iterator[Text]:
    for i, line in enumerate(values):
        yield Text(f"  {word if i == 0 else '':<{margin}}  {line}", style="dim")


def _row(rail: str, call: OpCall | None, margin: int, width: int) -> Iterator[Text]:
    """A call on its lane, or a line where lanes part or meet."""
    if call is None:
        yield Text(f"  {rail}", style="cyan")
        return
    kinds = f"  {', '.join(call.types)}"
    folded = fold(call.text, width - margin - 4 - len(kinds), rest="    ")
    for i, text in enumerate(folded):
        marks = rail if i == 0 else rail.replace("●", "│")
        line = Text().append(f"  {marks:<{margin}}  ", style="cyan").append(text)
        yield line.append(kinds, style="dim") if i == len(folded) - 1 else line


def _source(read: KernelRead) -> str:
    if len(read.parts) > 1:
        return f"weight, {len(read.parts)} of the checkpoint stacked"
    return _SOURCES.get(read.source, f"from {read.source}")
