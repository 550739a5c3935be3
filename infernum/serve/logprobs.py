"""Log-probabilities as clients see them: those of completions, those of chats, and those of prompts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from infernum.engine.events import PromptLogprobs, TokenLogprobs
from infernum.engine.tokenizer import Tokenizer
from infernum.serve.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    TokenLogprob,
    TopLogprob,
)
from infernum.serve.wire import Logprobs

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON has not."""

Place = Logprobs | TokenLogprobs


class Speller:
    """Spells tokens. Without a tokenizer a token is spelled by its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token, which may be a part of a character."""
        if self._tokenizer is None:
            return f"token_id:{token}".encode()
        return self._tokenizer.bytes_of(token)

    def text_of(self, token: int) -> str:
        """The text of a token; what is no whole character becomes U+FFFD."""
        return self.bytes_of(token).decode(errors="replace")

    def offsets(self, *, shows_special: bool) -> Offsets:
        """The places of the tokens of a text, from its start."""
        hidden = () if shows_special or self._tokenizer is None else self._tokenizer.special
        return Offsets(self, frozenset(hidden))

    def completion(
        self, places: Iterable[Place | None], tokens: Sequence[int], offsets: Offsets
    ) -> CompletionLogprobs:
        """The log-probabilities of tokens.

        The first token of a prompt has none. Besides the most likely tokens, every place has the token that came.
        """
        spelled = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token, place in zip(tokens, places, strict=True):
            text = self.text_of(token)
            spelled.text_offset.append(offsets.pass_over(token))
            spelled.tokens.append(text)
            if place is None:
                spelled.token_logprobs.append(None)
                spelled.top_logprobs.append(None)
                continue
            own = _finite(place.logprob)
            top: dict[str, float] = {}
            for other, value in _top(place):  # of several that are spelled alike, the most likely one
                top.setdefault(self.text_of(other), value)
            top.setdefault(text, own)
            spelled.token_logprobs.append(own)
            spelled.top_logprobs.append(top)
        return spelled

    def chat(self, places: Sequence[Place], tokens: Sequence[int]) -> ChatLogprobs:
        """The log-probabilities of tokens of an answer."""
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    token=self.text_of(token),
                    logprob=_finite(place.logprob),
                    bytes=list(self.bytes_of(token)),
                    top_logprobs=[
                        TopLogprob(token=self.text_of(other), logprob=value, bytes=list(self.bytes_of(other)))
                        for other, value in _top(place)
                    ],
                )
                for token, place in zip(tokens, places, strict=True)
            ]
        )

    def prompt(self, prompt: PromptLogprobs) -> list[dict[int, PromptLogprob] | None]:
        """The log-probabilities of a prompt, in vLLM's form: of each token by its number."""
        return [None if place is None else self._ranked(place) for place in prompt]

    def _ranked(self, place: TokenLogprobs) -> dict[int, PromptLogprob]:
        ranked = {
            other: PromptLogprob(logprob=value, rank=rank, decoded_token=self.text_of(other))
            for rank, (other, value) in enumerate(_top(place), 1)
        }
        own = PromptLogprob(
            logprob=_finite(place.logprob), rank=None, decoded_token=self.text_of(place.token)
        )
        return {place.token: own} | ranked


class Offsets:
    """Where the tokens of a text begin in it, in characters. A token that ends a character begins where it does."""

    def __init__(self, speller: Speller, hidden: frozenset[int]) -> None:
        self._speller = speller
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def pass_over(self, token: int) -> int:
        """The offset of the next token."""
        offset = self._offset
        if token not in self._hidden:
            self._offset += len(self._decoder.decode(self._speller.bytes_of(token)))
        return offset


def _top(place: Place) -> list[tuple[int, float]]:
    """The most likely tokens; a small vocabulary has fewer than are asked for."""
    return [(token, _finite(value)) for token, value in place.top if token >= 0]


def _finite(value: float) -> float:
    return max(value, LEAST)
