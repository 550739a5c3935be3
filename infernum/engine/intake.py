"""What an engine takes in: prompts and parameters become sequences, or errors that say what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from random import Random

import numpy as np

from infernum.engine.request import read_token_array
from infernum.engine.sequence import Sequence
from infernum.errors import RequestError
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import Int32


class Intake:
    """Makes the sequences of one engine. `capacity`: most positions of one sequence that the KV cache holds."""

    def __init__(
        self, model: ModelInfo, capacity: int, max_model_len: int | None, has_tokenizer: bool
    ) -> None:
        self._model = model
        self._capacity = capacity
        self._context = min(model.context, max_model_len or model.context)
        self._has_tokenizer = has_tokenizer
        self._seeds = Random()

    @property
    def longest(self) -> int:
        """Most tokens of one sequence, prompt and output."""
        return min(self._context, self._capacity)

    def sequence(self, prompt: Ordered[int] | Int32, params: SamplingParams, index: int) -> Sequence:
        """A sequence that can be served, the `index`-th of those that share a seed. Raises RequestError."""
        tokens = self._tokens(prompt)
        room = self.longest - len(tokens)
        if room <= 0:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, which leaves no room for a new one in the "
                f"{self._limit_name} of {self.longest} tokens; shorten it"
            )
        if params.stop and not self._has_tokenizer:
            raise RequestError(
                "stop strings need a tokenizer, and this model has no tokenizer.json; give stop_token_ids"
            )
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_tokens("logit_bias", params.logit_bias)
        seed = self._seeds.getrandbits(32) if params.seed is None else derived_seed(params.seed, index)
        max_tokens = min(max(1, params.max_tokens), room)  # of 0, the engine drops the token
        return Sequence(-1, tokens, params, max_tokens=max_tokens, seed=seed)

    def scored_tokens(self, token_ids: Ordered[int]) -> Int32:
        """Tokens that fit a sequence, int32 [tokens]. Raises RequestError."""
        tokens = self._tokens(token_ids)
        if len(tokens) > self.longest:
            raise RequestError(
                f"{len(tokens)} tokens are more than the {self._limit_name} of {self.longest} tokens"
            )
        return tokens

    def _tokens(self, token_ids: Ordered[int] | Int32) -> Int32:
        """The tokens of a prompt. Raises RequestError when it is empty or has tokens outside the vocabulary."""
        tokens = read_token_array(token_ids)
        if not len(tokens):
            raise RequestError(
                "the prompt is empty, and this model has no token to begin with; give at least one token"
            )
        last = self._model.vocab_size - 1
        if not 0 <= tokens[tokens.argmin()] <= tokens[tokens.argmax()] <= last:
            place = int(np.flatnonzero((tokens < 0) | (tokens > last))[0])
            raise RequestError(
                f"token {place} of the prompt is {tokens[place]}; the model's tokens are 0 to {last}"
            )
        return tokens.astype(np.int32)

    def _check_tokens(self, name: str, tokens: Iterable[int]) -> None:
        last = self._model.vocab_size - 1
        for token in tokens:
            if token > last:
                raise RequestError(f"{name} holds {token}; the model's tokens are 0 to {last}")

    @property
    def _limit_name(self) -> str:
        if self._capacity < self._context:
            return "KV cache"
        return "model's context" if self._context == self._model.context else "limit --max-model-len"
