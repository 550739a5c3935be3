"""The engine: serves prompts over one executor, and returns tokens and text as they are generated."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Ordered
from contextlib import suppress
from dataclasses import dataclass, field, replace

from infernum.engine.events import Completion, Event, Statistics
from infernum.engine.page_pool import PagePool
from infernum.engine.request import read_params, read_token_ids
from infernum.engine.scheduler import Scheduler, StepPlan
from infernum.engine.sequence import FinishReason, Sequence
from infernum.engine.step_inputs import batch_of, prompt_logits, sampling_of
from infernum.engine.tokenizer import TextStream, Tokenizer
from infernum.errors import LogitsError, RequestError
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import NO_TOKEN, Executor, Float32, Int32, Pending


@dataclass(frozen=True)
class Flight:
    """A launched step whose tokens the host has not read."""

    plan: StepPlan
    pending: Pending


@dataclass
class Engine:
    """Serves any number of sequences over one executor. Not for use by several threads at the same time.

    end_tokens     tokens that end a sequence
    tokenizer      None: events and completions have tokens but no text
    max_model_len  longest sequence, where the executor was opened for less than the model's context
    closed         True once `close` was called; methods that need the executor then raise RequestError

    Servers call `add` and `step`; other callers use `stream` or `generate`.
    """

    executor: Executor
    model: ModelInfo
    end_tokens: Collection[int] = ()
    tokenizer: Tokenizer | None = None
    max_model_len: int | None = None
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
            short_context=self.model.short_context,
        )
        self._sequences: dict[int, Sequence] = {}
        self._in_flight: Flight | None = None
        self._pending_events: list[Event] = []
        self._failed: list[int] = []
        self._streaming = False
        self._next_number = 0
        self._mark = 0.0

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
        return (
            self._scheduler.busy or self._in_flight is not None or bool(self._pending_events or self._failed)
        )

    def step(self) -> list[Event]:
        """Launch the next step, and return the events of the step before it.

        While the same sequences go on decoding, the next step takes its input on the device, and is launched before
        the host reads the tokens of the last. A sequence that has ended then takes part in one extra step, whose token
        is dropped. When a sequence is admitted or removed, the host reads the tokens first.

        A sequence whose logits are not finite ends with a LogitsError that has its number. The error is raised after
        the next step is launched. The other sequences go on, and the next call returns their events.

        When a launch fails, its error is raised once. The next call returns the events of the step before, and
        launches from the tokens that the host has read. Tokens that cannot be read are computed again.
        """
        self.require_open()
        flight, self._in_flight = self._in_flight, None
        if flight is None:
            self._mark = time.perf_counter()
        elif self._scheduler.repeats(flight.plan):
            self._in_flight = self._advance_after(flight)
        if flight is not None:
            self._postprocess(flight)
        if self._in_flight is None and (plan := self._scheduler.plan()) is not None:
            self._in_flight = self._run(plan)
        if self._failed:
            failed, self._failed = self._failed, []
            raise LogitsError(failed, self.executor.dtype)
        events, self._pending_events = self._pending_events, []
        return events

    def add(self, prompt: Ordered[int], params: SamplingParams) -> int:
        """Queue a prompt of token ids; its events carry the number returned. Raises RequestError.

        Not allowed while a `stream` is open.
        """
        self.require_open()
        if self._streaming:
            raise RequestError("a stream is open; add sequences once it has ended or is closed")
        return self._enqueue(self._sequence(prompt, *read_params(params, 1), index=0))

    def cancel(self, number: int) -> None:
        """Stop a sequence of `add` and drop its events. Does nothing when the sequence has ended."""
        sequence = self._sequences.get(number)
        if sequence is not None:
            sequence.finish_reason = "stop"
            self._remove(sequence)
        self._pending_events = [event for event in self._pending_events if event.sequence != number]
        self._failed = [failed for failed in self._failed if failed != number]

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
        if count > self._longest:
            raise RequestError(
                f"{count} tokens are more than the {self._limit_name} of {self._longest} tokens"
            )
        pages = self._pool.allocate(count)
        assert pages is not None, "an idle engine owns all its pages"
        try:
            return prompt_logits(self.executor, token_ids, pages)
        finally:
            self._pool.release(pages)

    def _stream(self, sequences: list[Sequence]) -> Iterator[Event]:
        self._require_idle()
        self._streaming = True
        index = {self._enqueue(sequence): i for i, sequence in enumerate(sequences)}
        try:
            while self.busy:
                for event in self.step():
                    yield replace(event, sequence=index[event.sequence])
        except LogitsError as error:
            raise LogitsError([index[number] for number in error.sequences], error.dtype) from None
        finally:
            for number in index:
                self.cancel(number)
            self._in_flight, self._streaming = None, False

    def _sequence(self, prompt: Ordered[int], params: SamplingParams, index: int) -> Sequence:
        """A sequence that can be served. Raises RequestError."""
        prompt = self._checked(prompt)
        room = self._longest
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

    def _enqueue(self, sequence: Sequence) -> int:
        sequence.number = self._next_number
        self._next_number += 1
        self._sequences[sequence.number] = sequence
        self._scheduler.add(sequence)
        return sequence.number

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
    def _longest(self) -> int:
        """Most tokens of one sequence, prompt and output."""
        return min(self._context, self._pool.capacity)

    @property
    def _limit_name(self) -> str:
        if self._pool.capacity < self._context:
            return "KV cache"
        return "model's context" if self._context == self.model.context else "limit --max-model-len"

    def _require_idle(self) -> None:
        self.require_open()
        if self.busy:
            raise RequestError("the engine is generating; finish or close that generation first")

    def _run(self, plan: StepPlan) -> Flight:
        pending = self.executor.run(batch_of(plan), sampling_of(plan, self.model.vocab_size))
        for chunk in plan.chunks:
            chunk.sequence.cached += chunk.length
        return Flight(plan, pending)

    def _advance_after(self, flight: Flight) -> Flight:
        """Launch the step after a flight whose tokens are unread. When the launch fails, read them before raising."""
        try:
            pending = self.executor.advance()
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                self._postprocess(flight)
            raise
        for chunk in flight.plan.chunks:
            chunk.sequence.cached += 1
        return Flight(flight.plan.following(), pending)

    def _postprocess(self, flight: Flight) -> None:
        """Read the tokens of a step, append each to its sequence, and remove the sequences that have ended."""
        sampled = self._sampled(flight)
        events: list[Event] = []
        for row, place in enumerate(flight.plan.rows):
            chunk = flight.plan.chunks[place]
            sequence = chunk.sequence
            if sequence.finished or not chunk.last:
                continue
            token = int(sampled[row])
            if token == NO_TOKEN:
                sequence.finish_reason = "stop"
                self._failed.append(sequence.number)
                self._remove(sequence)
                continue
            text = sequence.append(token, self._end)
            events.append(Event(sequence.number, (token,), text, sequence.finish_reason))
            if sequence.finished:
                self._remove(sequence)
        now = time.perf_counter()
        self.statistics = self.statistics.plus(flight.plan.prompt_tokens, len(events), now - self._mark)
        self._mark = now
        self._pending_events += events

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.number]
        self._scheduler.remove(sequence)

    def _sampled(self, flight: Flight) -> Int32:
        """The tokens of a step. When they cannot be read, reset its sequences to their state before the step."""
        try:
            return flight.pending.tokens()
        except BaseException:
            self._in_flight = None  # a step launched since then has no valid input
            for chunk in flight.plan.chunks:
                chunk.sequence.cached = chunk.start
            raise
