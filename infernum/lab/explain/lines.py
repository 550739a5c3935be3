"""The lines of Python that a graph came from, with their text where the file is at hand."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from infernum import plugins
from infernum.resources import PACKAGE


def text_of(where: str) -> str | None:
    """The text of a line such as "models/llama.py:34", or of a loaded plugin's; None where it cannot be read.

    Whatever file a bundle names, only those of the package and of plugins are read.
    """
    name, _, number = where.rpartition(":")
    if not number.isdecimal():
        return None
    plugin = next((each.path for each in plugins.loaded() if each.path.name == name), None)
    if plugin is None and (Path(name).is_absolute() or ".." in Path(name).parts):
        return None
    lines = _lines(plugin or PACKAGE / name)
    at = int(number) - 1
    return lines[at].strip() if 0 <= at < len(lines) else None


@lru_cache
def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # ValueError: no text, or no name of a file
        return ()
