"""The output of commands: progress bars and warnings on stderr; tables, text and JSON on stdout."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from infernum.cli.streams import is_utf8
from infernum.errors import shown, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from infernum.opening import Progress

PLAIN_WIDTH = 160
"""Columns of a table when stdout is no terminal."""


def console(*, stderr: bool = False) -> Console:
    """A Rich console on stdout or stderr. With NO_COLOR it writes neither colours nor styles such as bold."""
    from rich.console import Console

    on_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        width=None if on_terminal else PLAIN_WIDTH,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
    )


@contextmanager
def progress_bar() -> Generator[Progress | None]:
    """A function that draws a bar for each kind of work on stderr; None when stderr is no terminal, or in CI."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("CI"):
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int, /) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()
) -> None:
    """Print a table on stdout. Columns named in `numbers` are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=visible(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else visible(str(cell)) for cell in row))
    console().print(table)


def text_width() -> int:
    """Columns of the terminal, or PLAIN_WIDTH without a terminal, for output other than tables."""
    return shutil.get_terminal_size((PLAIN_WIDTH, 50)).columns


def size_text(count: float) -> str:
    """Bytes in the unit that reads best: 2.47 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def print_lines(lines: Sequence[Text]) -> None:
    """Print lines of styled text on stdout, without trailing spaces and without wrapping."""
    from rich.console import Console

    printer = Console(highlight=False, markup=False)
    for line in lines:
        line.plain = visible(line.plain).rstrip()
        printer.print(line, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=not is_utf8()))


def warn(warnings: Sequence[str]) -> None:
    """Print each warning on stderr."""
    for warning in warnings:
        say(f"warning: {warning}", err=True)


def say(sentence: str, *, err: bool = False) -> None:
    """Print one sentence on stdout or stderr. Control characters are made visible, and long lines shortened."""
    click.echo(shown(sentence), err=err)
