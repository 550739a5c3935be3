"""Log-probabilities as clients see them: those of completions, and those of chats."""

from __future__ import annotations

from collections.abc import Sequence

from infernum.engine.tokenizer import Tokenizer
from infernum.serve.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from infernum.serve.wire import Logprobs

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON has not."""


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

    def completion(
        self, places: Sequence[Logprobs | None], tokens: Sequence[int], offset: int
    ) -> CompletionLogprobs:
        """The log-probabilities of these tokens, the first of which is `offset` characters behind the start.

        The first token of a prompt has none. Besides the most likely tokens, every place has the token that came.
        """
        spelled = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token, place in zip(tokens, places, strict=True):
            text = self.text_of(token)
            spelled.text_offset.append(offset)
            spelled.tokens.append(text)
            offset += len(text)
            if place is None:
                spelled.token_logprobs.append(None)
                spelled.top_logprobs.append(None)
                continue
            own = _finite(place.logprob)
            top: dict[str, float] = {}
            for other, value in place.top:  # of several that are spelled alike, the most likely one
                top.setdefault(self.text_of(other), _finite(value))
            top.setdefault(text, own)
            spelled.token_logprobs.append(own)
            spelled.top_logprobs.append(top)
        return spelled

    def chat(self, places: Sequence[Logprobs], tokens: Sequence[int]) -> ChatLogprobs:
        """The log-probabilities of tokens of an answer."""
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    token=self.text_of(token),
                    logprob=_finite(place.logprob),
                    bytes=list(self.bytes_of(token)),
                    top_logprobs=[
                        TopLogprob(
                            token=self.text_of(other),
                            logprob=_finite(value),
                            bytes=list(self.bytes_of(other)),
                        )
                        for other, value in place.top
                    ],
                )
                for token, place in zip(tokens, places, strict=True)
            ]
        )


def _finite(value: float) -> float:
    return max(value, LEAST)
