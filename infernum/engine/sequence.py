"""One sequence: its prompt, the tokens generated so far, and its pages of the KV cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infernum.engine.events import PromptLogprobs
from infernum.sampling_params import SamplingParams
from infernum.step import Int32, Logprobs

Mask = Callable[[Int32], Int32 | None]
"""Gives the tokens that may follow an output, int32 [tokens]: a bit set, int32 [ceil(vocab / 32)], or None for all.

Bit t % 32 of word t // 32 stands for token t. The result depends on the output alone: it is asked for again where a
step fails. It must not call the engine.
"""

MakeMask = Callable[[], Mask]
"""Makes the mask of a new sequence."""


class Sequence:
    """A sequence from its request to its end.

    tokens      int32: prompt and output. While the sequence runs, the newest may be missing (`Slots.tokens_of`)
    max_tokens  the `max_tokens` of the request, clamped to context and cache
    limit       most tokens of prompt and output
    priority    the higher, the earlier it is admitted and the later preempted
    salt        only sequences of one salt share pages of the cache
    stream      number of the stream that its events belong to; 0: they are returned by `Engine.step_events`
    mask        gives the tokens that it may sample next; None: all, always
    is_long     it runs as one that is longer than the model's `short_context`
    slot        its slot while it runs, else −1
    findable    how many of its pages can be found in the cache, while it runs: the first ones
    scored      the number of prompt tokens behind the first whose log-probabilities the host has read
    """

    def __init__(
        self,
        number: int,
        prompt: Int32,
        params: SamplingParams,
        *,
        max_tokens: int,
        seed: int,
        priority: int = 0,
        salt: str = "",
    ) -> None:
        self.number = number
        self.tokens = prompt
        self.prompt_length = len(prompt)
        self.params = params
        self.max_tokens = max_tokens
        self.limit = len(prompt) + max_tokens
        self.seed = seed
        self.priority = priority
        self.salt = salt
        self.stream = 0
        self.mask: Mask | None = None
        self.is_long = False
        self.slot = -1
        self.findable = 0
        self.scored = 0
        self._scores: list[Logprobs] = []

    @property
    def asks_for_scores(self) -> bool:
        """True until the host has read the log-probabilities of its prompt, where the request asks for them."""
        return self.params.prompt_logprobs is not None and self.scored < self.prompt_length - 1

    def score(self, logprobs: Logprobs) -> None:
        """Append the log-probabilities of the next tokens of the prompt, as many columns as the request asks for."""
        columns = 1 + (self.params.prompt_logprobs or 0)
        self._scores.append(
            Logprobs(logprobs.tokens[:, :columns].copy(), logprobs.values[:, :columns].copy())
        )
        self.scored += len(logprobs.tokens)

    def take_scores(self) -> PromptLogprobs:
        """The log-probabilities of the prompt, all of which the host has read. The sequence forgets them."""
        assert self.scored == self.prompt_length - 1, "the first event comes when the whole prompt is scored"
        columns = 1 + (self.params.prompt_logprobs or 0)
        parts, self._scores = self._scores, []
        tokens = [np.empty((0, columns), np.int32), *(part.tokens for part in parts)]
        values = [np.empty((0, columns), np.float32), *(part.values for part in parts)]
        return PromptLogprobs(np.concatenate(tokens), np.concatenate(values))

    @property
    def first_parent(self) -> str:
        """What tells apart first pages of the same tokens: the salt, and the turn by LongRoPE."""
        return f"{'long' if self.is_long else 'short'}:{self.salt}"
