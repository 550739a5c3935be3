"""What differs between two bundles as a person reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from infernum.lab.explain.amounts import change, counted, microseconds, nbytes
from infernum.lab.explain.difference import BundleDiff, RuleDiff, Summary
from infernum.lab.explain.kernel_difference import KernelDiff, Numbers
from infernum.lab.explain.paper import columns, heading, paragraph
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
        step = f"  one step: {before:.3f} ms → {after:.3f} ms ({after / before - 1:+.1%})"
        lines.append(Text(step, style="bold"))
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


_NUMBERS: dict[str, Callable[[Numbers], str]] = {
    "kernels": lambda n: str(n.kernels),
    "registers": lambda n: str(n.registers),
    "spilled": lambda n: str(n.spills),
    "bytes": lambda n: nbytes(n.bytes),
    "floor": lambda n: microseconds(n.floor_us),
    "time": lambda n: "–" if n.us is None else microseconds(n.us),
}
"""Columns of the table at the top; the last one is printed where times were measured."""


def _summary(summary: Sequence[Summary]) -> Iterator[Text]:
    """The table at the top: numbers that differ as A → B, the others once."""
    timed = any(n is not None and n.us is not None for s in summary for n in (s.a, s.b))
    numbers = [name for name in _NUMBERS if timed or name != "time"]
    rows = [(s.where, str(s.tokens), *(_cell(s, _NUMBERS[name]) for name in numbers)) for s in summary]
    header, *lines = columns([("block", "tokens", *numbers), *rows], right=range(1, 2 + len(numbers)))
    yield heading(header)
    for line, s in zip(lines, summary, strict=True):
        yield Text(line, style=_style(s))


def _cell(s: Summary, text: Callable[[Numbers], str]) -> str:
    a, b = (n and text(n) for n in (s.a, s.b))
    return str(a) if a == b else f"{a or '–'} → {b or '–'}"


def _style(s: Summary) -> str:
    if s.a is None or s.b is None:
        return "yellow"
    if all(before == after for _, before, after in s.costs):
        return "dim"
    return "red" if any(after > before for _, before, after in s.costs) else "green"


def _facts(diff: BundleDiff, width: int) -> Iterator[Text]:
    if diff.facts:
        yield heading("Facts")
    for fact in diff.facts:
        yield Text(f"  {fact.name}")
        for mark, value in (("-", fact.a), ("+", fact.b)):
            yield from paragraph(value, width, first=f"    {mark} ", style=_STYLES[mark])


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
            text = f"{word} refused at {refusal}"
            yield from paragraph(text, width, first=f"  {mark} ", style=_STYLES[mark])


def _kernel(kernel: KernelDiff, width: int) -> Iterator[Text]:
    was = f", {kernel.was} in A" if kernel.was not in ("", kernel.name) else ""
    style = {"added": "bold green", "removed": "bold red"}.get(kernel.status, "bold")
    yield Text(f"Kernel {kernel.name} in {kernel.where}: {kernel.status}{was}", style=style)
    if kernel.what:
        yield from paragraph(f"differs in {', '.join(kernel.what)}", width, style="dim")
    if kernel.instead:
        word = "in the place of" if kernel.status == "added" else "its work is done by"
        yield from paragraph(f"{word} {', '.join(kernel.instead)}", width, style="dim")
    deltas = "; ".join(_deltas(kernel.a, kernel.b))
    if deltas:
        yield from paragraph(deltas, width)


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
        shares = ("–" if n.occupancy is None else f"{n.occupancy:.0%}" for n in (a, b))
        yield f"occupancy {' → '.join(shares)}"
    if a.us is not None and b.us is not None:
        yield f"{microseconds(a.us)} → {microseconds(b.us)} ({b.us / a.us - 1:+.1%})"


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
