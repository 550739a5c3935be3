"""One sequence: its prompt, the tokens generated so far, and its pages of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from typing import Literal

from infernum.engine.tokenizer import TextStream
from infernum.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop token or a stop string ended the sequence; `length`: the sequence reached max_tokens,
the context or the end of the KV cache.
"""


class Sequence:
    """A sequence from its request to its end.

    tokens      prompt and output
    cached      number of tokens whose keys and values are in the cache, or will be once the launched steps have run
    is_long     the cache holds what is computed for a sequence longer than the model's `short_context`
    max_tokens  the `max_tokens` of the request, clamped to context and cache
    pages       the pages of the sequence; empty while it waits and after it has finished
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
        self.is_long = False
        self.pages: tuple[int, ...] = ()
        self.finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def output_length(self) -> int:
        """Number of generated tokens that the host has read."""
        return len(self.tokens) - self.prompt_length

    @property
    def longest(self) -> int:
        """Largest number of positions that prompt and output can take."""
        return self.prompt_length + self.max_tokens

    def append(self, token: int, end_tokens: frozenset[int]) -> str:
        """Append a sampled token, set `finish_reason` if it is the last, and return the text that it completes."""
        self.tokens.append(token)
        ended = token in self.params.stop_token_ids or (token in end_tokens and not self.params.ignore_eos)
        # A token that ends the sequence is not shown. Special tokens are never shown, but may complete a stop string.
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
