"""The running sequences as arrays: what planning a step needs of each lies in a row, its slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from infernum.engine.page_pool import PagePool
from infernum.engine.sequence import Sequence
from infernum.engine.table_rows import TableRows
from infernum.engine.windowed_pages import WindowedPages
from infernum.step import PARAMETER_INPUTS, Array, Int32

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


def integers(values: Array) -> list[int]:
    """The elements of an array of integers."""
    return cast("list[int]", values.tolist())


def rows_of(*columns: Array) -> Iterator[tuple[int, ...]]:
    """The elements of several arrays of integers, side by side."""
    return zip(*(integers(column) for column in columns), strict=True)


class Slots:
    """`count` slots, each free or of one sequence that runs. Arrays are [count]; `pages` is [count, columns].

    number      int64: number of the sequence; −1: the slot is free
    computed    positions whose keys and values are in the cache, or will be once the launched steps have run
    prompt      tokens of the prompt
    total       tokens of the sequence, with the one that a launched step samples and the host has not read
    limit       most tokens that it may come to
    newest      its last token; of no use while that is unread
    row         the row of the last launched step that samples its newest token; −1: the host has read the token
    pages       its pages in order, then −1; `held` positions lie in them
    recent      [count, page_size]: the token at position p of a sequence stands at p % page_size, until `flush` appends
                it to `Sequence.tokens`
    ends        True where the model's end tokens end the sequence
    own_stops   True where tokens end the sequence that do not end others
    stream      `Sequence.stream`
    windowed    the pages of the cache groups with a window
    logprobs    `SamplingParams.logprobs`; −1: it asks for none
    tables      the rows of the executor's tables that it owns
    state       [fields, count]: the arrays of `FIELDS`, to be read all at once
    parameters  the sampling parameters by name; all of them are rows of `sampling`, int32 [parameters, count]
    """

    FIELDS = ("computed", "prompt", "total", "limit", "held", "newest", "row")

    def __init__(
        self, count: int, columns: int, page_size: int, windowed: Mapping[int, PagePool] | None = None
    ) -> None:
        self.page_size = page_size
        self.windowed = [
            WindowedPages(window, pool, count, columns) for window, pool in (windowed or {}).items()
        ]
        self.sequences: list[Sequence | None] = [None] * count
        self.number: Int64 = np.full(count, -1, np.int64)
        self.state: Int32 = np.zeros((len(self.FIELDS), count), np.int32)
        self.computed, self.prompt, self.total, self.limit, self.held, self.newest, self.row = self.state
        self.row[:] = -1
        self.stream = np.zeros(count, np.int32)
        self.pages = np.full((count, columns), -1, np.int32)
        self.recent = np.zeros((count, page_size), np.int32)
        self.ends, self.own_stops = np.zeros((2, count), np.bool_)
        self.places: Int32 = np.arange(count + 1, dtype=np.int32)
        """0 … count, of which steps take the first elements."""
        self.sampling = np.zeros((len(PARAMETER_INPUTS), count), np.int32)
        self.parameters: dict[str, Array] = {
            item.name: row.view(item.dtype.numpy)
            for item, row in zip(PARAMETER_INPUTS, self.sampling, strict=True)
        }
        self.tables = TableRows(count)
        self.logprobs = np.full(count, -1, np.int32)
        self._order = np.zeros(count, np.int64)
        self._taken = 0
        self._free = list(range(count - 1, -1, -1))

    @property
    def active(self) -> Int64:
        """The slots that are not free, in the order in which their sequences were admitted."""
        return self._order[: self._taken]

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have slots, in the order in which they were admitted."""
        return [sequence for slot in integers(self.active) if (sequence := self.sequences[slot]) is not None]

    def take(self, sequence: Sequence) -> int:
        """A slot for a sequence, whose `pages` hold the first of its tokens already."""
        slot = sequence.slot = self._free.pop()
        self.sequences[slot] = sequence
        self.number[slot] = sequence.number
        self._order[self._taken] = slot
        self._taken += 1
        self.prompt[slot] = sequence.prompt_length
        self.total[slot] = len(sequence.tokens)
        self.limit[slot] = sequence.limit
        self.newest[slot] = sequence.tokens[-1]
        self.ends[slot] = not sequence.params.ignore_eos
        self.own_stops[slot] = bool(sequence.params.stop_token_ids)
        self.stream[slot] = sequence.stream
        self.logprobs[slot] = -1 if sequence.params.logprobs is None else sequence.params.logprobs
        for name, values in self.parameters.items():
            if name == "seed":
                values.view(np.uint32)[slot] = sequence.seed
            else:
                values[slot] = getattr(sequence.params, name)
        self.tables.take(slot, sequence.params, masked=sequence.mask is not None)
        return slot

    def give_back(self, sequence: Sequence) -> None:
        """Free the slot of a sequence."""
        slot, sequence.slot = sequence.slot, -1
        self.sequences[slot] = None
        self.number[slot] = -1
        others = self.active[self.active != slot]
        self._taken = len(others)
        self._order[: self._taken] = others
        self.row[slot] = -1
        self.pages[slot] = -1
        self.held[slot] = 0
        for group in self.windowed:
            group.clear(slot)
        self.tables.give_back(slot)
        self.own_stops[slot] = False
        self._free.append(slot)

    def newest_or_row(self, slots: Int64) -> Int32:
        """The newest token of each slot, or where the host has not read it, −1 less its row (`Batch.token_ids`)."""
        row = self.row.take(slots)
        tokens = self.newest.take(slots)
        np.copyto(tokens, ~row, where=row >= 0)
        return tokens

    def append(self, slots: Int64, positions: Int32, tokens: Int32, is_end: Bools) -> tuple[Bools, Bools]:
        """Append a token to the sequence of each slot, at the given position.

        `is_end` [vocab] marks the model's end tokens. Returns where a token ends its sequence, and where a sequence has
        come to its limit.
        """
        self.newest[slots] = tokens
        self.recent.reshape(-1)[slots * self.page_size + positions % self.page_size] = tokens
        stopped = is_end.take(tokens)
        if np.count_nonzero(stopped):
            stopped &= self.ends[slots]
        if np.count_nonzero(self.own_stops):
            for place in integers(np.flatnonzero(self.own_stops[slots])):
                sequence = self.sequences[int(slots[place])]
                assert sequence is not None, "a free slot gets no token"
                stopped[place] |= int(tokens[place]) in sequence.params.stop_token_ids
        return stopped, positions + 1 >= self.limit.take(slots)

    def flush(self, sequence: Sequence, count: int) -> None:
        """Bring `Sequence.tokens` to `count` tokens, which the host must have read."""
        missing = count - len(sequence.tokens)
        if missing > 0:
            start = len(sequence.tokens) % self.page_size
            assert start + missing <= self.page_size, "the tokens of a page are flushed when it is full"
            newest = self.recent[sequence.slot, start : start + missing]
            sequence.tokens = np.concatenate((sequence.tokens, newest))

    def tokens_of(self, sequence: Sequence) -> Int32:
        """Prompt and output of a running sequence whose newest token the host has read."""
        self.flush(sequence, int(self.total[sequence.slot]))
        return sequence.tokens
