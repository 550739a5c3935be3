"""The nouns between engine and runtime: what one step is given, and what an executor promises.

Both executors, CUDA (`infernum.runtime`) and NumPy (`infernum.cpu`), speak this protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """One ragged step over several sequences; all arrays are int32.

    token_ids    [tokens]            the new tokens, sequence after sequence
    positions    [tokens]            position of each within its sequence, from 0
    sequence     [tokens]            row of `page_table` that each belongs to
    query_start  [seqs + 1]          sequence s owns tokens query_start[s] … query_start[s+1] − 1
    page_table   [seqs, max_pages]   KV cache page that holds positions 64·j … 64·j+63 of sequence s; −1: none
    output_rows  [rows]              tokens whose logits are wanted, ascending
    """

    token_ids: Int32
    positions: Int32
    sequence: Int32
    query_start: Int32
    page_table: Int32
    output_rows: Int32

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def seqs(self) -> int:
        return len(self.page_table)

    @property
    def rows(self) -> int:
        return len(self.output_rows)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence, after the step."""
        return int(self.positions.max(initial=-1)) + 1


@dataclass(frozen=True)
class Sampling:
    """How each row of logits becomes a token; arrays of length `rows`.

    temperature         float32, 0: the most likely token
    top_k               int32, 0: off
    top_p               float32, 1: off
    min_p               float32, 0: off
    repetition_penalty  float32, 1: off
    seed                int32
    seen                int32 [rows, ceil(vocab / 32)], bit t of word t // 32: token t is in the row's context.
                        None when no row has a repetition penalty
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    repetition_penalty: Float32
    seed: Int32
    seen: Int32 | None = None

    @property
    def greedy(self) -> bool:
        """True when every row just takes its most likely token."""
        return bool(np.all(self.temperature == 0) and np.all(self.repetition_penalty == 1))


class Pending(Protocol):
    """Tokens of a step that may still be running."""

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows]; waits for the step."""
        ...


class Executor(Protocol):
    """Runs steps of one model over a paged KV cache."""

    @property
    def page_size(self) -> int: ...

    @property
    def num_pages(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def max_rows(self) -> int: ...

    def logits(self, batch: Batch) -> Float32:
        """Run a step and return its logits, float32 [rows, vocab]."""
        ...

    def run(self, batch: Batch, sampling: Sampling) -> Pending:
        """Run a step and sample one token for each row."""
        ...

    def advance(self) -> Pending:
        """Run the next step of the last batch, which must have had one token and one row for each sequence.

        Each sequence's input is the token it has just sampled, at the next position; nothing crosses the host.
        """
        ...

    def close(self) -> None:
        """Give back device memory; the executor cannot be used afterwards."""
        ...
