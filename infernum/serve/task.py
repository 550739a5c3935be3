"""A request that generates, read and found right, whose answer is made as a whole or as a stream of events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.types import Receive, Scope, Send

from infernum.serve.exchange import Answer, stream, whole
from infernum.serve.generation import Gathered, Generation, Piece, Wish
from infernum.serve.guards import KEY_HASH
from infernum.serve.requests import Generating
from infernum.serve.responses import TEXT, PromptDetails, Usage, around_text, encode, event
from infernum.serve.served import Served

Asked = TypeVar("Asked", bound=Generating)


@dataclass
class Task(ABC, Generic[Asked]):
    """One request, as the ASGI application that answers it. A subclass knows the form of its endpoint."""

    served: Served
    request: Asked
    id: str
    model: str
    prompts: list[list[int]]
    wishes: list[Wish]
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        options = self.request.stream_options
        self._ends_with_usage = bool(options and options.include_usage)
        self._always_has_usage = bool(options and options.continuous_usage_stats)
        self._around_text: dict[int, tuple[bytes, bytes]] = {}
        self._in_full: set[int] = set(range(len(self.wishes))) if self._always_has_usage else set()
        """Choices whose next event differs from the last one in more than its text."""
        self._opening = self.opening() if self.request.stream else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with closing(self.served.generate(self.wishes, scope.get(KEY_HASH, ""))) as generation:
            if self.request.stream:
                await stream(
                    generation,
                    partial(self._events, generation),
                    partial(self._last_event, generation),
                    scope,
                    receive,
                    send,
                )
            else:
                answer = await whole(self._whole(generation), receive)
                await Answer(answer)(scope, receive, send)

    def opening(self) -> bytes:
        """The events in front of the first text."""
        return b""

    @abstractmethod
    def response(self, pieces: list[Piece], usage: Usage) -> Any:
        """The body of a whole answer: a piece is a whole choice."""

    @abstractmethod
    def chunk(self, piece: Piece | None, usage: Usage | None) -> Any:
        """The body of an event: what a piece adds to its choice, or nothing but numbers of tokens."""

    async def _whole(self, generation: Generation) -> Any:
        choices = [Gathered() for _ in self.wishes]
        while generation.unfinished:
            await generation.news()
            for piece in generation.pieces():
                choices[piece.index].take(piece)
        return self.response(
            [choice.piece(index) for index, choice in enumerate(choices)], self._usage(generation)
        )

    def _events(self, generation: Generation) -> bytes:
        """The events of what has come since the last ones. Raises Problem."""
        body, self._opening = self._opening, b""
        for piece in generation.pieces():
            if not piece.is_text or piece.index in self._in_full:
                body += event(self.chunk(piece, self._usage(generation) if self._always_has_usage else None))
                if not self._always_has_usage:
                    self._in_full.discard(piece.index)
            elif piece.text:
                front, behind = self._around_text.get(piece.index) or self._cut(piece.index)
                body += front + encode(piece.text) + behind
        return body

    def _cut(self, index: int) -> tuple[bytes, bytes]:
        """What stands around the text in the plain events of a choice."""
        around = self._around_text[index] = around_text(self.chunk(Piece(index, TEXT, [], []), None))
        return around

    def _last_event(self, generation: Generation) -> bytes:
        return event(self.chunk(None, self._usage(generation))) if self._ends_with_usage else b""

    def _usage(self, generation: Generation) -> Usage:
        """The numbers of tokens so far."""
        prompt, output = sum(map(len, self.prompts)), generation.output_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptDetails(cached_tokens=generation.cached_tokens),
        )
