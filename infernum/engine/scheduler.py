"""Plans the next step: running sequences decode together, and prompts fill the rest of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from infernum.engine.page_pool import PagePool
from infernum.engine.scored_prompts import ScoredRows, scored_rows
from infernum.engine.sequence import Sequence
from infernum.engine.slots import Bools, Int64, Slots, integers
from infernum.engine.step_time import StepTime
from infernum.engine.windowed_pages import WindowedPages
from infernum.step import Array, Int32

Chunk = tuple[int, int, int]
"""Slot, first position and end of the tokens of a prompt, or of a sequence that is computed again."""

LEAST_RESERVE = 0.1
"""Share of what running sequences may yet need that stays free when another is admitted: its least value.

It rises with every sequence that is preempted, and falls back step by step.
"""

LEAST_PROMPT_TOKENS = 64
"""Prompt tokens of a step beside decodes that no limit of time takes away, so that prompts come to their ends."""

_FORGETTING = 0.998
"""What the reserve is multiplied by after a step."""


class StepPlan(NamedTuple):
    """A step: of sequence i the tokens at `starts[i]` … `ends[i] − 1`. Arrays are int32, indices int64.

    slots     [seqs]  slots of the sequences
    numbers   [seqs]  numbers of the sequences
    sampled   [sampled]  the sequences whose last token is among them, so that the step samples the next one
    sampling  [sampled]  slots of these
    sampled_rows  [sampled]  their rows of logits
    totals    [sampled]  lengths of these sequences, with the tokens that the step samples
    limits    [sampled]  most tokens that these sequences may come to
    full      bool [sampled]  totals >= limits
    departures  `Slots.departures` when the step was planned
    """

    slots: Int64
    numbers: Int64
    starts: Int32
    ends: Int32
    sampled: Int64
    sampling: Int64
    sampled_rows: Int32
    totals: Int32
    limits: Int32
    full: Bools
    prompt_tokens: int
    decodes: int
    """Number of the sequences that have one token and sample one; they come first. The others compute `chunks`."""
    chunks: list[Chunk]
    departures: int
    scored: ScoredRows | None = None
    """The rows of a step that computes log-probabilities of prompts."""

    @property
    def is_decode(self) -> bool:
        """True when every sequence has one token, and samples one."""
        return not self.chunks

    @property
    def chunk_tokens(self) -> int:
        """Tokens of the sequences that do not decode: of prompts, and of outputs that are computed again."""
        return sum(end - start for _, start, end in self.chunks)

    @property
    def lengths(self) -> Int32:
        """Number of tokens of each sequence, int32 [seqs]."""
        return self.ends - self.starts

    def of_sampled(self, values: Array) -> Array:
        """Of values [seqs], those of the sequences that sample."""
        return values if len(self.sampled) == len(values) else values.take(self.sampled)

    @property
    def rows(self) -> Int64:
        """The sequence of each row of logits. A step that needs no logits has its last sequence as its row."""
        if self.scored is not None:
            return self.scored.sequences.astype(np.int64)
        return self.sampled if len(self.sampled) else np.array([len(self.slots) - 1])

    def follows(self, last: StepPlan) -> bool:
        """True when the step is that of `last` one position on: the input of each row is what it has sampled."""
        return self.slots is last.slots


class Scheduler:
    """Admits sequences by priority and arrival, gives them pages as they need them, and plans the steps.

    A sequence is admitted when the pages of its tokens fit, and a reserve for what those that run may yet need: a page
    for each of them, or a share of all. Alone, it always is. A sequence with penalties also needs a row of counts
    (`TableRows`). When pages run out, the newest sequence of the lowest priority is preempted: it gives back its pages,
    waits, and its tokens are computed again. Pages that were kept are found again. So is a sequence that grows beyond
    `short_context` tokens, from where on LongRoPE turns all of them otherwise.

    `max_rows` are the rows of logits of a step. At most so many sequences run, or `max_sequences`.

    `windowed` are the pools of the cache groups with a window, by the window. Their pages are given to a sequence step
    by step, also while its prompt is computed, and come back once they lie behind the window. With such groups no pages
    are kept.

    `max_itl` is the limit of seconds for a step that decodes: its chunks of prompts are cut so that it is predicted to
    keep below (`StepTime`). Until a step was measured, only the budget of tokens limits them.

    A sequence that asks for log-probabilities of its prompt has a row of logits for each of its tokens. Its chunks are
    no longer than the step has rows for, and nothing of it is found in the cache until they have been read.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_tokens: int,
        max_rows: int,
        max_length: int,
        max_sequences: int | None = None,
        short_context: int | None = None,
        windowed: Mapping[int, PagePool] | None = None,
        max_itl: float | None = None,
    ) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_itl = max_itl
        self.step_time = StepTime()
        self.max_rows = max_rows
        self.short_context = short_context
        self.waiting: list[Sequence] = []
        self.slots = Slots(
            min(max_sequences or max_rows, max_rows, max_tokens),
            pool.pages_for(max_length),
            pool.page_size,
            windowed,
        )
        self.reserve = LEAST_RESERVE
        self._last: StepPlan | None = None
        """The step that was launched last."""
        self._growth = 0
        """Number of further pages that running sequences may come to need."""
        self.table_version = 0
        """Grows whenever a page table changes."""
        self.preempted = 0
        """Number of times that a sequence was preempted."""
        self.cached_tokens = 0
        """Number of prompt tokens that were found in the cache when their sequences were admitted."""

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.slots.sequences)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have been admitted, in this order."""
        return self.slots.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which must fit an empty cache."""
        assert self.pool.pages_for(sequence.limit) <= self.pool.num_pages, "it would wait for ever"
        bisect.insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence and free its pages.

        A step in flight may still write to the pages. The next owner's steps run after it, on the same stream.
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self._take_pages(sequence)

    def plan(self, *, unread: bool) -> StepPlan | None:
        """Plan the next step; None when there is nothing to do, or where tokens that are `unread` must be read first.

        They must be when the tokens of a sequence are to be computed again.
        """
        slots = self.slots
        if self.short_context is not None:
            outgrown = [s for s in self.running if not s.is_long and self._is_long(int(slots.total[s.slot]))]
            if outgrown and unread:
                return None
            for sequence in outgrown:
                self._wait_again(sequence)
        for group in slots.windowed:
            self._release_behind(group)
        self._admit()
        if not self._grow_decodes(unread):
            return None
        self.reserve = max(LEAST_RESERVE, self.reserve * _FORGETTING)
        chunks = self._prompts(self._prompt_room(len(slots.decoding))) if slots.prompting else []
        while slots.prompting and not chunks and not len(slots.decoding):  # prompts own all pages of a group
            if unread:
                return None
            self._preempt(max(self.running, key=_order))
            chunks = self._prompts(self.max_tokens)
        return self._step(chunks)

    def is_current(self, plan: StepPlan) -> Bools | None:
        """For each sequence of a plan, whether it still has the slot that it had; None: all have."""
        if self.slots.departures == plan.departures:
            return None
        current = self.slots.number.take(plan.slots) == plan.numbers
        return None if np.count_nonzero(current) == len(current) else current

    def launched(self, plan: StepPlan) -> None:
        """Note a step that was launched: its positions are computed, and one token of each row is to be read."""
        slots, self._last = self.slots, plan
        slots.decodes_prompts = False
        slots.computed[plan.slots] = plan.ends
        slots.newest[plan.sampling] = ~plan.sampled_rows
        slots.total[plan.sampling] = plan.totals
        slots.tables.written(plan.slots)
        if len(plan.sampled) < len(plan.slots):
            slots.regroup()
            return
        slots.decoding = plan.slots[~plan.full] if np.count_nonzero(plan.full) else plan.slots
        for slot, _, _ in plan.chunks:
            slots.prompting.remove(slot)

    def take_back(self, plans: Iterable[StepPlan]) -> None:
        """Undo `launched` for all steps whose tokens the host has not read: they have come to nothing."""
        slots = self.slots
        for plan in plans:
            current = slots.number.take(plan.slots) == plan.numbers
            slots.computed[plan.slots[current]] = plan.starts[current]
            slots.total[plan.slots[plan.sampled[current[plan.sampled]]]] -= 1
            slots.tables.write_again(plan.slots[current])
        for sequence in slots.running:
            slots.newest[sequence.slot] = slots.tokens_of(sequence)[-1]
        slots.regroup()

    def keep_pages(self, plan: StepPlan) -> None:
        """Keep the pages of prompts that a step has filled.

        The pages of an output are kept when its slot has its turn, and when its sequence goes.
        """
        slots = self.slots
        for place, (slot, _, end) in enumerate(plan.chunks, plan.decodes):
            sequence = slots.sequences.get(slot)
            if sequence is not None and sequence.number == plan.numbers[place]:
                self._keep(sequence, end)
        sequence = slots.sequences.get(slots.turn)
        if sequence is not None:
            slots.tokens_of(sequence)
            self._keep_output(sequence)

    def _keep_output(self, sequence: Sequence) -> None:
        """Keep the full pages of a sequence, as far as the host has read its output."""
        read = int(self.slots.read[sequence.slot])
        if read > (sequence.findable + 1) * self.pool.page_size:
            self.slots.tokens_of(sequence)
            self._keep(sequence, read - 1)

    def _keep(self, sequence: Sequence, computed: int) -> None:
        """Keep the full pages among those of the first `computed` positions, whose tokens are in `Sequence.tokens`."""
        slot, size = sequence.slot, self.pool.page_size
        first, end = sequence.findable, computed // size
        if first >= end or self.slots.windowed:
            return
        pages = self.slots.pages_of(slot)[:end]
        parent = pages[first - 1] if first else sequence.first_parent
        kept = self.pool.keep(parent, pages[first:], sequence.tokens[first * size : end * size])
        if kept != pages[first:]:
            self.slots.pages[slot, first:end] = kept
            self.table_version += 1
        sequence.findable = end

    def _admit(self) -> None:
        slots, pool = self.slots, self.pool
        if not self.waiting:
            return
        growing = int(np.count_nonzero(slots.held < slots.limit))
        while self.waiting and slots.free:
            sequence = self.waiting[0]
            if not slots.tables.has_room(sequence.params):
                return
            if not all(self._fits(sequence, group) for group in slots.windowed):
                return
            length = len(sequence.tokens)
            needed = pool.pages_for(length)
            own = pool.pages_for(sequence.limit) - needed
            growing += own > 0
            reserved = self._reserved(own, growing) if slots.sequences else 0
            if slots.sequences and reserved + 1 > pool.free_pages:
                return
            sequence.is_long = self._is_long(length)
            computes_all = bool(slots.windowed) or sequence.asks_for_scores
            shared = [] if computes_all else pool.find(sequence.tokens, sequence.first_parent)
            missing = needed - len(shared)
            pages = pool.allocate(missing) if missing + reserved <= pool.free_pages else None
            if pages is None:
                pool.release(shared)
                return
            self.waiting.pop(0)
            self._growth += own
            sequence.findable = len(shared)
            cached = len(shared) * pool.page_size
            self.cached_tokens += min(cached, sequence.prompt_length)
            slots.take(sequence, shared + pages, computed=cached)
            self.table_version += 1

    def _reserved(self, own: int, growing: int) -> int:
        """Pages that stay free when a sequence that may need `own` further pages is admitted beside others.

        Each of the `growing` sequences that may need further pages needs the next one soon. Of the pages behind it,
        `reserve` is the share.
        """
        return max(growing, math.ceil(self.reserve * (self._growth + own)))

    def _grow_decodes(self, unread: bool) -> bool:
        """Give each decode the page of its next position, where it lacks it; False as for `_grow`."""
        slots = self.slots
        (lacking,) = (slots.computed >= slots.held).nonzero()
        growing = [slot for slot in integers(lacking) if slots.total[slot] < slots.limit[slot]]
        if growing and not self._grow_all(growing):
            for slot in growing:
                if not self._grow(slot, self._grow_all, unread):
                    return False
        return not slots.windowed or all(
            self._grow_windowed(group, slots.decoding, unread) for group in slots.windowed
        )

    def _grow_all(self, slots: list[int]) -> bool:
        """Give the sequence of each slot one more page; False where there are too few for all."""
        pages = self.pool.allocate(len(slots))
        if pages is None:
            return False
        state, size = self.slots, self.pool.page_size
        for slot, page in zip(slots, pages, strict=True):
            held = int(state.held[slot])
            state.pages[slot, held // size] = page
            state.held[slot] = held + size
        self._growth -= len(pages)
        self.table_version += 1
        return True

    def _grow(self, slot: int, grow: Callable[[list[int]], bool], unread: bool) -> bool:
        """Give a slot one more page by `grow`; False where a sequence must be preempted first and tokens are `unread`.

        The sequence of the slot may be preempted itself, or has been a moment ago.
        """
        while slot in self.slots.sequences and not grow([slot]):
            if unread:
                return False
            self._preempt(max(self.running, key=_order))
        return True

    def _grow_windowed(self, group: WindowedPages, decodes: Int64, unread: bool) -> bool:
        """Give decodes the page of their next position, where they lack it; False as for `_grow`."""
        lacking = self.slots.computed[decodes] // self.pool.page_size >= group.end[decodes]
        growing = integers(decodes[lacking])
        if not growing:
            return True
        self.table_version += 1
        return group.grow(growing) or all(self._grow(slot, group.grow, unread) for slot in growing)

    def _fits(self, sequence: Sequence, group: WindowedPages) -> bool:
        """Whether a group has pages for a further sequence and a reserve, once all that run have what they need now."""
        active = self.slots.active
        if not len(active):
            return True
        now = group.needed(np.append(self.slots.total[active], len(sequence.tokens)))
        later = group.needed(np.append(self.slots.limit[active], sequence.limit))
        missing = int(now.sum()) - group.owned(active)
        return missing + math.ceil(self.reserve * int((later - now).sum())) <= group.pool.free_pages

    def _release_behind(self, group: WindowedPages) -> None:
        """Give back what no step to come reads. Where that was too much, as a step came to nothing, compute anew."""
        slots = self.slots
        lost = group.first[slots.active] > group.first_columns(slots.computed[slots.active])
        if lost.any():
            for slot in integers(slots.active[lost]):
                self._wait_again(slots.sequences[slot])
        group.release_behind(slots.active, slots.computed[slots.active])

    def _is_long(self, length: int) -> bool:
        return self.short_context is not None and length > self.short_context

    def _wait_again(self, sequence: Sequence) -> None:
        self.slots.tokens_of(sequence)
        self._take_pages(sequence)
        bisect.insort(self.waiting, sequence, key=_order)

    def _preempt(self, sequence: Sequence) -> None:
        assert len(self.slots.sequences) > 1, "a sequence that fits alone never lacks pages alone"
        self._wait_again(sequence)
        self.preempted += 1
        self.reserve = min(1.0, 1.5 * self.reserve + 0.05)

    def _take_pages(self, sequence: Sequence) -> None:
        self._keep_output(sequence)
        pages = self.slots.pages_of(sequence.slot)
        self._growth -= self.pool.pages_for(sequence.limit) - len(pages)
        self.pool.release(pages)
        self.slots.give_back(sequence)
        self.table_version += 1

    def _prompt_room(self, decodes: int) -> int:
        """Most prompt tokens of a step with so many decodes."""
        room = self.max_tokens - decodes
        if self.max_itl is None or not decodes:
            return room
        timely = self.step_time.prompt_tokens_within(self.max_itl, decodes)
        return room if timely is None else min(room, max(LEAST_PROMPT_TOKENS, timely))

    def _prompts(self, room: int) -> list[Chunk]:
        """The chunks of prompts that fit into `room` tokens.

        A single token is computed as a decode is, on a GPU with other bits than among others: a cut leaves none behind,
        and none is the last thing that a step has room for.
        """
        chunks: list[Chunk] = []
        rows = self.max_rows - len(self.slots.sequences)  # further ones than one for each sequence
        for slot in self.slots.prompting:
            start, end = int(self.slots.computed[slot]), int(self.slots.total[slot])
            length = min(room, end - start)
            sequence = self.slots.sequences[slot]
            if sequence.asks_for_scores:
                length = min(length, 1 + rows)
            for group in self.slots.windowed:
                length = min(length, self._room(slot, group))
            if start + length + 1 == end and length > 2:
                length -= 1
            if length > 0 and not (length == 1 and chunks):
                for group in self.slots.windowed:
                    self._extend(slot, group, length)
                chunks.append((slot, start, start + length))
                room -= length
                if sequence.asks_for_scores:
                    rows -= length - 1
        return chunks

    def _room(self, slot: int, group: WindowedPages) -> int:
        """Most further positions of a slot for which a group has pages, one being left for each other sequence."""
        others = len(self.slots.sequences) - 1
        columns = int(group.end[slot]) + max(0, group.pool.free_pages - others)
        return max(0, columns * self.pool.page_size - int(self.slots.computed[slot]))

    def _extend(self, slot: int, group: WindowedPages, length: int) -> None:
        """Give a slot pages for its next `length` positions, which are free."""
        columns = self.pool.pages_for(int(self.slots.computed[slot]) + length)
        enough = group.add(slot, max(0, columns - int(group.end[slot])))
        assert enough, "the pages were free a moment ago"
        self.table_version += 1

    def _step(self, chunks: list[Chunk]) -> StepPlan | None:
        """The step of all decodes and these chunks; None where there are neither."""
        state, slots, last = self.slots, self.slots.decoding, self._last
        if last is not None and last.slots is slots and not chunks:
            return self._next(last)
        decodes = len(slots)
        count = decodes + len(chunks)
        if not count:
            return None
        lengths = state.ones[:count]
        if chunks:
            slots: Int64 = np.concatenate((slots, np.array([slot for slot, _, _ in chunks])))
            lengths = lengths.copy()
            lengths[decodes:] = [end - start for _, start, end in chunks]
        starts = state.computed.take(slots)
        ends: Int32 = starts + lengths
        totals: Int32 = ends + state.ones[:count]
        prompt_tokens = sum(
            max(0, min(end, state.sequences[slot].prompt_length) - start) for slot, start, end in chunks
        )
        if state.decodes_prompts:
            decoded = starts[:decodes] < state.prompt.take(slots[:decodes])
            prompt_tokens += int(np.count_nonzero(decoded))
        sampled, sampling, scored = state.indices[:count], slots, None
        if chunks:
            if any(end < state.total[slot] for slot, _, end in chunks):
                sampled = np.flatnonzero(ends == state.total[slots])
                sampling, totals = slots[sampled], totals[sampled]
            asking = [
                (place, sequence)
                for place, (slot, _, _) in enumerate(chunks, decodes)
                if (sequence := state.sequences[slot]).asks_for_scores
            ]
            scored = scored_rows(asking, starts, lengths, sampled) if asking else None
        limits = state.limit.take(sampling)
        return StepPlan(
            slots=slots,
            numbers=state.number.take(slots),
            starts=starts,
            ends=ends,
            sampled=sampled,
            sampling=sampling,
            sampled_rows=state.places[: len(sampled)] if scored is None else scored.sampled,
            totals=totals,
            limits=limits,
            full=totals >= limits,
            prompt_tokens=prompt_tokens,
            decodes=decodes,
            chunks=chunks,
            departures=state.departures,
            scored=scored,
        )

    def _next(self, last: StepPlan) -> StepPlan:
        """The step that follows the last one launched (`StepPlan.follows`)."""
        state, count = self.slots, len(last.slots)
        totals: Int32 = last.totals + state.ones[:count]
        return StepPlan(
            slots=last.slots,
            numbers=last.numbers,
            starts=last.ends,
            ends=last.totals,
            sampled=state.indices[:count],
            sampling=last.slots,
            sampled_rows=state.places[:count],
            totals=totals,
            limits=last.limits,
            full=totals >= last.limits,
            prompt_tokens=0,
            decodes=count,
            chunks=[],
            departures=state.departures,
        )


def _order(sequence: Sequence) -> tuple[int, int]:
    """Who goes first: the higher priority, then the earlier arrival."""
    return -sequence.priority, sequence.number
