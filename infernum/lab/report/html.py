"""One HTML file of a report's data: styles, scripts and libraries are put into it, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from infernum import web

PACKAGE = "infernum.lab.report"

LIBRARIES = ("d3", "dagre", "highlight")
SCRIPTS = (
    "model.js",
    "state.js",
    "tables.js",
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

_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)


def html_of(data: Mapping[str, Any], title: str) -> str:
    """The page about some data, as `infernum.lab.report.data.report_data` gives it. Same data, same text."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    scripts = [web.read("infernum", "elements.js"), *(web.read(PACKAGE, name) for name in SCRIPTS)]
    parts = {
        "title": escape(title),
        "style": web.read("infernum", "theme.css") + web.read(PACKAGE, "report.css"),
        "data": text.replace("<", "\\u003c"),
        "libraries": "\n".join(map(_library, LIBRARIES)),
        "scripts": "\n".join(map(_script, scripts)),
    }
    return web.fill(web.read(PACKAGE, "report.html"), parts)


def _library(name: str) -> str:
    """A library with its licence, which must accompany it, and without the reference to its source map."""
    code = _SOURCE_MAP.sub("", web.read(PACKAGE, f"vendor/{name}.min.js"))
    return _script(f"/*!\n{web.read(PACKAGE, f'vendor/{name}.LICENSE')}*/\n{code}")


def _script(text: str) -> str:
    return f"<script>\n{web.checked_script(text)}</script>"
