"""The rows of the executor's tables that running sequences own (`infernum.step.TABLES`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infernum.engine.sequence import Sequence
from infernum.sampling_params import SamplingParams
from infernum.step import TABLES, Int32, TableRow

Slots = NDArray[np.int64]

_SCARCE = {table.name: table for table in TABLES if table.name != "allowed"}
"""The tables that have fewer rows than there are slots. Slot s owns row s of the others."""


class TableRows:
    """Gives rows of the tables to the slots whose sequences need them, and says which of these rows to write.

    A row is written when its sequence is admitted. From then on the device counts by itself.
    """

    def __init__(self, slots: int) -> None:
        sizes = {"table_rows": slots, "vocab": 1}
        self._free = {name: list(range(table.shape(sizes)[0])) for name, table in _SCARCE.items()}
        self._rows = {name: np.full(slots, -1, np.int32) for name in _SCARCE}
        self._min_tokens = np.zeros(slots, np.int32)
        self._masked = np.zeros(slots, np.bool_)
        self._unwritten = np.zeros(slots, np.bool_)
        self._owners = set[int]()

    @property
    def in_use(self) -> bool:
        """True when some slot owns a row."""
        return bool(self._owners)

    def has_room(self, params: SamplingParams) -> bool:
        """True when a sequence of these parameters gets the rows that it needs."""
        return all(self._free.values()) or all(self._free[name] for name in _needed(params))

    def take(self, slot: int, params: SamplingParams, *, masked: bool) -> None:
        """Give the sequence of a slot the rows that it needs. `masked`: its row of `allowed` changes in every step."""
        needed = _needed(params)
        if not (needed or params.min_tokens or masked):
            return
        for name in needed:
            self._rows[name][slot] = self._free[name].pop()
        self._min_tokens[slot] = params.min_tokens
        self._masked[slot] = masked
        self._unwritten[slot] = True
        self._owners.add(slot)

    def give_back(self, slot: int) -> None:
        """Free the rows of a slot."""
        if slot not in self._owners:
            return
        self._owners.remove(slot)
        for name, rows in self._rows.items():
            if rows[slot] >= 0:
                self._free[name].append(int(rows[slot]))
            rows[slot] = -1
        self._min_tokens[slot] = 0
        self._masked[slot] = False
        self._unwritten[slot] = False

    def rows(self, slots: Slots, output: Int32) -> dict[str, Int32]:
        """The row of each table for each of the slots, by the name of the input; −1: none.

        `output` is the number of new tokens that each sequence has so far, read or not.
        """
        rows = {f"{name}_row": rows[slots] for name, rows in self._rows.items()}
        restricted = (output < self._min_tokens[slots]) | self._masked[slots]
        return rows | {"allowed_row": np.where(restricted, slots, -1).astype(np.int32)}

    def masked(self, slots: Slots) -> Slots:
        """The slots among these whose sequences have a mask."""
        return slots[self._masked[slots]] if self._owners else slots[:0]

    def change(self, slots: Slots, output: Int32) -> bool:
        """True when the sampler needs other rows than in the step before, in which each sequence had one token less."""
        return bool(np.any(self._masked[slots] | (self._min_tokens[slots] == output)))

    def unwritten(self, slots: Slots) -> Slots:
        """The slots among these whose rows the executor needs before their next step."""
        return slots[self._unwritten[slots]] if self._owners else slots[:0]

    def writes(self, sequence: Sequence, tokens: Int32, is_end: NDArray[np.bool_]) -> Iterator[TableRow]:
        """The rows of a sequence that has these tokens, prompt and output, all of which the host knows.

        `is_end` [vocab] marks the model's end tokens.
        """
        slot, params = sequence.slot, sequence.params
        counts_row, bias_row = (int(self._rows[name][slot]) for name in ("counts", "logit_bias"))
        if counts_row >= 0:
            counts = 2 * np.bincount(tokens[sequence.prompt_length :], minlength=len(is_end))
            counts[tokens[: sequence.prompt_length]] += 1
            yield TableRow("counts", counts_row, counts.astype(np.int32))
        if bias_row >= 0:
            bias = np.zeros(len(is_end), np.float32)
            bias[list(params.logit_bias)] = list(params.logit_bias.values())
            yield TableRow("logit_bias", bias_row, bias)
        if params.min_tokens:
            yield TableRow("allowed", slot, bits_without_ends(params, is_end))

    def written(self, slots: Slots) -> None:
        """Note that the executor has the rows of these slots."""
        if self._owners:
            self._unwritten[slots] = False

    def write_again(self, slots: Slots) -> None:
        """Note that a step of these slots has come to nothing: what the device has counted is unknown."""
        for slot in self._owners.intersection(slots.tolist()):
            self._unwritten[slot] = True


def bits_without_ends(params: SamplingParams, is_end: NDArray[np.bool_]) -> Int32:
    """The row of the table `allowed` for outputs of less than `min_tokens`: no token that would end the sequence."""
    allowed = np.ones(len(is_end), np.bool_) if params.ignore_eos else ~is_end
    allowed[list(params.stop_token_ids)] = False
    return bits_of(allowed)


def bits_of(allowed: NDArray[np.bool_]) -> Int32:
    """A row of the table `allowed` for these tokens: bool [vocab] -> int32 [ceil(vocab / 32)]."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, np.bool_)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def _needed(params: SamplingParams) -> list[str]:
    """The scarce tables of which a sequence needs a row."""
    return ["counts"] * params.penalised + ["logit_bias"] * bool(params.logit_bias)
