"""HTML pages of one file each: their templates, and the look and the scripts that all of them share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_PLACE = re.compile(r"\{\{ (\w+) \}\}")


def read(package: str, name: str) -> str:
    """The text of a file in the folder `web` of a package. `read("infernum", "theme.css")` is a shared one."""
    return files(package).joinpath("web", *name.split("/")).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The page of a template: each `{{ name }}` in it becomes that part. Raises KeyError for an unknown name."""
    return _PLACE.sub(lambda place: parts[place[1]], template)


def checked_script(text: str) -> str:
    """A script as it may stand in a page; one that contains the end of its own element is our mistake."""
    assert "</script" not in text.lower(), "a script would end the element that it is put into"
    return text
