"""The running sequences as arrays: what planning a step needs of each lies in a row, its slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from infernum.engine.page_pool import PagePool
from infernum.engine.sequence import Sequence
from infernum.engine.table_rows import TableRows
from infernum.engine.windowed_pages import WindowedPages
from infernum.step import PARAMETER_INPUTS, Array, Int32

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

RECENT_STEPS = 1024
"""Steps whose tokens wait in `Slots.recent`, at least. Most sequences end within these, and are appended to once."""

_NAMES = [item.name for item in PARAMETER_INPUTS]
_INTEGER_ROWS = [row for row, item in enumerate(PARAMETER_INPUTS) if not item.dtype.is_float]
_WITHOUT_SEED = [name for name in _NAMES if name != "seed"]
_values_of = attrgetter(*_WITHOUT_SEED)


def integers(values: Array) -> list[int]:
    """The elements of an array of integers."""
    elements: list[int] = values.tolist()
    return elements


def rows_of(*columns: Array) -> Iterator[tuple[int, ...]]:
    """The elements of several arrays of integers, side by side."""
    return zip(*(integers(column) for column in columns), strict=True)


def parameters_of(sampling: Int32) -> dict[str, Array]:
    """The sampling parameters by name, of the rows of such an array as `Slots.sampling`."""
    parameters: dict[str, Array] = dict(zip(_NAMES, sampling.view(np.float32), strict=True))
    for row in _INTEGER_ROWS:
        parameters[_NAMES[row]] = sampling[row]
    return parameters


class Slots:
    """`count` slots, each free or of one sequence that runs. Arrays are [count]; `pages` is [count, columns].

    sequences   the sequences that run, by slot, in the order in which they were admitted
    decoding    the slots with one token to compute, in the order in which they came to it. A step launched now has them
                all. The array is never written to: as long as it is the same, the same sequences decode
    prompting   the slots with more tokens to compute, in the order in which their sequences were admitted. Slots whose
                sequences have come to their limits are in neither
    departures  how many sequences have given back their slots while a launched step might still have them: before the
                host had read the last token that they may come to
    number      int64: number of the sequence; −1: the slot is free
    computed    positions whose keys and values are in the cache, or will be once the launched steps have run; −1: the
                slot is free
    prompt      tokens of the prompt
    total       tokens of the sequence, with the one that a launched step samples and the host has not read
    limit       most tokens that it may come to
    newest      its last token; −1 − r is the token that row r of the last launched step samples (`Batch.token_ids`)
    pages       its pages in order, then −1; `held` positions lie in them
    read        tokens of the sequence that the host has read; 0: none was sampled yet, since it has this slot
    recent      [steps, count]: a row for each of the last steps that sampled, in a ring: the tokens that it gave.
                Every step gives one to each slot that decodes, and `turn` appends them to `Sequence.tokens` in time
    ends        True where the model's end tokens end the sequence
    own_stops   True where tokens end the sequence that do not end others
    stream      `Sequence.stream`
    windowed    the pages of the cache groups with a window
    logprobs    number of tokens of which it asks for log-probabilities at each place, the sampled one included
    tables      the rows of the executor's tables that it owns
    parameters  the sampling parameters by name; all of them are rows of `sampling`, int32 [parameters, count]
    """

    def __init__(
        self, count: int, columns: int, page_size: int, windowed: Mapping[int, PagePool] | None = None
    ) -> None:
        self.page_size = page_size
        self.windowed = [
            WindowedPages(window, pool, count, columns) for window, pool in (windowed or {}).items()
        ]
        self.sequences: dict[int, Sequence] = {}
        self.decoding: Int64 = np.empty(0, np.int64)
        self.prompting: list[int] = []
        self.decodes_prompts = False
        """True until the next step is launched where the token of a slot that decodes may be the last of its prompt."""
        self.departures = 0
        self.number: Int64 = np.full(count, -1, np.int64)
        state: Int32 = np.zeros((7, count), np.int32)
        self.computed, self.prompt, self.total, self.limit, self.held, self.newest, self.read = state
        self.computed[:] = -1
        self.stream = np.zeros(count, np.int32)
        self.pages = np.full((count, columns), -1, np.int32)
        self.recent = np.zeros((max(count, RECENT_STEPS), count), np.int32)
        self.turn = 0
        """The slot whose recent tokens must be taken by `tokens_of` before the next step's are appended."""
        self.ends, self.own_stops = np.zeros((2, count), np.bool_)
        self.places: Int32 = np.arange(count + 1, dtype=np.int32)
        """0 … count, of which steps take the first elements, as of the next two arrays."""
        self.indices: Int64 = np.arange(count)
        self.ones: Int32 = np.ones(count, np.int32)
        self.positions: Int32 = np.arange(columns * page_size, dtype=np.int32)
        """The positions of the longest sequence."""
        self.sampling = np.zeros((len(PARAMETER_INPUTS), count), np.int32)
        self.parameters = parameters_of(self.sampling)
        self.seeds = self.parameters["seed"].view(np.uint32)
        self._parameter_columns = [self.parameters[name] for name in _WITHOUT_SEED]
        self.tables = TableRows(count)
        self.logprobs = np.zeros(count, np.int32)
        self._active: Int64 | None = None
        self._free = list(range(count - 1, -1, -1))

    @property
    def active(self) -> Int64:
        """The slots that are not free, in the order in which their sequences were admitted."""
        if self._active is None:
            self._active = np.fromiter(self.sequences, np.int64, len(self.sequences))
        return self._active

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have slots, in the order in which they were admitted."""
        return list(self.sequences.values())

    def pages_of(self, slot: int) -> list[int]:
        """The pages of a slot, in the order of their positions."""
        return integers(self.pages[slot, : int(self.held[slot]) // self.page_size])

    def take(self, sequence: Sequence, pages: list[int], computed: int) -> None:
        """Give a slot to a sequence, and pages for its tokens, of which the first `computed` are in them already."""
        slot = sequence.slot = self._free.pop()
        self.sequences[slot] = sequence
        self._active = None
        params, total = sequence.params, len(sequence.tokens)
        self.number[slot] = sequence.number
        self.computed[slot] = computed
        self.prompt[slot] = sequence.prompt_length
        self.total[slot] = total
        self.limit[slot] = sequence.limit
        self.newest[slot] = sequence.tokens[-1]
        self.read[slot] = 0
        self.held[slot] = len(pages) * self.page_size
        self.pages[slot, : len(pages)] = pages
        self.ends[slot] = not params.ignore_eos
        self.own_stops[slot] = bool(params.stop_token_ids)
        self.stream[slot] = sequence.stream
        self.logprobs[slot] = 0 if params.logprobs is None else 1 + params.logprobs
        for column, value in zip(self._parameter_columns, _values_of(params), strict=True):
            column[slot] = value
        self.seeds[slot] = sequence.seed
        self.tables.take(slot, params, masked=sequence.mask is not None)
        if total - computed == 1:
            self.decoding = np.append(self.decoding, slot)
            self.decodes_prompts = True
        else:
            self.prompting.append(slot)

    def give_back(self, sequence: Sequence) -> None:
        """Free the slot of a sequence."""
        slot, sequence.slot = sequence.slot, -1
        del self.sequences[slot]
        self._active = None
        if self.read[slot] < self.limit[slot]:
            self.departures += 1
        if slot in self.prompting:
            self.prompting.remove(slot)
        elif self.total[slot] < self.limit[slot]:
            self.decoding = self.decoding[self.decoding != slot]
        self.number[slot] = self.computed[slot] = -1
        self.pages[slot] = -1
        self.held[slot] = self.limit[slot] = 0
        for group in self.windowed:
            group.clear(slot)
        self.tables.give_back(slot)
        self.own_stops[slot] = False
        self.logprobs[slot] = 0
        self._free.append(slot)

    def regroup(self) -> None:
        """Find anew which slots decode, and which have more tokens to compute."""
        active = self.active
        missing = self.total[active] - self.computed[active]
        missing[self.total[active] >= self.limit[active]] = 0
        self.decoding, self.prompting = active[missing == 1], integers(active[missing > 1])
        self.decodes_prompts = True

    def append(self, slots: Int64, totals: Int32, tokens: Int32, is_end: Bools) -> Bools:
        """Append a token to the sequence of each slot, which then has `totals` tokens.

        `is_end` [vocab] marks the model's end tokens. Returns where a token ends its sequence.
        """
        self.recent[self.turn][slots] = tokens
        self.read[slots] = totals
        self.turn = (self.turn + 1) % len(self.recent)
        stopped = is_end.take(tokens)
        if np.count_nonzero(stopped):
            stopped &= self.ends[slots]
        if np.count_nonzero(self.own_stops):
            for place in integers(np.flatnonzero(self.own_stops[slots])):
                sequence = self.sequences[int(slots[place])]
                stopped[place] |= int(tokens[place]) in sequence.params.stop_token_ids
        return stopped

    def tokens_of(self, sequence: Sequence) -> Int32:
        """Prompt and output of a running sequence, as far as the host has read them."""
        missing = int(self.read[sequence.slot]) - len(sequence.tokens)
        if missing > 0:
            recent = self.recent[:, sequence.slot]
            wrapped = recent[self.turn - missing :] if missing > self.turn else recent[:0]
            newest = recent[max(0, self.turn - missing) : self.turn]
            sequence.tokens = np.concatenate((sequence.tokens, wrapped, newest))
        return sequence.tokens
