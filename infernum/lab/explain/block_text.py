"""A block before and after its rules, side by side or one above the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from rich.text import Text

from infernum.lab.explain.amounts import change, counted, nbytes
from infernum.lab.explain.block import BlockExplanation, NodeGroup
from infernum.lab.explain.kernel_text import cost_of, cost_table, step_of
from infernum.lab.explain.paper import PALETTE, fold, heading, paragraph

SIDE_BY_SIDE = 100
"""From so many columns on, before and after stand beside each other."""
_BAR = "▌ "


def block_text(block: BlockExplanation, width: int) -> list[Text]:
    """A block's traced nodes, and beside each group of them the kernels they became, in `width` columns."""
    title = Text().append(f"{block.block}.{block.variant}", style="bold cyan")
    layers = f", {block.layers} layers" if block.layers > 1 else ""
    title.append(f"  {step_of(block.tokens, block.context)}, {block.gpu}, {block.arch}{layers}", style="dim")
    body = _beside(block, width) if width >= SIDE_BY_SIDE else _below(block, width)
    return [title, *body, *_totals(block, width)]


def _beside(block: BlockExplanation, width: int) -> Iterator[Text]:
    left = min(width * 11 // 20, 90)
    right = width - left - 1
    was = f"before: {counted(block.before.kernels, 'kernel')}"
    yield heading(f"{was:<{left}} after: {counted(block.after.kernels, 'kernel')}")
    for i, group in enumerate(block.groups):
        colour = PALETTE[i % len(PALETTE)]
        before, after = list(_before(group, left - 3)), list(_after(group, right - 2))
        blank = Text("")
        for here, there in zip_longest(before, after, fillvalue=blank):
            line = Text().append(_BAR, style=colour).append(here)
            line.append(" " * max(1, left - 1 - len(here.plain)))
            yield line.append(_BAR, style=colour).append(there)
        yield blank


def _below(block: BlockExplanation, width: int) -> Iterator[Text]:
    yield heading(f"before: {counted(block.before.kernels, 'kernel')}; after: {block.after.kernels}")
    for i, group in enumerate(block.groups):
        colour = PALETTE[i % len(PALETTE)]
        before = (Text("  ").append(line) for line in _before(group, width - 4))
        for line in (*_after(group, width - 2), *before):
            yield Text().append(_BAR, style=colour).append(line)
        yield Text("")


def _before(group: NodeGroup, width: int) -> Iterator[Text]:
    """The traced nodes of a group, each with its line of Python."""
    for traced in group.before:
        call, place, style = traced.call, ", ".join(traced.call.where), "dim" if traced.free else ""
        text = f"{', '.join(call.results)} = {call.op}({', '.join(call.operands)})"
        text += "  (free)" if traced.free else ""
        first, *more = fold(text, width - len(place) - 1, rest="    ")
        yield Text().append(f"{first:<{width - len(place)}}", style=style).append(place, style="dim")
        yield from (Text(line, style=style) for line in more)


def _after(group: NodeGroup, width: int) -> Iterator[Text]:
    """The kernels of a group, and the rules that made them."""
    for facts in group.kernels:
        yield Text(facts.kernel.name, style="bold")
        yield from paragraph(" → ".join(facts.kernel.ops), width)
        yield from paragraph(cost_of(facts), width)
    if group.rules:
        names = ", ".join(dict.fromkeys(r.rule for r in group.rules))
        yield from paragraph(f"by {names}", width, style="dim")
    before, after = group.amount_before, group.amount_after
    if before.kernels != after.kernels or before.bytes != after.bytes:
        kernels = f"{counted(before.kernels, 'kernel')} → {after.kernels}"
        yield from paragraph(f"{kernels}, {change(before.bytes, after.bytes, 'B')}", width, style="dim")


def _totals(block: BlockExplanation, width: int) -> list[Text]:
    before, after = block.before, block.after
    each = "the whole block" if block.layers <= 1 else f"one of {block.layers} layers"
    lines = [heading(f"{block.block}.{block.variant}: {each}"), *cost_table(before, after)]
    saved, fewer = before.bytes - after.bytes, before.kernels - after.kernels
    if not saved and not fewer:
        return [*lines, Text("  as many kernels as before, and the same bytes")]
    share = f" ({abs(saved) / before.bytes:.2%})" if before.bytes else ""
    verb = "less" if saved >= 0 else "more"
    text = f"{fewer} fewer to launch, {nbytes(abs(saved))}{share} {verb} to move"
    return [*lines, *paragraph(text, width)]
