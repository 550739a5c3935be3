"""The process that reads the grammars of requests, whatever they are: one line of JSON for each, and one as answer.

Each grammar is compiled by a child of its own, which the system ends by signal when it takes too much processor time,
and which gets no more memory when it has too much. The child has the tokens of the model from its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from infernum.engine.grammars import Grammars, text_of
from infernum.errors import RequestError
from infernum.grammar import Grammar
from infernum.worker_process import limit_memory

SECONDS = 0.06
"""Processor time of one grammar."""

MEBIBYTES = 256
"""Memory of one grammar."""

STACK = 1 << 20
"""Bytes of the stack on which a grammar is read here; the engine's threads have more."""


def answer(grammars: Grammars, request: dict[str, Any]) -> dict[str, str]:
    """The `grammar` of a request, or the `error` that says what is wrong with it."""
    try:
        grammar = text_of(Grammar(request["kind"], request["text"], request["options"]))
        grammars.check(grammar)
    except MemoryError:
        return {"error": f"it needs more than {MEBIBYTES} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except RequestError as error:
        return {"error": str(error)}
    return {"grammar": grammar}


def main() -> None:
    """Answer requests until stdin ends. The arguments are the path of tokenizer.json, and the model's tokens."""
    grammars = Grammars(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(_answered(grammars, line) + b"\n")
        sys.stdout.buffer.flush()


def _answered(grammars: Grammars, line: bytes) -> bytes:
    try:
        _ = grammars.tokenizer
    except RequestError as error:
        return json.dumps({"error": str(error)}).encode()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        limit_memory(MEBIBYTES)
        threading.stack_size(STACK)
        thread = threading.Thread(target=_write_answer, args=(writer, grammars, line))
        thread.start()
        thread.join()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        body = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return json.dumps({"error": f"it takes more than {SECONDS * 1e3:.0f} ms to compile"}).encode()
    if not body:
        return json.dumps({"error": f"it is nested too deeply, or needs more than {MEBIBYTES} MiB"}).encode()
    return body


def _write_answer(writer: int, grammars: Grammars, line: bytes) -> None:
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(answer(grammars, json.loads(line))).encode())
