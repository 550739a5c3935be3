"""One HTML file of a report's data: styles, scripts and libraries are put into it, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

LIBRARIES = ("d3", "dagre", "highlight")
SCRIPTS = (
    "model.js",
    "state.js",
    "elements.js",
    "layout.js",
    "pane.js",
    "nodes.js",
    "graph.js",
    "source.js",
    "kernel.js",
    "details.js",
    "search.js",
    "rules.js",
    "memory.js",
    "roofline.js",
    "overview.js",
    "main.js",
)
"""In the order in which they are run; functions of all of them are called once `main.js` starts the page."""

_PLACE = re.compile(r"\{\{ (\w+) \}\}")
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)


def html_of(data: Mapping[str, Any], title: str) -> str:
    """The page about some data, as `infernum.lab.report.data.report_data` gives it. Same data, same text."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": escape(title),
        "style": _read("report.css"),
        "data": text.replace("<", "\\u003c"),
        "libraries": "\n".join(map(_library, LIBRARIES)),
        "scripts": "\n".join(_script(_read(name)) for name in SCRIPTS),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _read("report.html"))


def _library(name: str) -> str:
    """A library with its licence, which must accompany it, and without the reference to its source map."""
    code = _SOURCE_MAP.sub("", _read(f"vendor/{name}.min.js"))
    return _script(f"/*!\n{_read(f'vendor/{name}.LICENSE')}*/\n{code}")


def _script(text: str) -> str:
    assert "</script" not in text.lower(), "a script would end the element that it is put into"
    return f"<script>\n{text}</script>"


def _read(name: str) -> str:
    return files("infernum.lab.report").joinpath("web", *name.split("/")).read_text(encoding="utf-8")
