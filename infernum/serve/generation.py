"""One request's sequences while they run: the engine's tokens become text, piece by piece, for each choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from infernum.chat.reader import AnswerForm, AnswerReader, Segment, merged
from infernum.engine.events import FinishReason, PromptLogprobs
from infernum.engine.tokenizer import TextStream, Tokenizer
from infernum.sampling_params import SamplingParams
from infernum.serve.engine_client import EngineClient, EngineGone, Inbox, Signal
from infernum.serve.metrics import Ended, Metrics
from infernum.serve.problems import Problem, internal, invalid, unavailable
from infernum.serve.wire import Logprobs


@dataclass(frozen=True)
class Wish:
    """One sequence to generate: the token ids of its prompt, and how.

    `stop` and `stop_tokens` are those that the request names, and that are named as the reason of an end. `form` is how
    the answer is written where it may have reasoning or calls. `grammar` (`infernum.engine.grammars`) is what it must
    follow.
    """

    prompt: list[int]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    includes_stop: bool = False
    shows_special: bool = False
    priority: int = 0
    salt: str = ""
    form: AnswerForm | None = None
    grammar: str | None = None

    @property
    def shown_special(self) -> bool | tuple[str, ...]:
        """The special tokens that are part of the text: True: all; else their texts."""
        return self.shows_special or (() if self.form is None else self.form.special)


class Piece(msgspec.Struct, gc=False):
    """What has come for the choice `index` since its last piece. `logprobs` is empty where the request asks for none.

    `prompt` has the log-probabilities of the prompt, in the first piece, where the request asks for them.
    `stop_reason` is the stop string or the stop token that has ended it. `segments` has reasoning, text and calls in
    their order, of an answer that may have all of these; `text` is then the text among them.
    """

    index: int
    text: str
    tokens: list[int]
    logprobs: list[Logprobs]
    finish_reason: FinishReason | Literal["tool_calls"] | None = None
    stop_reason: str | int | None = None
    prompt: PromptLogprobs | None = None
    segments: list[Segment] = []

    @property
    def all_segments(self) -> list[Segment]:
        """The segments, also of an answer that is plain text."""
        return self.segments or ([self.text] if self.text else [])

    @property
    def is_text(self) -> bool:
        """True where the piece adds text to an answer and nothing else."""
        if self.finish_reason is not None or self.logprobs:
            return False
        return not self.segments or all(isinstance(segment, str) for segment in self.segments)


@dataclass
class Gathered:
    """The pieces of a choice of an answer that is sent as a whole."""

    parts: list[str] = field(default_factory=list[str])
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[Logprobs] = field(default_factory=list[Logprobs])
    segments: list[Segment] = field(default_factory=list[Segment])
    prompt: PromptLogprobs | None = None
    last: Piece | None = None

    def take(self, piece: Piece) -> None:
        """Add a piece."""
        self.parts.append(piece.text)
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.segments += piece.segments
        self.prompt = piece.prompt or self.prompt
        self.last = piece

    def piece(self, index: int) -> Piece:
        """The whole choice as one piece."""
        assert self.last is not None, "every choice has a last piece"
        reason, stop = self.last.finish_reason, self.last.stop_reason
        text = "".join(self.parts)
        return Piece(
            index, text, self.tokens, self.logprobs, reason, stop, self.prompt, merged(self.segments)
        )


@dataclass(slots=True)
class _Choice:
    """A sequence of a request."""

    wish: Wish
    number: int
    inbox: Inbox
    text: TextStream | None
    reader: AnswerReader | None
    output_tokens: int = 0
    finished: bool = False


class Generation:
    """The sequences of a request. Leaving the context stops those that have not ended."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer | None,
        wishes: list[Wish],
        metrics: Metrics,
        request: str = "",
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._wake = Signal()
        self._choices: list[_Choice] = []
        self.unfinished = len(wishes)
        """Choices that have not ended."""
        try:
            for wish in wishes:
                number, inbox = engine.add(
                    wish.prompt,
                    wish.params,
                    self._wake,
                    request=request,
                    priority=wish.priority,
                    salt=wish.salt,
                    grammar=wish.grammar,
                )
                text = (
                    TextStream(tokenizer, wish.prompt, wish.stop, special=wish.shown_special)
                    if tokenizer
                    else None
                )
                reader = AnswerReader(wish.form) if wish.form else None
                self._choices.append(_Choice(wish, number, inbox, text, reader))
        except EngineGone as error:
            self.close()
            raise unavailable(str(error)) from error

    def close(self) -> None:
        """Stop what has not ended."""
        self._engine.cancel([choice.number for choice in self._choices])

    @property
    def output_tokens(self) -> int:
        """Number of tokens generated so far, of all choices."""
        return sum(choice.output_tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Number of prompt tokens that the cache had, of all choices."""
        return sum(choice.inbox.cached_tokens for choice in self._choices)

    @property
    def on_news(self) -> Callable[[], None] | None:
        """Called when something has come, in place of `news`."""
        return self._wake.call

    @on_news.setter
    def on_news(self, call: Callable[[], None] | None) -> None:
        self._wake.call = call

    async def news(self) -> None:
        """Wait until something has come."""
        await self._wake.wait()

    def pieces(self) -> list[Piece]:
        """What has come since the last call. Raises Problem."""
        pieces: list[Piece] = []
        for index, choice in enumerate(self._choices):
            inbox = choice.inbox
            if choice.finished:
                continue
            if inbox.error is not None:
                raise self._problem(inbox)
            if inbox.tokens or inbox.finish_reason is not None:
                pieces.append(self._read(index, choice))
        return pieces

    def _read(self, index: int, choice: _Choice) -> Piece:
        inbox = choice.inbox
        tokens, inbox.tokens = inbox.tokens, []
        logprobs, inbox.logprobs = inbox.logprobs, []
        piece = _spelled(index, choice, tokens, logprobs, inbox.finish_reason)
        if inbox.prompt is not None:
            piece.prompt, inbox.prompt = inbox.prompt, None
        choice.output_tokens += len(piece.tokens)
        if piece.finish_reason is not None:
            choice.finished = True
            self.unfinished -= 1
            self._count(choice, piece.finish_reason)
            self._engine.cancel([choice.number])
        if choice.reader is not None:
            _read_segments(piece, choice.reader)
        return piece

    def _problem(self, inbox: Inbox) -> Problem:
        """Why a sequence was ended. Another server may answer what an engine that is gone cannot."""
        assert inbox.error is not None, "there is an error"
        if not inbox.ours:
            return invalid(inbox.error)
        return internal(inbox.error) if self._engine.death is None else unavailable(inbox.error)

    def _count(self, choice: _Choice, reason: str) -> None:
        inbox, params = choice.inbox, choice.wish.params
        first, last = inbox.first or inbox.asked, inbox.last or inbox.asked
        begun = min(first, inbox.begun or first)
        ended = Ended(
            reason,
            len(choice.wish.prompt),
            choice.output_tokens,
            params.max_tokens,
            inbox.asked,
            begun,
            first,
            last,
        )
        self._metrics.ended(ended)


def _read_segments(piece: Piece, reader: AnswerReader) -> None:
    """Part the text of a piece into its segments."""
    piece.segments = reader.push(piece.text, final=piece.finish_reason is not None)
    piece.text = "".join(segment for segment in piece.segments if isinstance(segment, str))
    if piece.finish_reason == "stop" and reader.calls:
        piece.finish_reason = "tool_calls"


def _spelled(
    index: int, choice: _Choice, tokens: list[int], logprobs: list[Logprobs], reason: FinishReason | None
) -> Piece:
    """The piece of these tokens. A stop string ends the choice with the token that completes it."""
    stream = choice.text
    stop_token = tokens[-1] if reason == "stop" and tokens[-1] in choice.wish.stop_tokens else None
    if stream is None:
        return Piece(index, "", tokens, logprobs, reason, stop_token)
    # The token that ends a sequence is not shown. A special token is never shown, but may complete a stop string.
    shown = tokens[:-1] if reason == "stop" and not stream.hides(tokens[-1]) else tokens
    if not stream.stops:
        text = stream.push_all(shown)
        text = text if reason is None else text + stream.flush()
        return Piece(index, text, tokens, logprobs, reason, stop_token)
    text = ""
    for place, token in enumerate(shown):
        text += stream.push(token)
        if stream.stop_text is not None:
            return _stopped(index, choice, text, tokens[: place + 1], logprobs[: place + 1], stream.stop_text)
    if reason is not None:
        text += stream.flush()
        if stream.stop_text is not None:
            return _stopped(index, choice, text, tokens, logprobs, stream.stop_text)
    return Piece(index, text, tokens, logprobs, reason, stop_token)


def _stopped(
    index: int, choice: _Choice, text: str, tokens: list[int], logprobs: list[Logprobs], stop: str
) -> Piece:
    return Piece(index, text + stop if choice.wish.includes_stop else text, tokens, logprobs, "stop", stop)
