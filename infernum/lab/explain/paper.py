"""Lines of text with colours, laid out for a number of columns; a console decides whether the colours are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.text import Text

PALETTE = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
"""Colours of groups, in turn."""


def heading(text: str) -> Text:
    """The title of a part."""
    return Text(text, style="bold")


def fold(text: str, width: int, *, first: str = "", rest: str | None = None) -> list[str]:
    """A text on as many lines as it takes, with `first` before the first and `rest` before all others."""
    indent = " " * len(first) if rest is None else rest
    lines = textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def paragraph(
    text: str, width: int, *, first: str = "  ", rest: str | None = None, style: str = ""
) -> list[Text]:
    """A folded text."""
    return [Text(line, style=style) for line in fold(text, width, first=first, rest=rest)]


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[Text]:
    """Rows in columns under a dim header, the first row."""
    header, *lines = columns(rows, right=right)
    return [Text(header, style="dim"), *map(Text, lines)]


def columns(rows: Sequence[Sequence[str]], *, indent: str = "  ", right: Sequence[int] = ()) -> list[str]:
    """Cells one below the other, two spaces apart; the columns `right` are aligned to the right."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        (
            indent
            + "  ".join(
                cell.rjust(size) if i in right else cell.ljust(size)
                for i, (cell, size) in enumerate(zip(row, sizes, strict=True))
            )
        ).rstrip()
        for row in rows
    ]
