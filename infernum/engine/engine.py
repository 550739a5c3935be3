"""The engine: serves prompts over one executor, and returns tokens and text as they are generated."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Ordered
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from queue import SimpleQueue
from threading import Lock

import numpy as np

from infernum.engine.events import Completion, Event, Statistics, StepRecord
from infernum.engine.page_pool import PagePool
from infernum.engine.request import read_params, read_token_ids
from infernum.engine.scheduler import Scheduler, StepPlan
from infernum.engine.sequence import FinishReason, Sequence
from infernum.engine.slots import integers
from infernum.engine.step_inputs import batch_of, is_penalised, prompt_logits, sampling_of
from infernum.engine.tokenizer import TextStream, Tokenizer
from infernum.errors import LogitsError, RequestError
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import NO_TOKEN, Executor, Float32, Pending


@dataclass(frozen=True)
class Flight:
    """A launched step whose tokens the host has not read. `table_version` is that of the page tables it was given."""

    plan: StepPlan
    pending: Pending
    table_version: int


@dataclass
class _Stream:
    """The events of an open stream that nobody has taken yet, and the index of each of its sequences."""

    index: dict[int, int]
    events: deque[Event] = field(default_factory=deque[Event])
    failed: list[int] = field(default_factory=list[int])


@dataclass
class Engine:
    """Serves any number of sequences over one executor.

    end_tokens     tokens that end a sequence
    tokenizer      None: events and completions have tokens but no text
    max_model_len  longest sequence, where the executor was opened for less than the model's context
    on_step        called with the record of each launched step, by the thread that makes the step. It must not call the
                   engine
    closed         True once `close` was called; methods that need the executor then raise RequestError

    Servers call `add` and `step`; other callers use `stream` or `generate`, several at once. `add` and `cancel` may be
    called at any time and by any thread; steps are made by one thread at a time.
    """

    executor: Executor
    model: ModelInfo
    end_tokens: Collection[int] = ()
    tokenizer: Tokenizer | None = None
    max_model_len: int | None = None
    on_step: Callable[[StepRecord], None] | None = None
    statistics: Statistics = field(default=Statistics(), init=False)
    closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._end = frozenset(self.end_tokens)
        self._context = min(self.model.context, self.max_model_len or self.model.context)
        self._pool = PagePool(self.executor.num_pages, self.executor.page_size)
        self._scheduler = Scheduler(
            self._pool,
            max_tokens=self.executor.max_batch_tokens,
            max_sequences=self.executor.max_rows,
            max_length=self.longest,
            short_context=self.model.short_context,
        )
        self._sequences: dict[int, Sequence] = {}
        self._streams: dict[int, _Stream] = {}
        self._in_flight: Flight | None = None
        self._pending_events: list[Event] = []
        self._failed: list[int] = []
        self._numbers = count()
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
        return waiting or bool(self._pending_events or self._failed)

    def step(self) -> list[Event]:
        """Launch the next step, and return the events of the step before it, of sequences of `add`.

        A step is launched before the host reads the tokens of the last: the lengths of sequences are known, and a token
        that is not is a reference to the row that samples it. A sequence that has ended then takes part in one extra
        step, whose token is dropped. Tokens are read first only where a sequence has a repetition penalty, or is
        preempted.

        A sequence whose logits are not finite ends with a LogitsError that has its number. The error is raised after
        the next step is launched. The other sequences go on, and the next call returns their events.

        When a launch fails, its error is raised once. The next call returns the events of the step before, and
        launches from the tokens that the host has read. Tokens that cannot be read are computed again.
        """
        with self._stepping:
            self._step()
            if self._failed:
                failed, self._failed = self._failed, []
                raise LogitsError(failed, self.executor.dtype)
            events, self._pending_events = self._pending_events, []
            return events

    def add(self, prompt: Ordered[int], params: SamplingParams, *, priority: int = 0, salt: str = "") -> int:
        """Queue a prompt of token ids; its events carry the number returned. Raises RequestError.

        Sequences of a higher priority are admitted first and preempted last. Only sequences of one salt share what the
        cache holds.
        """
        self.require_open()
        sequence = self._sequence(prompt, *read_params(params, 1), index=0)
        sequence.priority, sequence.salt = priority, salt
        return self._enqueue(sequence)

    def cancel(self, number: int) -> None:
        """Stop a sequence of `add` and drop its events. Does nothing when the sequence has ended."""
        self._inbox.put(number)
        self._take_requests_unless_stepping()

    def stream(
        self, prompts: Ordered[Ordered[int]], params: SamplingParams | Ordered[SamplingParams]
    ) -> Iterator[Event]:
        """Generate for several prompts at once and yield events as they come.

        `Event.sequence` is the index of the prompt in `prompts`. `params` is one object for all prompts or one for
        each. With a seed, prompt i has a seed derived from the seed and i; without, each prompt has a random seed.
        Closing the iterator stops the generation. Raises RequestError before any step runs, and LogitsError, which
        ends all sequences, when the logits of a prompt are not finite.
        """
        self.require_open()
        pairs = zip(prompts, read_params(params, len(prompts)), strict=True)
        return self._stream([self._sequence(prompt, own, index) for index, (prompt, own) in enumerate(pairs)])

    def generate(
        self, prompts: Ordered[Ordered[int]], params: SamplingParams | Ordered[SamplingParams]
    ) -> list[Completion]:
        """Generate for several prompts at once, as `stream` does, and return when all are done."""
        tokens: list[list[int]] = [[] for _ in prompts]
        texts: list[list[str]] = [[] for _ in prompts]
        reasons: list[FinishReason] = ["stop" for _ in prompts]
        for event in self.stream(prompts, params):
            tokens[event.sequence].extend(event.tokens)
            texts[event.sequence].append(event.text)
            reasons[event.sequence] = event.finish_reason or reasons[event.sequence]
        return [Completion(tuple(t), "".join(x), r) for t, x, r in zip(tokens, texts, reasons, strict=True)]

    def logits(self, token_ids: Ordered[int]) -> Float32:
        """The logits after each of the given tokens, float32 [tokens, vocab]: row t predicts token t + 1.

        NaN and infinity are returned as the model computes them. Raises RequestError while the engine generates, and
        for more tokens than fit the context or the cache.
        """
        self._require_idle()
        token_ids = self._checked(token_ids)
        count = len(token_ids)
        if count > self.longest:
            raise RequestError(
                f"{count} tokens are more than the {self._limit_name} of {self.longest} tokens"
            )
        pages = self._pool.allocate(self._pool.pages_for(count))
        assert pages is not None, "an idle engine owns all its pages"
        try:
            return prompt_logits(self.executor, token_ids, pages)
        finally:
            self._pool.release(pages)

    def _stream(self, sequences: list[Sequence]) -> Iterator[Event]:
        stream = _Stream({})
        for index, sequence in enumerate(sequences):
            sequence.number = next(self._numbers)
            stream.index[sequence.number] = index
            self._streams[sequence.number] = stream
        unfinished = len(sequences)
        try:
            for sequence in sequences:
                self._inbox.put(sequence)
            while unfinished:
                while not stream.events and not stream.failed:
                    self.require_open()
                    with self._stepping:
                        if not stream.events and not stream.failed:
                            self._step()
                if stream.failed:
                    raise LogitsError(stream.failed, self.executor.dtype)
                event = stream.events.popleft()
                unfinished -= event.finish_reason is not None
                yield event
        finally:
            for number in stream.index:
                self.cancel(number)
                self._streams.pop(number, None)
            self._rest()

    def _sequence(self, prompt: Ordered[int], params: SamplingParams, index: int) -> Sequence:
        """A sequence that can be served. Raises RequestError."""
        prompt = self._checked(prompt)
        room = self.longest
        if len(prompt) >= room:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, which leaves no room for a new one in the "
                f"{self._limit_name} of {room} tokens; shorten it"
            )
        if params.stop and self.tokenizer is None:
            raise RequestError(
                "stop strings need a tokenizer, and this model has no tokenizer.json; give stop_token_ids"
            )
        for token in params.stop_token_ids:
            if token >= self.model.vocab_size:
                raise RequestError(
                    f"stop_token_ids holds {token}; the model's tokens are 0 to {self.model.vocab_size - 1}"
                )
        seed = secrets.randbits(32) if params.seed is None else derived_seed(params.seed, index)
        text = TextStream(self.tokenizer, prompt, params.stop) if self.tokenizer else None
        max_tokens = min(params.max_tokens, room - len(prompt))
        return Sequence(-1, prompt, params, max_tokens=max_tokens, seed=seed, text=text)

    def _checked(self, token_ids: Ordered[int]) -> list[int]:
        """The tokens of a prompt. Raises RequestError when it is empty or has tokens outside the vocabulary."""
        read = read_token_ids(token_ids)
        if not read:
            raise RequestError(
                "the prompt is empty, and this model has no token to begin with; give at least one token"
            )
        for place, token in enumerate(read):
            if not 0 <= token < self.model.vocab_size:
                raise RequestError(
                    f"token {place} of the prompt is {token}; "
                    f"the model's tokens are 0 to {self.model.vocab_size - 1}"
                )
        return read

    @property
    def longest(self) -> int:
        """Most tokens of one sequence, prompt and output."""
        return min(self._context, self._pool.capacity)

    @property
    def _limit_name(self) -> str:
        if self._pool.capacity < self._context:
            return "KV cache"
        return "model's context" if self._context == self.model.context else "limit --max-model-len"

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
            sequences=np.array([sequence.number for sequence in plan.sequences], np.int32),
            starts=plan.starts,
            lengths=plan.lengths,
            sampled=plan.sampled,
            prompt_tokens=plan.prompt_tokens,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_pages=self._pool.free_pages,
            preemptions=scheduler.preempted,
            cached_tokens=scheduler.cached_tokens,
            ahead=ahead,
            host_seconds=host_seconds,
        )

    def _take_requests(self) -> None:
        """Queue what was added, and remove what was cancelled, by any thread."""
        while not self._inbox.empty():
            request = self._inbox.get()
            if isinstance(request, Sequence):
                self._sequences[request.number] = request
                self._scheduler.add(request)
                continue
            sequence = self._sequences.get(request)
            if sequence is not None:
                sequence.finish_reason = "stop"
                self._remove(sequence)
            self._pending_events = [event for event in self._pending_events if event.sequence != request]
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

    def _enqueue(self, sequence: Sequence) -> int:
        sequence.number = next(self._numbers)
        self._inbox.put(sequence)
        self._take_requests_unless_stepping()
        return sequence.number

    def _require_idle(self) -> None:
        self.require_open()
        if self.busy:
            raise RequestError("the engine is generating; finish or close that generation first")

    def _launch_after(self, flight: Flight | None) -> Flight | None:
        """Launch a step; `flight` is the last, if it is unread. When the launch fails, read it before raising.

        None: there is nothing to launch, or `flight` must be read first.
        """
        try:
            plan = self._scheduler.plan(unread=flight is not None)
            if plan is None:
                return None
            version = self._scheduler.table_version
            if flight is not None and flight.table_version == version and _follows(plan, flight.plan):
                pending = self.executor.advance()
            elif flight is not None and is_penalised(plan, self._scheduler.slots):
                return None
            else:
                batch = batch_of(plan, self._scheduler.slots, self.executor.page_size)
                sampling = sampling_of(plan, self._scheduler.slots, self.model.vocab_size)
                pending = self.executor.run(batch, sampling)
        except BaseException:
            if flight is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._read(flight, None)
            raise
        self._scheduler.launched(plan)
        return Flight(plan, pending, version)

    def _read(self, flight: Flight, launched: Flight | None) -> None:
        """Read the tokens of a step, append each to its sequence, and remove the sequences that have ended.

        `launched` is the step that was launched since. When the tokens cannot be read, both come to nothing.
        """
        plan, slots = flight.plan, self._scheduler.slots
        try:
            began = time.perf_counter()
            sampled = flight.pending.tokens()
            self._waited = time.perf_counter() - began
        except BaseException:
            for step in (launched, flight):
                if step is not None:
                    self._scheduler.take_back(step.plan)
            raise
        if launched is None:
            slots.row[:] = -1
        self._scheduler.keep_pages(plan)
        events: list[Event] = []
        for place, token in zip(integers(plan.sampled), integers(sampled), strict=False):
            sequence = plan.sequences[place]
            if sequence.finished:
                continue
            if token == NO_TOKEN:
                sequence.finish_reason = "stop"
                stream = self._streams.get(sequence.number)
                (self._failed if stream is None else stream.failed).append(
                    sequence.number if stream is None else stream.index[sequence.number]
                )
                self._remove(sequence)
                continue
            slots.newest[sequence.slot] = token
            text = sequence.append(token, self._end)
            events.append(Event(sequence.number, (token,), text, sequence.finish_reason))
            if sequence.finished:
                self._remove(sequence)
        now = time.perf_counter()
        self.statistics = self.statistics.plus(plan.prompt_tokens, len(events), now - self._mark)
        self._mark = now
        for event in events:
            stream = self._streams.get(event.sequence)
            if stream is None:
                self._pending_events.append(event)
            else:
                stream.events.append(replace(event, sequence=stream.index[event.sequence]))

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.number]
        self._scheduler.remove(sequence)


def _follows(plan: StepPlan, last: StepPlan) -> bool:
    """True when the step of `plan` is that of `last` one position on: the input of each row is what it sampled."""
    return (
        last.is_decode
        and plan.is_decode
        and len(plan.slots) == len(last.slots)
        and bool(np.array_equal(plan.slots, last.slots) and np.array_equal(plan.starts, last.starts + 1))
    )
