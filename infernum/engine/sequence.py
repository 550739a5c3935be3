"""One sequence: its prompt, the tokens generated so far, and its pages of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from typing import Literal

import numpy as np

from infernum.engine.page_pool import Content
from infernum.engine.tokenizer import TextStream
from infernum.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop token or a stop string ended the sequence; `length`: the sequence reached max_tokens,
the context or the end of the KV cache.
"""


class Sequence:
    """A sequence from its request to its end.

    tokens      prompt and output
    max_tokens  the `max_tokens` of the request, clamped to context and cache
    priority    the higher, the earlier it is admitted and the later preempted
    salt        only sequences of one salt share pages of the cache
    is_long     it runs as one that is longer than the model's `short_context`
    slot        its slot while it runs, else −1
    pages       its pages while it runs, else empty; the first `shared` were found in the cache when it was admitted
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
        priority: int = 0,
        salt: str = "",
    ) -> None:
        self.number = number
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.params = params
        self.max_tokens = max_tokens
        self.seed = seed
        self.text = text
        self.priority = priority
        self.salt = salt
        self.is_long = False
        self.slot = -1
        self.pages: list[int] = []
        self.shared = 0
        self.finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def output_length(self) -> int:
        """Number of generated tokens that the host has read."""
        return len(self.tokens) - self.prompt_length

    @property
    def limit(self) -> int:
        """Most tokens of prompt and output."""
        return self.prompt_length + self.max_tokens

    @property
    def first_parent(self) -> str:
        """What tells apart first pages of the same tokens: the salt, and the turn by LongRoPE."""
        return f"{'long' if self.is_long else 'short'}:{self.salt}"

    def content(self, number: int, size: int) -> Content:
        """What page `number` of the sequence holds, once it is full."""
        parent = self.pages[number - 1] if number else self.first_parent
        return Content(parent, np.array(self.tokens[number * size : (number + 1) * size], np.int32).tobytes())

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
