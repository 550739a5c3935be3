"""The process that renders chat templates: reads requests from stdin, and writes an answer to stdout for each.

Request and answer are one line of JSON each. What a request may use is limited by the system, so that no template
needs to be trusted: processor time by a timer whose signal ends the process, memory by a limit on its addresses.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2.debug  # noqa: F401  # which Jinja imports at the first error, when memory may be short
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from infernum.chat.sandbox import Refusal, environment
from infernum.worker_process import limit_memory

SECONDS = 0.5
"""Processor time of one rendering."""

MEBIBYTES = 512
"""Memory that renderings may take on top of what the process has."""

LONGEST = 1 << 23
"""Characters of a rendered conversation."""

LONGEST_MESSAGE = 1000
"""Characters of an error."""

TEMPLATE_FILE = "<template>"
"""The name of a template in Python's tracebacks, which Jinja gives it."""


class TooLong(Exception):
    """The text has more than LONGEST characters."""


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """A template, compiled."""
    return environment().from_string(template)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The `text` of a request; or its `error`, which is the kind of failure, and a `message`.

    A request has the text of the `template`, the `variables`, and the time `now` in ISO 8601 notation.
    """
    try:
        template = compiled(request["template"])
        template.globals["strftime_now"] = datetime.fromisoformat(request["now"]).strftime
        return {"text": _rendered(template, request["variables"])}
    except TemplateSyntaxError as error:
        kind, message = "syntax", f"line {error.lineno}: {error.message}"
    except Refusal as error:
        kind, message = "refusal", str(error)
    except TooLong:
        kind, message = "limit", f"its text has more than {LONGEST:,} characters"
    except MemoryError:
        kind, message = "limit", f"it needs more than {MEBIBYTES} MiB of memory"
    except SecurityError as error:
        kind, message = "security", f"{_line(error)}{error}"
    except Exception as error:  # whatever a template does wrong
        kind, message = "failure", f"{_line(error)}{error or type(error).__name__}"
    return {"error": kind, "message": message[:LONGEST_MESSAGE]}


def main() -> None:
    """Answer requests until stdin ends."""
    limit_memory(MEBIBYTES)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        result = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(result + "\n")
        sys.stdout.flush()


def _rendered(template: Template, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(variables):
        length += len(piece)
        if length > LONGEST:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def _line(error: Exception) -> str:
    """The line of the template that failed, as the beginning of a message."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEMPLATE_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "
