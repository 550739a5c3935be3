"""An executor that computes nothing, to measure what stands around it: the engine, and the server."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from infernum.sampling_params import MOST_LOGPROBS
from infernum.step import Batch, Float32, Int32, Logprobs, Sampling


class NullExecutor:
    """Implements `infernum.step.Executor` without computing anything: tokens are random.

    vocab              tokens are below it
    seconds_per_token  a step's tokens are there so much later than the tokens of the step before, for each of them;
                       0: at once
    """

    page_size = 64
    max_batch_tokens = 4096
    dtype = "bf16"

    def __init__(
        self, num_pages: int, max_rows: int, vocab: int = 128_256, seconds_per_token: float = 0.0
    ) -> None:
        self.num_pages = num_pages
        self.windowed_pages: dict[int, int] = {}
        self.max_rows = max_rows
        self._vocab = vocab
        self._seconds_per_token = seconds_per_token
        self._tokens = np.random.default_rng(0).integers(0, vocab - 1, 2 * max_rows, np.int32)
        self._launches = 0
        self._rows = 0
        self._free_at = 0.0

    def run(self, batch: Batch, sampling: Sampling) -> NullTokens:
        """Return as many tokens as the batch has rows."""
        self._rows = batch.rows
        return self.advance()

    def advance(self) -> NullTokens:
        """Return as many tokens as the last step had rows."""
        self._launches += 1
        start = self._launches % self.max_rows
        if self._seconds_per_token:
            self._free_at = max(self._free_at, time.monotonic()) + self._rows * self._seconds_per_token
        return NullTokens(self._tokens[start : start + self._rows], self._free_at)

    def logits(self, batch: Batch) -> Float32:
        """Logits of zeros, float32 [rows, vocab]."""
        return np.zeros((batch.rows, self._vocab), np.float32)

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class NullTokens:
    """The tokens of a step of `NullExecutor`, which may be read at `due`, on the monotonic clock."""

    sampled: Int32
    due: float

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows]."""
        if self.due:
            time.sleep(max(0.0, self.due - time.monotonic()))
        return self.sampled

    def logprobs(self) -> Logprobs:
        """Zeros for the sampled token of each row, which stands in every place."""
        tokens = np.repeat(self.sampled[:, None], 1 + MOST_LOGPROBS, axis=1)
        return Logprobs(tokens, np.zeros(tokens.shape, np.float32))
