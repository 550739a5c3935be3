"""The page at /: one HTML file without data, whose scripts ask the server for it as any client does."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from starlette.responses import Response

from infernum import web

PACKAGE = "infernum.serve"
SCRIPTS = (
    "words.js",
    "client.js",
    "metrics.js",
    "history.js",
    "plot.js",
    "plots.js",
    "sequences.js",
    "transcript.js",
    "chat.js",
    "key.js",
    "main.js",
)
"""In the order in which they are run; functions of all of them are called once `main.js` starts the page."""


@cache
def page() -> Response:
    """The page, with a policy by which it runs its own script alone and talks with this server alone."""
    scripts = [web.read("infernum", "elements.js"), *(web.read(PACKAGE, name) for name in SCRIPTS)]
    script = web.checked_script("\n".join(scripts))
    style = web.read("infernum", "theme.css") + web.read(PACKAGE, "page.css")
    html = web.fill(web.read(PACKAGE, "page.html"), {"style": style, "script": script})
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(html, headers=headers, media_type="text/html")


def _source(text: str) -> str:
    """The text of an element as a Content-Security-Policy names it (CSP Level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
