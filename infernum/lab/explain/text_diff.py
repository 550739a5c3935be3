"""Graphs and emitted sources of two bundles, line by line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infernum.bundle import Bundle, sections

_NODE = re.compile(r"  %(\w+)")
_COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class GraphDiff:
    """How the graph of a block variant differs: its nodes by name, and its text as a unified diff."""

    where: str
    added: list[str]
    removed: list[str]
    changed: list[str]
    lines: list[str]


@dataclass(frozen=True)
class SourceDiff:
    """How one part of emitted sources differs: `name` is a kernel or an included file, in all of `files`.

    `lines` is a unified diff; it is empty for an included file that only one bundle has (`status`).
    """

    name: str
    status: str
    files: list[str]
    lines: list[str]


def unified(before: str, after: str) -> tuple[str, ...]:
    """A unified diff without the lines that name files."""
    return tuple(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))[2:]


def graph_diff(where: str, before: str, after: str) -> GraphDiff | None:
    """How the text of a graph differs; None where it is the same."""
    if before == after:
        return None
    old, new = _nodes(before), _nodes(after)
    return GraphDiff(
        where,
        added=[name for name in new if name not in old],
        removed=[name for name in old if name not in new],
        changed=[name for name in new if name in old and new[name] != old[name]],
        lines=list(unified(before, after)),
    )


def _nodes(text: str) -> dict[str, str]:
    """The calls of a graph by name, with the body of a fused one; the lines of Python do not count."""
    lines_of: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        node = _NODE.match(line)
        if node:
            name = node[1]
        if name and line.startswith("  ") and not line.startswith("  return "):
            lines_of.setdefault(name, []).append(_COMMENT.sub("", line))
    return {name: "\n".join(lines) for name, lines in lines_of.items()}


def source_diffs(
    a: Bundle, b: Bundle, files: list[tuple[str, str]], renamed: Mapping[str, Mapping[str, str]]
) -> list[SourceDiff]:
    """How emitted files differ, part by part. A part that differs alike in several files is listed once.

    `files` are pairs of a file of `a` and the one of `b` to compare it with, "" for none. `renamed` has, by file of
    `b`, what its kernels are called in `a`, where that is another name.
    """
    files_of: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for before, after in files:
        old = sections(a.read(before).decode()) if before else {}
        new = sections(b.read(after).decode()) if after else {}
        for part in _parts(old, new, renamed.get(after, {})):
            files_of.setdefault(part, []).append(after or before)
    return [SourceDiff(name, status, files, list(lines)) for (name, status, lines), files in files_of.items()]


def _parts(
    old: Mapping[str, str], new: Mapping[str, str], names: Mapping[str, str]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(name, status, diff) of every part that differs: the parts of `new` in order, then the removed parts."""
    for name, text in new.items():
        before = names.get(name, name)
        if before not in old:
            yield name, "added", () if _is_included(name) else unified("", text)
        elif old[before] != text:
            status = "changed" if before == name else f"changed, was {before}"
            yield name, status, unified(old[before], text)
    matched = {names.get(name, name) for name in new}
    for name, text in old.items():
        if name not in matched:
            yield name, "removed", () if _is_included(name) else unified(text, "")


def _is_included(name: str) -> bool:
    """True for the name of an included file: kernels have no dot."""
    return "." in name
