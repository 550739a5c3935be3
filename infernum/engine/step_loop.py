"""The loop of an engine: it launches a step before it reads the tokens of the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from infernum.engine.events import (
    FINISH_REASONS,
    PromptLogprobs,
    Statistics,
    StepEvents,
    StepRecord,
    logprobs_of,
)
from infernum.engine.masks import PrepareMasks, mask_rows
from infernum.engine.scheduler import Scheduler, StepPlan
from infernum.engine.sequence import Sequence
from infernum.engine.slots import Bools, Int64, integers
from infernum.engine.step_inputs import batch_of, sampling_of
from infernum.step import NO_TOKEN, Executor, Int32, Logprobs, Pending, Sampling, TableRow

_STOP, _LENGTH = FINISH_REASONS.index("stop"), FINISH_REASONS.index("length")


class Flight(NamedTuple):
    """A launched step whose tokens the host has not read. `table_version` is that of the page tables it was given.

    `queued`: it was launched before the tokens of the last step were read, so that the GPU was not idle between them.
    """

    plan: StepPlan
    pending: Pending
    table_version: int
    sampling: Sampling
    queued: bool


class StepLoop:
    """Runs the sequences that are added, from step to step. `is_end` [vocab] marks the model's end tokens.

    sequences     the sequences that wait or run, by number
    events        what the steps gave: events, and the `Sequence.stream` of each. The caller takes them, as the next two
    failed        sequences whose logits were not finite; they are removed
    failed_masks  numbers of sequences whose masks have failed; the caller removes them
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, is_end: Bools) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._is_end = is_end
        self.sequences: dict[int, Sequence] = {}
        self.events: list[tuple[StepEvents, Int32]] = []
        self.failed: list[Sequence] = []
        self.failed_masks: list[int] = []
        self.statistics = Statistics()
        self._prepare_masks: PrepareMasks = lambda masks: None
        self._unscored = set[int]()
        """Numbers of the sequences whose first event is to have log-probabilities of the prompt."""
        self._in_flight: Flight | None = None
        self._mark = 0.0
        self._steps = 0
        self._waited = 0.0

    @property
    def busy(self) -> bool:
        """True while a step has work, or tokens to read."""
        return self._scheduler.busy or self._in_flight is not None

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.sequences[sequence.number] = sequence
        if sequence.params.prompt_logprobs is not None:
            self._unscored.add(sequence.number)
        self._scheduler.add(sequence)

    def remove(self, number: int) -> None:
        """Remove a sequence. Does nothing when it has ended."""
        sequence = self.sequences.pop(number, None)
        if sequence is not None:
            self._unscored.discard(number)
            self._scheduler.remove(sequence)

    def rest(self) -> None:
        """Forget a step in flight that nobody waits for."""
        if not self._scheduler.busy:
            self._in_flight = None

    def step(self, on_step: Callable[[StepRecord], None] | None, prepare_masks: PrepareMasks) -> None:
        """Launch the next step, then read the tokens of the last.

        `on_step` is called with the record of a launch, `prepare_masks` with the masks of the step.
        """
        self._prepare_masks = prepare_masks
        began, self._waited = time.perf_counter(), 0.0
        flight, self._in_flight = self._in_flight, None
        if flight is None:
            self._mark = time.perf_counter()
        launched = self._launch_after(flight)
        ahead = launched is not None
        if flight is not None:
            self._read(flight, launched)
        self._in_flight = launched if ahead or flight is None else self._launch_after(None)
        if self._in_flight is None:
            return
        if on_step is not None:
            seconds = time.perf_counter() - began - self._waited
            on_step(self._record(self._in_flight.plan, ahead or flight is None, seconds))
        self._steps += 1

    def _record(self, plan: StepPlan, ahead: bool, host_seconds: float) -> StepRecord:
        scheduler = self._scheduler
        return StepRecord(
            number=self._steps,
            sequences=plan.numbers,
            starts=plan.starts,
            lengths=plan.lengths,
            sampled=plan.sampled.astype(np.int32),
            prompt_tokens=plan.prompt_tokens,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_pages=scheduler.pool.free_pages,
            preemptions=scheduler.preempted,
            cached_tokens=scheduler.cached_tokens,
            ahead=ahead,
            host_seconds=host_seconds,
            masked=len(scheduler.slots.tables.masked(plan.sampling)) > 0,
        )

    def _launch_after(self, flight: Flight | None) -> Flight | None:
        """Launch a step; `flight` is the last, if it is unread. When the launch fails, read it before raising.

        None: there is nothing to launch, or `flight` must be read first.
        """
        plan = None
        try:
            plan = self._scheduler.plan(unread=flight is not None)
            if plan is None:
                return None
            version = self._scheduler.table_version
            slots = self._scheduler.slots
            tables = slots.tables
            last = flight if flight is not None and plan.follows(flight.plan) else None
            if (
                last is not None
                and last.plan.is_decode
                and last.table_version == version
                and not (
                    tables.in_use and tables.change(plan.slots, plan.totals - 1 - slots.prompt[plan.slots])
                )
            ):
                sampling, pending = last.sampling, self._executor.advance()
            else:
                if last is not None and last.plan.scored is None and not tables.in_use:
                    sampling = last.sampling
                else:
                    sampling = self._sampling(plan, flight)
                batch = batch_of(plan, slots, self._executor.page_size)
                if flight is None:
                    self.statistics.idle_seconds += time.perf_counter() - self._mark
                pending = self._executor.run(batch, sampling)
        except BaseException:
            if plan is not None:
                self._scheduler.slots.tables.write_again(plan.slots)
            if flight is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._read(flight, None)
            raise
        self._scheduler.launched(plan)
        return Flight(plan, pending, version, sampling, queued=flight is not None)

    def _sampling(self, plan: StepPlan, flight: Flight | None) -> Sampling:
        """The sampling of a step, for whose masks the sampler waits. `flight` is the last step, if it is unread."""
        sampling = sampling_of(plan, self._scheduler.slots, self._is_end)
        masked = self._scheduler.slots.tables.masked(plan.sampling)
        return replace(sampling, late=partial(self._masks, masked, flight)) if len(masked) else sampling

    def _masks(self, masked: Int64, flight: Flight | None) -> list[TableRow]:
        """The rows of masks of these slots, after the tokens that `flight`, if unread, has sampled."""
        began = time.perf_counter()
        sampled = flight.pending.tokens() if flight is not None else np.empty(0, np.int32)
        self._waited += time.perf_counter() - began
        slots = self._scheduler.slots
        return mask_rows(slots, masked, sampled, self._is_end, self._prepare_masks, self.failed_masks)

    def _read(self, flight: Flight, launched: Flight | None) -> None:
        """Read the tokens of a step, append each to its sequence, and remove the sequences that have ended.

        `launched` is the step that was launched since. When the tokens cannot be read, both come to nothing.
        """
        scheduler, slots, plan = self._scheduler, self._scheduler.slots, flight.plan
        try:
            began = time.perf_counter()
            sampled = flight.pending.tokens()
            logprobs = flight.pending.logprobs() if flight.sampling.logprobs else None
            arrived = time.perf_counter()
        except BaseException:
            scheduler.take_back(step.plan for step in (launched, flight) if step is not None)
            raise
        seconds, self._mark = arrived - self._mark, arrived
        self._waited += arrived - began
        if scheduler.max_itl is not None and flight.queued and plan.chunk_tokens:
            scheduler.step_time.measure(plan.chunk_tokens, plan.decodes, seconds)
        scheduler.keep_pages(plan)
        current = scheduler.is_current(plan)
        if logprobs is not None and plan.scored is not None:
            self._score(plan, logprobs, current)
        which, rows, totals, full = plan.sampled_rows, plan.sampling, plan.totals, plan.full
        tokens, numbers = sampled.take(which), plan.of_sampled(plan.numbers)
        has_failed = len(tokens) > 0 and tokens[tokens.argmin()] == NO_TOKEN  # less than any token
        if current is not None or has_failed:
            valid = tokens != NO_TOKEN
            for number in integers(numbers[~valid]):
                if number in self.sequences:
                    self.failed.append(self.sequences[number])
                    self.remove(number)
            if current is not None:
                valid &= plan.of_sampled(current)
            which, rows, full, tokens = which[valid], rows[valid], full[valid], tokens[valid]
            numbers, totals = numbers[valid], totals[valid]
        if launched is None:
            slots.newest[rows] = tokens
        ends = np.zeros(len(tokens), np.int8)
        ends[full] = _LENGTH
        ends[slots.append(rows, totals, tokens, self._is_end)] = _STOP
        events = StepEvents(numbers, tokens, ends)
        if logprobs is not None:
            events = replace(events, logprobs=logprobs_of(logprobs, which, slots.logprobs[rows]))
        if self._unscored:
            events = self._with_prompts(events)
            ends, tokens = events.ends, events.tokens[events.tokens != NO_TOKEN]
        if len(events):
            self.events.append((events, slots.stream.take(rows)))
        for number in integers(numbers[ends.nonzero()]):
            self.remove(number)
        self.statistics.add(plan.prompt_tokens, len(tokens), seconds)

    def _score(self, plan: StepPlan, logprobs: Logprobs, current: Bools | None) -> None:
        """Give the sequences of a step the log-probabilities of their prompts."""
        for place, rows in plan.scored.chunks if plan.scored is not None else ():
            if current is None or current[place]:
                sequence = self.sequences[int(plan.numbers[place])]
                sequence.score(Logprobs(logprobs.tokens[rows], logprobs.values[rows]))

    def _with_prompts(self, events: StepEvents) -> StepEvents:
        """Events with the log-probabilities of prompts, where they are the first of sequences that ask for these.

        A sequence of `max_tokens` 0 ends there: its token is dropped.
        """
        first = {number: place for place, number in enumerate(integers(events.sequences))}
        scores: dict[int, PromptLogprobs] = {}
        tokens, ends, logprobs = events.tokens.copy(), events.ends.copy(), list(events.logprobs)
        for number in self._unscored & first.keys():
            sequence, place = self.sequences[number], first[number]
            scores[number] = sequence.take_scores()
            if sequence.params.max_tokens == 0:
                tokens[place], ends[place] = NO_TOKEN, _LENGTH
                logprobs[place : place + 1] = [None] * bool(logprobs)
        self._unscored -= scores.keys()
        return StepEvents(events.sequences, tokens, ends, tuple(logprobs), scores)
