"""Renders templates in a process of their own, which can be ended whatever a template does."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import IO, Any, cast

from infernum.errors import ConfigError, InfernumError, RequestError

PATIENCE = 30.0
"""Seconds after which the process is ended in any case: it may be starved, since it counts processor time only."""

LONGEST_ANSWER = 1 << 27
"""Bytes. No answer of `infernum.chat.worker` is longer."""

_START = "from infernum.chat.worker import main; main()"


class TemplateProcess:
    """A process that renders templates, one at a time. It starts at the first rendering, and again after it was ended.

    Safe for use by several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., TemplateProcess] | None = None

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
        with self._lock:
            answer = self._answer(request)
        text = answer.get("text")
        if text is None:
            raise _failure(where, answer["error"], " ".join(answer["message"].split()).rstrip("."))
        return text

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _answer(self, request: bytes) -> dict[str, str]:
        """The answer of the process. Ends a process that gives none, or whose answer nobody waits for."""
        process = self._started()
        stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        line = b""
        try:
            with suppress(BrokenPipeError):
                stdin.write(request + b"\n")
                stdin.flush()
                line = _read_line(stdout.fileno())
        finally:
            if not line:
                self.close()
        if line:
            return cast("dict[str, str]", json.loads(line))
        if process.returncode == -signal.SIGPROF:
            return {"error": "limit", "message": "it needs more than half a second of processor time"}
        return {"error": "limit", "message": f"the process that renders it ended ({process.returncode})"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C is for this process only
            )
            self._end = weakref.finalize(self, _end, self._process)
        return self._process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes. The return code of one that has ended by itself stays."""
    process.kill()
    with suppress(BrokenPipeError), process:
        pass


def _read_line(file: int) -> bytes:
    """A line of a pipe; empty where the pipe ends or nothing comes for too long."""
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(file, select.POLLIN)
    line = bytearray()
    while len(line) <= LONGEST_ANSWER and poll.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
        piece = os.read(file, 1 << 20)
        line += piece
        if piece.endswith(b"\n"):
            return bytes(line)
        if not piece:
            break
    return b""


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
