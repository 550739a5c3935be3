"""A conversation with a model: what was said, and answers that are printed as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from infernum.chat.messages import Message
from infernum.cli.console import say
from infernum.cli.streams import is_utf8, write
from infernum.engine.events import Event
from infernum.errors import RequestError, visible
from infernum.llm import LLM
from infernum.sampling_params import SamplingParams, derived_seed


class Session:
    """A conversation with a model.

    params         how answers are chosen
    template_args  further variables of the chat template
    as_json        print an answer as one line of JSON when it has ended, rather than as it comes
    messages       what was said, from the system message on, where there is one
    answering      True while an answer is generated
    stopped        set to True, it ends the answer that is being generated
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        template_args: Mapping[str, Any],
        *,
        system: str | None = None,
        as_json: bool = False,
    ) -> None:
        self.llm = llm
        self.params = params
        self.template_args = template_args
        self.as_json = as_json
        self.messages: list[Message] = []
        self.answering = self.stopped = False
        self._attempt = 0
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Begin a new conversation, with a system message where there is one."""
        self.messages = [] if system is None else [_message("system", system)]

    @property
    def system(self) -> str | None:
        """The system message."""
        return next((message["content"] for message in self.messages if message["role"] == "system"), None)

    def ask(self, text: str) -> None:
        """Add a message of the user, and answer it. Raises InfernumError, and leaves the message out then."""
        self.messages.append(_message("user", text))
        self._attempt = 0
        try:
            self._answer()
        except BaseException:
            self.messages.pop()
            raise

    def retry(self) -> None:
        """Replace the last answer. Raises RequestError where there is none."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise RequestError("there is no answer to replace; ask something first")
        answer = self.messages.pop()
        self._attempt += 1  # else a fixed seed would give the same answer
        try:
            self._answer()
        except BaseException:
            self.messages.append(answer)
            raise

    def _answer(self) -> None:
        """Generate and print an answer, and add it to the messages; if it is stopped, what there is of it."""
        params = self.params
        if params.seed is not None:
            params = replace(params, seed=derived_seed(params.seed, self._attempt))
        stream = self.llm.stream_chat(self.messages, params, template_args=self.template_args)
        tokens: list[int] = []
        text, reason = "", "interrupted"
        self.answering, self.stopped = True, False
        try:
            with closing(cast("Generator[Event]", stream)) as events:
                for event in events:
                    tokens += event.tokens
                    text += event.text
                    reason = event.finish_reason or reason
                    if not self.as_json:
                        _print(event.text)
                    if self.stopped:
                        break
        finally:
            self.answering = False
        if self.as_json:
            self._print_json(text, tokens, reason)
        elif not text.endswith("\n"):
            write("\n")
        self.messages.append(_message("assistant", text))
        if reason == "length":
            say("(cut here: max_tokens or the context has ended)", err=True)

    def _print_json(self, text: str, tokens: list[int], reason: str) -> None:
        prompt = self.llm.encode_chat(self.messages, template_args=self.template_args)
        line = {
            **_message("assistant", text),
            "finish_reason": reason,
            "prompt_tokens": len(prompt),
            "output_tokens": len(tokens),
        }
        write(json.dumps(line, ensure_ascii=not is_utf8()) + "\n")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _print(text: str) -> None:
    """Print a piece of an answer. A terminal obeys nothing in it."""
    write(visible(text) if sys.stdout.isatty() else text)
