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
from infernum.serve.problems import Problem
from infernum.serve.requests import Generating
from infernum.serve.responses import PromptDetails, Usage
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with closing(self.served.generate(self.wishes, scope.get(KEY_HASH, ""), self.id)) as generation:
            if self.request.stream:
                events, ending = partial(self.events, generation), partial(self.ending, generation)
                await stream(generation, events, ending, scope, receive, send)
            else:
                answer = await whole(self._whole(generation), receive)
                await Answer(answer)(scope, receive, send)

    @abstractmethod
    def response(self, pieces: list[Piece], usage: Usage) -> Any:
        """The body of a whole answer: a piece is a whole choice."""

    @abstractmethod
    def events(self, generation: Generation) -> bytes:
        """The events of what has come since the last ones. Raises Problem."""

    @abstractmethod
    def ending(self, generation: Generation, problem: Problem | None) -> bytes:
        """The last events of a stream, which a problem has ended, or nothing."""

    def usage(self, generation: Generation) -> Usage:
        """The numbers of tokens so far."""
        prompt, output = sum(map(len, self.prompts)), generation.output_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptDetails(cached_tokens=generation.cached_tokens),
        )

    async def _whole(self, generation: Generation) -> Any:
        choices = [Gathered() for _ in self.wishes]
        while generation.unfinished:
            await generation.news()
            for piece in generation.pieces():
                choices[piece.index].take(piece)
        return self.response(
            [choice.piece(index) for index, choice in enumerate(choices)], self.usage(generation)
        )
