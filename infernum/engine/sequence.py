"""One sequence: a prompt, the tokens generated so far, and the pages of the KV cache that it owns."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from typing import Literal

from infernum.engine.tokenizer import TextStream
from infernum.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop token or a stop string came; `length`: max_tokens, the context or the KV cache is used
up.
"""


class Sequence:
    """A sequence from its request to its end.

    `tokens` are prompt and output; the keys and values of the first `cached` of them are in the cache, or
    will be once the steps launched so far have run. `max_tokens` is the request's, clamped to what context
    and cache hold. `pages` is empty while the sequence waits and after it has finished.
    """

    def __init__(
        self,
        number: int,
        prompt: Ordered[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        seed: int,
        text: TextStream | None,
    ) -> None:
        self.number = number
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.params = params
        self.max_tokens = max_tokens
        self.seed = seed
        self.text = text
        self.cached = 0
        self.pages: tuple[int, ...] = ()
        self.finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def output_length(self) -> int:
        """Tokens generated so far, as far as the host has read them."""
        return len(self.tokens) - self.prompt_length

    @property
    def longest(self) -> int:
        """Positions that prompt and output can come to."""
        return self.prompt_length + self.max_tokens

    def append(self, token: int, end_tokens: frozenset[int]) -> str:
        """Add a sampled token, find out whether it is the last, and return the text that is now certain."""
        self.tokens.append(token)
        ended = token in self.params.stop_token_ids or (token in end_tokens and not self.params.ignore_eos)
        # A token that ends the sequence is not shown. A special one is not anyway, and may complete a stop string.
        text = self.text.push(token) if self.text and (not ended or self.text.hides(token)) else ""
        if ended or (self.text and self.text.stopped):
            self.finish_reason = "stop"
        elif self.output_length >= self.max_tokens:
            self.finish_reason = "length"
        if self.text and self.finished:
            text += self.text.flush()
            if self.text.stopped:
                self.finish_reason = "stop"
        return text
