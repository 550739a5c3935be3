"""One request's sequences while they run: the engine's tokens become text, piece by piece, for each choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, cast

from infernum.engine.tokenizer import TextStream, Tokenizer
from infernum.sampling_params import SamplingParams
from infernum.serve.engine_client import EngineClient, EngineGone, Inbox
from infernum.serve.metrics import Ended, Metrics
from infernum.serve.problems import Problem, internal, invalid, unavailable

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Wish:
    """One sequence to generate: the token ids of its prompt, and how.

    `stop` and `stop_tokens` are those that the request names, and that are named as the reason of an end.
    """

    prompt: list[int]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    includes_stop: bool = False
    priority: int = 0
    salt: str = ""


@dataclass(frozen=True)
class Piece:
    """What has come for the choice `index` since its last piece.

    `stop_reason` is the stop string or the stop token that has ended it.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass
class _Choice:
    """A sequence of a request. `read` is when the last of its tokens that were read had come."""

    wish: Wish
    number: int
    inbox: Inbox
    text: TextStream | None
    output: list[int] = field(default_factory=list[int])
    read: float | None = None
    finished: bool = False


class Generation:
    """The sequences of a request. Leaving the context stops those that have not ended."""

    def __init__(
        self, engine: EngineClient, tokenizer: Tokenizer | None, wishes: list[Wish], metrics: Metrics
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._choices: list[_Choice] = []
        try:
            for wish in wishes:
                number, inbox = engine.add(
                    wish.prompt, wish.params, self._wake, priority=wish.priority, salt=wish.salt
                )
                text = TextStream(tokenizer, wish.prompt, wish.stop) if tokenizer else None
                self._choices.append(_Choice(wish, number, inbox, text))
        except EngineGone as error:
            self.close()
            raise unavailable(str(error)) from error

    def close(self) -> None:
        """Stop what has not ended."""
        self._engine.cancel([choice.number for choice in self._choices])

    @property
    def output_tokens(self) -> int:
        """Number of tokens generated so far, of all choices."""
        return sum(len(choice.output) for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Number of prompt tokens that the cache had, of all choices."""
        return sum(choice.inbox.cached_tokens for choice in self._choices)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What has come since the last list, until every choice has ended. Raises Problem."""
        unfinished = len(self._choices)
        while unfinished:
            await self._wake.wait()
            self._wake.clear()
            pieces = [
                piece for index, choice in enumerate(self._choices) for piece in self._read(index, choice)
            ]
            unfinished -= sum(piece.finish_reason is not None for piece in pieces)
            if pieces:
                yield pieces

    def _read(self, index: int, choice: _Choice) -> list[Piece]:
        inbox = choice.inbox
        if choice.finished:
            return []
        if inbox.error is not None:
            raise _problem(inbox)
        if not inbox.tokens and inbox.finish_reason is None:
            return []
        tokens, inbox.tokens = inbox.tokens, []
        if choice.read is not None and inbox.last is not None and tokens:
            for _ in tokens:
                self._metrics.gap.observe((inbox.last - choice.read) / len(tokens))
        choice.read = inbox.last
        piece = self._spelled(index, choice, tokens, cast("FinishReason | None", inbox.finish_reason))
        choice.output += piece.tokens
        if piece.finish_reason is not None:
            choice.finished = True
            self._count(choice, piece.finish_reason)
            self._engine.cancel([choice.number])
        return [piece]

    def _count(self, choice: _Choice, reason: str) -> None:
        inbox, params = choice.inbox, choice.wish.params
        first, last = inbox.first or inbox.asked, inbox.last or inbox.asked
        begun = min(first, inbox.begun or first)
        ended = Ended(
            reason,
            len(choice.wish.prompt),
            len(choice.output),
            params.max_tokens,
            inbox.asked,
            begun,
            first,
            last,
        )
        self._metrics.ended(ended)

    def _spelled(self, index: int, choice: _Choice, tokens: list[int], reason: FinishReason | None) -> Piece:
        """The piece of these tokens. A stop string ends the choice with the token that completes it."""
        stream, stop_token = choice.text, None
        if reason == "stop" and tokens and tokens[-1] in choice.wish.stop_tokens:
            stop_token = tokens[-1]
        if stream is None:
            return Piece(index, "", tuple(tokens), reason, stop_token)
        parts: list[str] = []
        place = -1
        for place, token in enumerate(tokens):
            ends = reason == "stop" and place == len(tokens) - 1
            if not ends or stream.hides(token):
                parts.append(stream.push(token))
            if stream.stopped:
                break
        else:
            if reason is not None:
                parts.append(stream.flush())
        if not stream.stopped:
            return Piece(index, "".join(parts), tuple(tokens), reason, stop_token)
        if choice.wish.includes_stop:
            parts.append(stream.stop_text or "")
        return Piece(index, "".join(parts), tuple(tokens[: place + 1]), "stop", stream.stop_text or "")


def _problem(inbox: Inbox) -> Problem:
    assert inbox.error is not None, "there is an error"
    return (
        invalid(inbox.error)
        if not inbox.ours
        else internal(inbox.error)
        if inbox.first
        else unavailable(inbox.error)
    )
