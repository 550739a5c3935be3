"""What differs between two bundles as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from infernum.lab.explain.amounts import change, counted, microseconds, nbytes
from infernum.lab.explain.difference import BundleDiff, RuleDiff, Summary
from infernum.lab.explain.kernel_difference import KernelDiff, Numbers
from infernum.lab.explain.paper import columns, fold, heading, paragraph
from infernum.lab.explain.text_diff import GraphDiff, SourceDiff

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def diff_text(diff: BundleDiff, width: int) -> list[Text]:
    """Everything that differs, in `width` columns; code is not folded."""
    lines = [Text(f"A  {diff.a}", style="red"), Text(f"B  {diff.b}", style="green")]
    if diff.is_empty and diff.ms_per_step is None:
        return [*lines, heading("no differences")]
    lines += _summary(diff.summary)
    if diff.ms_per_step is not None:
        before, after = diff.ms_per_step
        lines.append(
            Text(f"  one step: {before:.3f} ms → {after:.3f} ms ({after / before - 1:+.1%})", style="bold")
        )
    if diff.is_empty:
        return [*lines, heading("no differences but in time")]
    lines += _facts(diff, width)
    lines += [line for where, rule in _alike(diff.rules) for line in _rule(rule, where, width)]
    lines += [line for kernel in diff.kernels for line in _kernel(kernel, width)]
    lines += [line for graph in diff.graphs for line in _graph(graph, width)]
    lines += [line for source in diff.sources for line in _source(source)]
    if diff.cubins:
        files = f"Compiled otherwise from the same source: {', '.join(diff.cubins)}"
        lines += paragraph(files, width, first="", style="bold yellow")
    return lines


def _summary(summary: Sequence[Summary]) -> Iterator[Text]:
    """The table at the top: numbers that differ as A → B, the others once."""
    timed = any(n is not None and n.us is not None for s in summary for n in (s.a, s.b))
    header = (
        "block",
        "tokens",
        "kernels",
        "registers",
        "spilled",
        "bytes",
        "floor",
        *(("time",) if timed else ()),
    )
    rows = [header, *(_row(s, timed) for s in summary)]
    table = columns(rows, right=range(1, len(header)))
    yield heading(table[0])
    for line, summary_row in zip(table[1:], summary, strict=True):
        yield Text(line, style=_style(summary_row))


def _row(summary_row: Summary, timed: bool) -> tuple[str, ...]:
    a, b = summary_row.a, summary_row.b
    cells = [
        _cell(a and str(a.kernels), b and str(b.kernels)),
        _cell(a and str(a.registers), b and str(b.registers)),
        _cell(a and str(a.spills), b and str(b.spills)),
        _cell(a and nbytes(a.bytes), b and nbytes(b.bytes)),
        _cell(a and microseconds(a.floor_us), b and microseconds(b.floor_us)),
    ]
    times = (
        [_cell(*((n.us is not None and microseconds(n.us)) or "–" if n else None for n in (a, b)))]
        if timed
        else []
    )
    return (summary_row.where, str(summary_row.tokens), *cells, *times)


def _cell(a: str | None, b: str | None) -> str:
    return str(a) if a == b else f"{a or '–'} → {b or '–'}"


def _style(summary_row: Summary) -> str:
    if summary_row.a is None or summary_row.b is None:
        return "yellow"
    before, after = (_rank(n) for n in (summary_row.a, summary_row.b))
    if before == after:
        return "dim"
    return "red" if any(y > x for x, y in zip(before, after, strict=True)) else "green"


def _rank(numbers: Numbers) -> tuple[float, ...]:
    return (numbers.kernels, numbers.spills, numbers.bytes)


def _facts(diff: BundleDiff, width: int) -> Iterator[Text]:
    if diff.facts:
        yield heading("Facts")
    for fact in diff.facts:
        yield Text(f"  {fact.name}")
        for mark, value in (("-", fact.a), ("+", fact.b)):
            for line in fold(str(value), width, first=f"    {mark} ", rest="      "):
                yield Text(line, style=_STYLES[mark])


def _alike(rules: Sequence[RuleDiff]) -> Iterator[tuple[str, RuleDiff]]:
    """What happened to each rule, with the block variants to which the same happened."""
    alike: dict[tuple[object, ...], list[RuleDiff]] = {}
    for rule in rules:
        key = (rule.rule, rule.fired_a, rule.fired_b, tuple(rule.refusals_gone), tuple(rule.refusals_new))
        alike.setdefault(key, []).append(rule)
    for same in alike.values():
        yield ", ".join(rule.where for rule in same), same[0]


def _rule(rule: RuleDiff, where: str, width: int) -> Iterator[Text]:
    fired = f"fired {rule.fired_a} → {rule.fired_b} times" if rule.fired_a != rule.fired_b else ""
    yield heading(f"Rule {rule.rule} in {where}" + (f": {fired}" if fired else ""))
    for mark, word, refusals in (("-", "no longer", rule.refusals_gone), ("+", "now", rule.refusals_new)):
        for refusal in refusals:
            for line in fold(f"{word} refused at {refusal}", width, first=f"  {mark} ", rest="    "):
                yield Text(line, style=_STYLES[mark])


def _kernel(kernel: KernelDiff, width: int) -> Iterator[Text]:
    was = f", {kernel.was} in A" if kernel.was not in ("", kernel.name) else ""
    style = {"added": "bold green", "removed": "bold red"}.get(kernel.status, "bold")
    yield Text(f"Kernel {kernel.name} in {kernel.where}: {kernel.status}{was}", style=style)
    if kernel.what:
        yield from paragraph(f"differs in {', '.join(kernel.what)}", width, style="dim")
    if kernel.instead:
        word = "in the place of" if kernel.status == "added" else "its work is done by"
        yield from paragraph(f"{word} {', '.join(kernel.instead)}", width, style="dim")
    parts = list(_deltas(kernel.a, kernel.b))
    if parts:
        yield from paragraph("; ".join(parts), width)


def _deltas(a: Numbers | None, b: Numbers | None) -> Iterator[str]:
    """Numbers of one kernel, and where there are two, those that differ."""
    if a is None or b is None:
        only = a or b
        if only is not None:
            yield f"{counted(only.registers, 'register')}, {counted(only.spills, 'byte')} spilled"
            yield f"{nbytes(only.bytes)}, floor {microseconds(only.floor_us)}"
        return
    for name, x, y in (
        ("registers", a.registers, b.registers),
        ("spilled bytes", a.spills, b.spills),
        ("bytes of shared memory", a.shared, b.shared),
    ):
        if x != y:
            yield f"{name} {x} → {y}"
    if a.bytes != b.bytes:
        yield f"{nbytes(a.bytes)} → {nbytes(b.bytes)} ({change(a.bytes, b.bytes, 'B')})"
        yield f"floor {microseconds(a.floor_us)} → {microseconds(b.floor_us)}"
    if a.occupancy != b.occupancy:
        yield f"occupancy {_share(a.occupancy)} → {_share(b.occupancy)}"
    if a.us is not None and b.us is not None:
        yield f"{microseconds(a.us)} → {microseconds(b.us)} ({b.us / a.us - 1:+.1%})"


def _share(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.0%}"


def _graph(graph: GraphDiff, width: int) -> Iterator[Text]:
    yield heading(f"Graph {graph.where}")
    nodes = (("added", graph.added, "+"), ("removed", graph.removed, "-"), ("changed", graph.changed, "@"))
    for word, names, mark in nodes:
        if names:
            yield from paragraph(f"{word}: {', '.join(names)}", width, style=_STYLES[mark])
    yield from _code(graph.lines)


def _source(source: SourceDiff) -> Iterator[Text]:
    yield heading(f"Source of {source.name} in {', '.join(source.files)}: {source.status}")
    yield from _code(source.lines)


def _code(lines: Sequence[str]) -> Iterator[Text]:
    for line in lines:
        yield Text(line, style=_STYLES.get(line[:1], ""))
