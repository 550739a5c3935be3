"""The running sequences as arrays: what planning a step needs of each lies in a row, its slot."""

from __future__ import annotations

from typing import cast

import numpy as np

from infernum.engine.sequence import Sequence
from infernum.step import PARAMETER_INPUTS, Array, Int32


def integers(values: Array) -> list[int]:
    """The elements of an array of integers."""
    return cast("list[int]", values.tolist())


class Slots:
    """`count` slots, each free or of one sequence that runs. Arrays are [count]; `pages` is [count, columns].

    computed  positions whose keys and values are in the cache, or will be once the launched steps have run
    prompt    tokens of the prompt
    total     tokens of the sequence, with the one that a launched step samples and the host has not read
    limit     most tokens that it may come to
    newest    its last token; of no use while that is unread
    row       the row of the last launched step that samples its newest token; −1: the host has read the token
    pages     its pages in order, then −1; `held` positions lie in them
    """

    def __init__(self, count: int, columns: int) -> None:
        self.sequences: list[Sequence | None] = [None] * count
        self.computed, self.prompt, self.total, self.limit = np.zeros((4, count), np.int32)
        self.held, self.newest = np.zeros((2, count), np.int32)
        self.row = np.full(count, -1, np.int32)
        self.pages = np.full((count, columns), -1, np.int32)
        self.parameters: dict[str, Array] = {
            item.name: np.zeros(count, item.dtype.numpy) for item in PARAMETER_INPUTS
        }
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self, sequence: Sequence) -> int:
        """A slot for a sequence, whose `pages` hold the first of its tokens already."""
        slot = sequence.slot = self._free.pop()
        self.sequences[slot] = sequence
        self.prompt[slot] = sequence.prompt_length
        self.total[slot] = len(sequence.tokens)
        self.limit[slot] = sequence.limit
        self.newest[slot] = sequence.tokens[-1]
        for name, values in self.parameters.items():
            own = (
                np.uint32(sequence.seed).view(np.int32) if name == "seed" else getattr(sequence.params, name)
            )
            values[slot] = own
        return slot

    def give_back(self, sequence: Sequence) -> None:
        """Free the slot of a sequence."""
        slot, sequence.slot = sequence.slot, -1
        self.sequences[slot] = None
        self.row[slot] = -1
        self.pages[slot] = -1
        self.held[slot] = 0
        self._free.append(slot)

    def tokens(self, slots: Int32) -> Int32:
        """The newest token of each slot, or where the host has not read it, −1 less its row (`Batch.token_ids`)."""
        row = self.row[slots]
        return np.where(row >= 0, -1 - row, self.newest[slots])
