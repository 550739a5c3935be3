"""Renders templates in a process of their own, which can be ended whatever a template does."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any, cast

from infernum.errors import ConfigError, InfernumError, RequestError
from infernum.worker_process import WorkerProcess

_START = "from infernum.chat.worker import main; main()"


class TemplateProcess:
    """A process that renders templates, one at a time. It starts at the first rendering, and again after it was ended.

    Safe for use by several threads.
    """

    def __init__(self) -> None:
        self._process = WorkerProcess(_START)

    def render(self, template: str, where: str, variables: Mapping[str, Any], now: str) -> str:
        """The text of a template. `where` is its place, for errors; `now` the time in ISO 8601 notation.

        Raises ConfigError for a template that is none, and RequestError for one that cannot render `variables`.
        """
        try:
            request = json.dumps({"template": template, "variables": variables, "now": now}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"messages, tools and template_args must be values of JSON ({error or type(error).__name__})"
            ) from error
        answer = self._answer(request)
        text = answer.get("text")
        if text is None:
            raise _failure(where, answer["error"], " ".join(answer["message"].split()).rstrip("."))
        return text

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _answer(self, request: bytes) -> dict[str, str]:
        match self._process.ask(request):
            case bytes(line):
                return cast("dict[str, str]", json.loads(line))
            case returncode if returncode == -signal.SIGPROF:
                return {"error": "limit", "message": "it needs more than half a second of processor time"}
            case returncode:
                return {"error": "limit", "message": f"the process that renders it ended ({returncode})"}


def _failure(where: str, kind: str, message: str) -> InfernumError:
    match kind:
        case "syntax":
            return ConfigError(f"{where}: {message}; mend the template, or give another with --chat-template")
        case "refusal":
            return RequestError(f"the chat template refuses these messages: {message}")
        case "security":
            return RequestError(f"{where}: {message}; the template may not do this: give another")
        case "limit":
            return RequestError(f"{where}: {message}; shorten the messages, or give another template")
        case _:
            return RequestError(f"{where}: {message}; the template cannot render these messages")
