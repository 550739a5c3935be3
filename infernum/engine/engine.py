"""The engine: serves prompts over one executor, and returns tokens and text as they are generated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from collections.abc import Sequence as Ordered
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Lock

import numpy as np

from infernum.engine.events import (
    FINISH_REASONS,
    Completion,
    Event,
    PromptLogprobs,
    Statistics,
    StepEvents,
    StepRecord,
    TokenLogprobs,
    logprobs_of,
    tokens_of,
)
from infernum.engine.intake import Intake
from infernum.engine.page_pool import PagePool
from infernum.engine.request import read_params
from infernum.engine.scheduler import Scheduler, StepPlan
from infernum.engine.sequence import Mask, Sequence
from infernum.engine.slots import Bools, Int64, integers, rows_of
from infernum.engine.step_inputs import batch_of, prompt_logits, sampling_of
from infernum.engine.table_rows import bits_without_ends
from infernum.engine.tokenizer import Tokenizer
from infernum.engine.transcript import Transcript
from infernum.engine.windowed_pages import longest_sequence
from infernum.errors import LogitsError, RequestError
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams
from infernum.step import NO_TOKEN, Executor, Float32, Int32, Logprobs, Pending, Sampling, TableRow

_STOP, _LENGTH = FINISH_REASONS.index("stop"), FINISH_REASONS.index("length")


@dataclass(frozen=True)
class Flight:
    """A launched step whose tokens the host has not read. `table_version` is that of the page tables it was given.

    `queued`: it was launched before the tokens of the last step were read, so that the GPU was not idle between them.
    """

    plan: StepPlan
    pending: Pending
    table_version: int
    sampling: Sampling
    queued: bool


@dataclass
class _Stream:
    """The events of an open stream that its reader has not taken yet, and the sequences that have failed."""

    numbers: list[int]
    events: deque[StepEvents] = field(default_factory=deque[StepEvents])
    failed: list[int] = field(default_factory=list[int])


@dataclass
class Engine:
    """Serves any number of sequences over one executor.

    end_tokens     tokens that end a sequence
    tokenizer      None: events and completions have tokens but no text
    max_model_len  longest sequence, where the executor was opened for less than the model's context
    max_itl_ms     limit of milliseconds between the tokens of a sequence: a step that decodes computes no more prompt
                   tokens than are predicted to fit, but at least 64 (`Scheduler`); None: no limit
    max_num_seqs   most sequences that run at once; None: as many as the executor has rows
    prepare_masks  called with the masks of a step and the output of each, before each mask is called: computes them at
                   once, where that is faster
    on_step        called with the record of each launched step, by the thread that makes the step. It must not call the
                   engine
    closed         True once `close` was called; methods that need the executor then raise RequestError

    Servers call `add` and `step_events`, or `step`; other callers use `stream` or `generate`, several at once. `add`
    and `cancel` may be called at any time and by any thread; steps are made by one thread at a time. Whoever reads
    events makes their text.
    """

    executor: Executor
    model: ModelInfo
    end_tokens: Collection[int] = ()
    tokenizer: Tokenizer | None = None
    max_model_len: int | None = None
    max_itl_ms: float | None = None
    max_num_seqs: int | None = None
    on_step: Callable[[StepRecord], None] | None = None
    prepare_masks: Callable[[Ordered[tuple[Mask, Int32]]], None] = lambda masks: None
    statistics: Statistics = field(default_factory=Statistics, init=False)
    closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._is_end = np.zeros(self.model.vocab_size, np.bool_)
        self._is_end[[token for token in self.end_tokens if 0 <= token < self.model.vocab_size]] = True
        self._pool = PagePool(self.executor.num_pages, self.executor.page_size)
        windowed = {
            window: PagePool(pages, self.executor.page_size)
            for window, pages in self.executor.windowed_pages.items()
        }
        capacity = min(
            [self._pool.capacity, *(longest_sequence(window, pool) for window, pool in windowed.items())]
        )
        self._intake = Intake(self.model, capacity, self.max_model_len, self.tokenizer is not None)
        self._scheduler = Scheduler(
            self._pool,
            max_tokens=self.executor.max_batch_tokens,
            max_rows=self.executor.max_rows,
            max_sequences=self.max_num_seqs,
            max_length=self.longest,
            short_context=self.model.short_context,
            windowed=windowed,
            max_itl=None if self.max_itl_ms is None else self.max_itl_ms / 1e3,
        )
        self._sequences: dict[int, Sequence] = {}
        self._unscored = set[int]()
        """Numbers of the sequences whose first event is to have log-probabilities of the prompt."""
        self._transcripts: dict[int, Transcript] = {}
        self._streams: dict[int, _Stream] = {}
        self._in_flight: Flight | None = None
        self._unread_events: list[StepEvents] = []
        self._failed: list[int] = []
        self._numbers = count()
        self._stream_numbers = count(1)
        self._inbox = SimpleQueue[Sequence | int]()
        self._stepping = Lock()
        self._mark = 0.0
        self._steps = 0
        self._waited = 0.0

    def close(self) -> None:
        """Close the executor. An open stream raises RequestError at its next event."""
        if not self.closed:
            self.closed = True
            self.executor.close()

    def require_open(self) -> None:
        """Raise RequestError once the engine is closed."""
        if self.closed:
            raise RequestError("the model is closed; load it again")

    @property
    def busy(self) -> bool:
        """True while `step` has work or events left."""
        waiting = not self._inbox.empty() or self._scheduler.busy or self._in_flight is not None
        return waiting or bool(self._unread_events or self._failed)

    def step(self) -> list[Event]:
        """Make a step as `step_events` does, and return its events with their text.

        A stop string ends a sequence here, which is then cancelled. A few more of its tokens may have been computed.
        """
        events: list[Event] = []
        step = self._next_step()
        for (number, token, end), logprobs in step.with_logprobs():
            transcript = self._transcripts.get(number)
            if transcript is None:  # cancelled, or ended by a stop string
                continue
            tokens, own = tokens_of(token), None if logprobs is None else (logprobs,)
            text, reason = transcript.read(tokens, end)
            events.append(Event(number, tokens, text, reason, own, step.prompt_logprobs.get(number)))
            if reason is not None:
                del self._transcripts[number]
                if end is None:
                    self.cancel(number)
        return events

    def step_events(self) -> StepEvents:
        """Launch the next step, and return the events of the step before it, of sequences of `add`.

        A step is launched before the host reads the tokens of the last: the lengths of sequences are known, and a token
        that is not is a reference to the row that samples it. A sequence that has ended then takes part in one extra
        step, whose token is dropped. Tokens are read first only where a sequence is preempted.

        A sequence whose logits are not finite ends with a LogitsError that has its number. The error is raised after
        the next step is launched. The other sequences go on, and the next call returns their events.

        When a launch fails, its error is raised once. The next call returns the events of the step before, and
        launches from the tokens that the host has read. Tokens that cannot be read are computed again.
        """
        events = self._next_step()
        if np.count_nonzero(events.ends):
            for number in integers(events.sequences[events.ends > 0]):
                self._transcripts.pop(number, None)
        return events

    def add(
        self,
        prompt: Ordered[int] | Int32,
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        allowed: Mask | None = None,
    ) -> int:
        """Queue a prompt of token ids, a list or an array; its events carry the number returned. Raises RequestError.

        Sequences of a higher priority are admitted first and preempted last. Only sequences of one salt share what the
        cache holds.

        `allowed` gives the tokens that may follow the output so far (`Mask`). It is called while the model computes
        their logits. When it raises, or gives anything but a bit set, its sequence ends and the step raises the error.
        """
        self.require_open()
        (own,) = read_params(params, 1)
        if own.n != 1:
            raise RequestError(
                f"n is {own.n}; a sequence is added for one completion, so add it {own.n} times"
            )
        sequence = self._intake.sequence(prompt, own, index=0)
        sequence.priority, sequence.salt, sequence.mask = priority, salt, allowed
        number = sequence.number = next(self._numbers)
        self._transcripts[number] = Transcript(self.tokenizer, sequence.tokens, sequence.params)
        self._inbox.put(sequence)
        self._take_requests_unless_stepping()
        return number

    def cancel(self, number: int) -> None:
        """Stop a sequence of `add` and drop its events. Does nothing when the sequence has ended."""
        self._transcripts.pop(number, None)
        self._inbox.put(number)
        self._take_requests_unless_stepping()

    def stream(
        self, prompts: Ordered[Ordered[int]], params: SamplingParams | Ordered[SamplingParams]
    ) -> Iterator[Event]:
        """Generate for several prompts at once and yield events as they come.

        `Event.sequence` is the index of the prompt in `prompts`; a prompt with `SamplingParams.n` counts n times.
        `params` is one object for all prompts or one for each. With a seed, sequence i has a seed derived from the seed
        and i; without, each has a random seed.
        Closing the iterator stops the generation. Raises RequestError before any step runs, and LogitsError, which
        ends all sequences, when the logits of a prompt are not finite.
        """
        self.require_open()
        return self._stream(self._sequences_of(prompts, params))

    def generate(
        self, prompts: Ordered[Ordered[int]], params: SamplingParams | Ordered[SamplingParams]
    ) -> list[Completion]:
        """Generate for several prompts at once, as `stream` does, and return when all are done.

        With `SamplingParams.n`, the n completions of a prompt follow each other. They run at once: where the prompt is
        not in the cache yet, each computes it.
        """
        sequences = self._sequences_of(prompts, params)
        completions: dict[int, Completion] = {}
        with self._opened(sequences) as stream:
            outputs = dict(zip(stream.numbers, self._transcripts_of(sequences), strict=True))
            tokens: dict[int, list[int]] = {number: [] for number in stream.numbers}
            chosen: dict[int, list[TokenLogprobs]] = {
                number: []
                for number, each in zip(stream.numbers, sequences, strict=True)
                if each.params.wants_logprobs
            }
            of_prompts: dict[int, PromptLogprobs] = {}
            texts: dict[int, str] = dict.fromkeys(stream.numbers, "")
            while outputs:
                events = self._next_events(stream)
                of_prompts |= events.prompt_logprobs
                for (number, token, end), logprobs in events.with_logprobs():
                    transcript = outputs.get(number)
                    if transcript is None:
                        continue
                    tokens[number] += tokens_of(token)
                    if logprobs is not None:
                        chosen[number].append(logprobs)
                    reason = end
                    if transcript.has_stops:
                        text, reason = transcript.read(tokens_of(token), end)
                        texts[number] += text
                    elif end is not None:
                        texts[number], _ = transcript.read(tokens[number], end)
                    if reason is not None:
                        own = tuple(chosen[number]) if number in chosen else None
                        completions[number] = Completion(
                            tuple(tokens[number]), texts[number], reason, own, of_prompts.get(number)
                        )
                        del outputs[number]
                        if end is None:
                            self.cancel(number)
            return [completions[number] for number in stream.numbers]

    def logits(self, token_ids: Ordered[int]) -> Float32:
        """The logits after each of the given tokens, float32 [tokens, vocab]: row t predicts token t + 1.

        NaN and infinity are returned as the model computes them. Raises RequestError while the engine generates, and
        for more tokens than fit the context or the cache.
        """
        self._require_idle()
        tokens = self._intake.scored_tokens(token_ids)
        pages = self._pool.allocate(self._pool.pages_for(len(tokens)))
        assert pages is not None, "an idle engine owns all its pages"
        try:
            return prompt_logits(self.executor, tokens, pages)
        finally:
            self._pool.release(pages)

    def _sequences_of(
        self, prompts: Ordered[Ordered[int]], params: SamplingParams | Ordered[SamplingParams]
    ) -> list[Sequence]:
        self.require_open()
        pairs = zip(prompts, read_params(params, len(prompts)), strict=True)
        each = [(prompt, own) for prompt, own in pairs for _ in range(own.n)]
        return [self._intake.sequence(prompt, own, index) for index, (prompt, own) in enumerate(each)]

    def _transcripts_of(self, sequences: list[Sequence]) -> list[Transcript]:
        return [Transcript(self.tokenizer, sequence.tokens, sequence.params) for sequence in sequences]

    def _stream(self, sequences: list[Sequence]) -> Iterator[Event]:
        with self._opened(sequences) as stream:
            transcripts = self._transcripts_of(sequences)
            unfinished = dict(zip(stream.numbers, enumerate(transcripts), strict=True))
            while unfinished:
                events = self._next_events(stream)
                for (number, token, end), logprobs in events.with_logprobs():
                    if number not in unfinished:
                        continue
                    index, transcript = unfinished[number]
                    tokens = tokens_of(token)
                    text, reason = transcript.read(tokens, end)
                    if reason is not None:
                        del unfinished[number]
                        if end is None:
                            self.cancel(number)
                    own = None if logprobs is None else (logprobs,)
                    yield Event(index, tokens, text, reason, own, events.prompt_logprobs.get(number))

    @contextmanager
    def _opened(self, sequences: list[Sequence]) -> Generator[_Stream]:
        """A stream of these sequences, which are queued. At the end, those that have not ended are cancelled."""
        stream_number = next(self._stream_numbers)
        for sequence in sequences:
            sequence.number, sequence.stream = next(self._numbers), stream_number
        stream = self._streams[stream_number] = _Stream([sequence.number for sequence in sequences])
        try:
            for sequence in sequences:
                self._inbox.put(sequence)
            yield stream
        finally:
            for number in stream.numbers:
                self.cancel(number)
            del self._streams[stream_number]
            self._rest()

    def _next_events(self, stream: _Stream) -> StepEvents:
        """Events of a stream that its reader has not taken; without any, make steps. Raises LogitsError."""
        while not stream.events and not stream.failed:
            self.require_open()
            with self._stepping:
                if not stream.events and not stream.failed:
                    self._step()
        if stream.failed:
            raise LogitsError(stream.failed, self.executor.dtype)
        return stream.events.popleft()

    def _next_step(self) -> StepEvents:
        """Make a step, and return the unread events of sequences of `add`. Raises LogitsError."""
        with self._stepping:
            self._step()
            if self._failed:
                failed, self._failed = self._failed, []
                for number in failed:
                    self._transcripts.pop(number, None)
                raise LogitsError(failed, self.executor.dtype)
            events, self._unread_events = self._unread_events, []
            return StepEvents.joined(events)

    @property
    def longest(self) -> int:
        """Most tokens of one sequence, prompt and output."""
        return self._intake.longest

    def _step(self) -> None:
        """Launch the next step, then read the tokens of the last."""
        self.require_open()
        began, self._waited = time.perf_counter(), 0.0
        self._take_requests()
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
        if self.on_step is not None:
            seconds = time.perf_counter() - began - self._waited
            self.on_step(self._record(self._in_flight.plan, ahead or flight is None, seconds))
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
            free_pages=self._pool.free_pages,
            preemptions=scheduler.preempted,
            cached_tokens=scheduler.cached_tokens,
            ahead=ahead,
            host_seconds=host_seconds,
            masked=len(scheduler.slots.tables.masked(plan.sampling)) > 0,
        )

    def _take_requests(self) -> None:
        """Queue what was added, and remove what was cancelled, by any thread."""
        while not self._inbox.empty():
            request = self._inbox.get()
            if isinstance(request, Sequence):
                self._sequences[request.number] = request
                if request.params.prompt_logprobs is not None:
                    self._unscored.add(request.number)
                self._scheduler.add(request)
                continue
            sequence = self._sequences.get(request)
            if sequence is not None:
                self._remove(sequence)
            others = [part.where(part.sequences != request) for part in self._unread_events]
            self._unread_events = [part for part in others if len(part)]
            self._failed = [failed for failed in self._failed if failed != request]

    def _take_requests_unless_stepping(self) -> None:
        if self._stepping.acquire(blocking=False):
            try:
                self._take_requests()
            finally:
                self._stepping.release()

    def _rest(self) -> None:
        """Forget a step in flight that nobody waits for."""
        if self._stepping.acquire(blocking=False):
            try:
                if not self._scheduler.busy:
                    self._in_flight = None
            finally:
                self._stepping.release()

    def _require_idle(self) -> None:
        self.require_open()
        if self.busy:
            raise RequestError("the engine is generating; finish or close that generation first")

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
                sampling, pending = last.sampling, self.executor.advance()
            else:
                if last is not None and last.plan.scored is None and not tables.in_use:
                    sampling = last.sampling
                else:
                    sampling = self._sampling(plan, flight)
                batch = batch_of(plan, slots, self.executor.page_size)
                if flight is None:
                    self.statistics.idle_seconds += time.perf_counter() - self._mark
                pending = self.executor.run(batch, sampling)
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

    def _masks(self, slots: Int64, flight: Flight | None) -> list[TableRow]:
        """The tokens that the sequences of these slots may sample after those that `flight`, if unread, has sampled."""
        held = self._scheduler.slots
        began = time.perf_counter()
        sampled = flight.pending.tokens() if flight is not None else np.empty(0, np.int32)
        self._waited += time.perf_counter() - began
        outputs: list[tuple[Sequence, Mask, Int32]] = []
        for slot, newest in rows_of(slots, held.newest[slots]):
            sequence = held.sequences[slot]
            assert sequence.mask is not None, "the slot is one of a mask"
            tokens = held.tokens_of(sequence)
            if newest < 0:
                last = sampled[-1 - newest]
                tokens = np.append(tokens, last)
                if self._is_last(sequence, int(last)):
                    continue
            outputs.append((sequence, sequence.mask, tokens[sequence.prompt_length :]))
        self.prepare_masks([(mask, output) for _, mask, output in outputs])
        rows: list[TableRow] = []
        for sequence, mask, output in outputs:
            try:
                rows.append(TableRow("allowed", sequence.slot, self._allowed(sequence, output, mask(output))))
            except BaseException:
                self.cancel(sequence.number)
                raise
        return rows

    def _is_last(self, sequence: Sequence, token: int) -> bool:
        """True for a token that ends a sequence, or is none."""
        ends = token >= 0 and bool(self._is_end[token]) and not sequence.params.ignore_eos
        return token < 0 or ends or token in sequence.params.stop_token_ids

    def _allowed(self, sequence: Sequence, output: Int32, mask: Int32 | None) -> Int32:
        """The row of the table `allowed` for the token after an output. Raises RequestError.

        `min_tokens` forbids the end only where the mask leaves another token.
        """
        words = -(-len(self._is_end) // 32)
        bits = np.full(words, -1, np.int32) if mask is None else np.asarray(mask)
        if bits.shape != (words,) or bits.dtype != np.int32:
            raise RequestError(
                f"the mask of sequence {sequence.number} is {bits.dtype} {list(bits.shape)}; give int32 [{words}], "
                "a bit for each token, or None"
            )
        if len(output) >= sequence.params.min_tokens:
            return bits
        longer = bits & bits_without_ends(sequence.params, self._is_end)
        return longer if longer.any() else bits

    def _read(self, flight: Flight, launched: Flight | None) -> None:
        """Read the tokens of a step, append each to its sequence, and remove the sequences that have ended.

        `launched` is the step that was launched since. When the tokens cannot be read, both come to nothing.
        """
        plan, slots = flight.plan, self._scheduler.slots
        try:
            began = time.perf_counter()
            sampled = flight.pending.tokens()
            logprobs = flight.pending.logprobs() if flight.sampling.logprobs else None
            arrived = time.perf_counter()
        except BaseException:
            self._scheduler.take_back(step.plan for step in (launched, flight) if step is not None)
            raise
        seconds, self._mark = arrived - self._mark, arrived
        self._waited += arrived - began
        if self.max_itl_ms is not None and flight.queued and plan.chunk_tokens:
            self._scheduler.step_time.measure(plan.chunk_tokens, plan.decodes, seconds)
        self._scheduler.keep_pages(plan)
        current = self._scheduler.is_current(plan)
        if logprobs is not None and plan.scored is not None:
            self._score(plan, logprobs, current)
        which, rows, totals, full = plan.sampled_rows, plan.sampling, plan.totals, plan.full
        tokens, numbers = sampled.take(which), plan.of_sampled(plan.numbers)
        valid = tokens != NO_TOKEN
        if current is not None or np.count_nonzero(valid) < len(valid):
            self._fail(numbers[~valid])
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
        self._deliver(events, rows)
        if np.count_nonzero(ends):
            for number in integers(numbers[ends > 0]):
                self._remove(self._sequences[number])
        self.statistics.add(plan.prompt_tokens, len(tokens), seconds)

    def _score(self, plan: StepPlan, logprobs: Logprobs, current: Bools | None) -> None:
        """Give the sequences of a step the log-probabilities of their prompts."""
        for place, rows in plan.scored.chunks if plan.scored is not None else ():
            if current is None or current[place]:
                sequence = self._sequences[int(plan.numbers[place])]
                sequence.score(Logprobs(logprobs.tokens[rows], logprobs.values[rows]))

    def _with_prompts(self, events: StepEvents) -> StepEvents:
        """Events with the log-probabilities of prompts, where they are the first of sequences that ask for these.

        A sequence of `max_tokens` 0 ends there: its token is dropped.
        """
        first = {number: place for place, number in enumerate(integers(events.sequences))}
        scores: dict[int, PromptLogprobs] = {}
        tokens, ends, logprobs = events.tokens.copy(), events.ends.copy(), list(events.logprobs)
        for number in self._unscored & first.keys():
            sequence, place = self._sequences[number], first[number]
            scores[number] = sequence.take_scores()
            if sequence.params.max_tokens == 0:
                tokens[place], ends[place] = NO_TOKEN, _LENGTH
                logprobs[place : place + 1] = [None] * bool(logprobs)
        self._unscored -= scores.keys()
        return StepEvents(events.sequences, tokens, ends, tuple(logprobs), scores)

    def _deliver(self, events: StepEvents, slots: Int64) -> None:
        """Give each stream its events; those of sequences of `add`, which are of no stream, wait for `_next_step`."""
        if not len(events):
            return
        streams = self._scheduler.slots.stream.take(slots)
        if not np.count_nonzero(streams):
            self._unread_events.append(events)
            return
        for number in set(integers(streams)):
            part = events.where(streams == number)
            stream = self._streams.get(number)
            if number == 0:
                self._unread_events.append(part)
            elif stream is not None:
                stream.events.append(part)

    def _fail(self, numbers: Int64) -> None:
        """End the sequences for which no token could be drawn, if they have not ended before."""
        for number in integers(numbers):
            sequence = self._sequences.get(number)
            if sequence is None:
                continue
            stream = self._streams.get(sequence.stream)
            if stream is not None:
                stream.failed.append(stream.numbers.index(number))
            elif sequence.stream == 0:
                self._failed.append(number)
            self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.number]
        self._unscored.discard(sequence.number)
        self._scheduler.remove(sequence)
