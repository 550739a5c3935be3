"""The rows of the executor's tables that running sequences own (`infernum.step.TABLES`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infernum.sampling_params import SamplingParams
from infernum.step import TABLES, Int32, TableRow

_ROWS = {table.name: table for table in TABLES}


class TableRows:
    """Gives rows of the tables to the slots whose sequences need them, and says which of these rows to write.

    A row is written when its sequence is admitted. From then on the device counts by itself.
    """

    def __init__(self, slots: int) -> None:
        self._free = list(range(_ROWS["counts"].shape({"table_rows": slots, "vocab": 1})[0]))
        self._counts = np.full(slots, -1, np.int32)
        self._unwritten = np.zeros(slots, bool)

    def has_room(self, params: SamplingParams) -> bool:
        """True when a sequence of these parameters gets the rows that it needs."""
        return bool(self._free) or not params.penalised

    def take(self, slot: int, params: SamplingParams) -> None:
        """Give the sequence of a slot the rows that it needs."""
        if params.penalised:
            self._counts[slot] = self._free.pop()
            self._unwritten[slot] = True

    def give_back(self, slot: int) -> None:
        """Free the rows of a slot."""
        if self._counts[slot] >= 0:
            self._free.append(int(self._counts[slot]))
        self._counts[slot] = -1
        self._unwritten[slot] = False

    def rows(self, slots: Int32) -> dict[str, Int32]:
        """The row of each table for each of the slots, by the name of the input; −1: none."""
        return {"counts_row": self._counts[slots]}

    def unwritten(self, slots: Int32) -> Int32:
        """The slots among these whose rows the executor needs before their next step."""
        return slots[self._unwritten[slots]]

    def writes(self, slot: int, tokens: Int32, prompt_length: int, vocab_size: int) -> Iterator[TableRow]:
        """The rows of a slot whose sequence has these tokens, prompt and output, all of which the host knows."""
        if self._counts[slot] >= 0:
            counts = 2 * np.bincount(tokens[prompt_length:], minlength=vocab_size)
            counts[tokens[:prompt_length]] += 1
            yield TableRow("counts", int(self._counts[slot]), counts.astype(np.int32))

    def written(self, slots: Int32) -> None:
        """Note that the executor has the rows of these slots."""
        self._unwritten[slots] = False

    def write_again(self, slots: Int32) -> None:
        """Note that a step of these slots has come to nothing: what the device has counted is unknown."""
        self._unwritten[slots] = self._counts[slots] >= 0
