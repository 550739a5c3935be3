"""Turns what a request says about the form of its answer into a grammar that the engine follows."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infernum.serve.problems import Problem, invalid
from infernum.worker_process import WorkerProcess

LONGEST = 256 << 10
"""Bytes of a schema, a regular expression or a grammar."""

RECENT = 256
"""Grammars that are known, and need not be looked at when a request brings them again."""

MOST_WAITING = 64
"""Grammars that wait to be looked at; each takes a tenth of a second at most."""

_START = "from infernum.serve.grammar_worker import main; main()"


@dataclass(frozen=True)
class GrammarSource:
    """A grammar as a request brings it in its field `param` (kinds and options: `infernum.serve.grammar_worker`)."""

    param: str
    kind: str
    text: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])


class GrammarCheck:
    """Finds out about grammars in a process of its own, one at a time, beside the event loop and its threads.

    tokenizer  the path of tokenizer.json
    vocab      the model's tokens
    """

    def __init__(self, tokenizer: Path, vocab: int) -> None:
        self._process = WorkerProcess(_START, str(tokenizer), str(vocab))
        self._thread = ThreadPoolExecutor(1)
        self._waiting = 0
        self._recent: OrderedDict[bytes, str] = OrderedDict()

    async def grammar(self, source: GrammarSource) -> str:
        """The grammar of a source (`infernum.engine.grammars`). Raises Problem with llguidance's sentence."""
        if len(source.text.encode("utf-8", "replace")) > LONGEST:
            raise invalid(f"{source.param} is longer than {LONGEST >> 10} KiB; give less", source.param)
        line = json.dumps({"kind": source.kind, "text": source.text, "options": source.options}).encode()
        grammar = self._recent.get(line)
        if grammar is None:
            grammar = self._recent[line] = await self._read(source.param, line)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(line)
        return grammar

    async def _read(self, param: str, line: bytes) -> str:
        if self._waiting == MOST_WAITING:
            raise Problem(
                429,
                f"{MOST_WAITING} grammars are waiting to be looked at: try again",
                kind="rate_limit_error",
                param=param,
                code="queue_full",
                retry=True,
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._checked, param, line)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _checked(self, param: str, line: bytes) -> str:
        match self._process.ask(line):
            case bytes(answer):
                fields = json.loads(answer)
            case code:
                fields = {"error": f"the process that reads it ended ({code})"}
        if "error" in fields:
            raise invalid(f"{param}: {fields['error']}", param)
        return fields["grammar"]
