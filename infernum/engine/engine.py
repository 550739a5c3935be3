"""The engine: serves prompts over one executor, and returns tokens and text as they are generated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from collections.abc import Sequence as Ordered
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from threading import Lock

import numpy as np

from infernum.engine.events import (
    Completion,
    Event,
    PromptLogprobs,
    Statistics,
    StepEvents,
    StepRecord,
    TokenLogprobs,
    tokens_of,
)
from infernum.engine.intake import Intake
from infernum.engine.masks import PrepareMasks
from infernum.engine.page_pool import PagePool
from infernum.engine.request import read_params
from infernum.engine.scheduler import Scheduler
from infernum.engine.sequence import MakeMask, Mask, Sequence
from infernum.engine.slots import integers
from infernum.engine.step_inputs import prompt_logits
from infernum.engine.step_loop import StepLoop
from infernum.engine.tokenizer import Tokenizer
from infernum.engine.transcript import Transcript
from infernum.engine.windowed_pages import longest_sequence
from infernum.errors import LogitsError, RequestError
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams
from infernum.step import Executor, Float32, Int32


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
    prepare_masks: PrepareMasks = lambda masks: None
    closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        is_end = np.zeros(self.model.vocab_size, np.bool_)
        is_end[[token for token in self.end_tokens if 0 <= token < self.model.vocab_size]] = True
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
        self._loop = StepLoop(self.executor, self._scheduler, is_end)
        self._transcripts: dict[int, Transcript] = {}
        self._streams: dict[int, _Stream] = {}
        self._unread_events: list[StepEvents] = []
        self._failed: list[int] = []
        self._numbers = count()
        self._stream_numbers = count(1)
        self._inbox = SimpleQueue[Sequence | int]()
        self._stepping = Lock()

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
        waiting = not self._inbox.empty() or self._loop.busy
        return waiting or bool(self._unread_events or self._failed)

    @property
    def statistics(self) -> Statistics:
        """Counts of tokens and seconds since the engine was created, which grow with each step."""
        return self._loop.statistics

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
        for number in integers(events.sequences[events.ends.nonzero()]):
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
        self,
        prompts: Ordered[Ordered[int]],
        params: SamplingParams | Ordered[SamplingParams],
        masks: Ordered[MakeMask | None] = (),
    ) -> Iterator[Event]:
        """Generate for several prompts at once and yield events as they come.

        `Event.sequence` is the index of the prompt in `prompts`; a prompt with `SamplingParams.n` counts n times.
        `params` is one object for all prompts or one for each. With a seed, sequence i has a seed derived from the seed
        and i; without, each has a random seed. `masks` makes the masks of each prompt's sequences (`add`); (): none has
        one.
        Closing the iterator stops the generation. Raises RequestError before any step runs, and LogitsError, which
        ends all sequences, when the logits of a prompt are not finite.
        """
        self.require_open()
        return self._stream(self._sequences_of(prompts, params, masks))

    def generate(
        self,
        prompts: Ordered[Ordered[int]],
        params: SamplingParams | Ordered[SamplingParams],
        masks: Ordered[MakeMask | None] = (),
    ) -> list[Completion]:
        """Generate for several prompts at once, as `stream` does, and return when all are done.

        With `SamplingParams.n`, the n completions of a prompt follow each other. They run at once: where the prompt is
        not in the cache yet, each computes it.
        """
        sequences = self._sequences_of(prompts, params, masks)
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
        self,
        prompts: Ordered[Ordered[int]],
        params: SamplingParams | Ordered[SamplingParams],
        masks: Ordered[MakeMask | None],
    ) -> list[Sequence]:
        self.require_open()
        own = read_params(params, len(prompts))
        makers = masks or [None] * len(prompts)
        sequences: list[Sequence] = []
        for prompt, chosen, make_mask in zip(prompts, own, makers, strict=True):
            for _ in range(chosen.n):
                sequences.append(self._intake.sequence(prompt, chosen, len(sequences)))
                sequences[-1].mask = make_mask and make_mask()
        return sequences

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

    def _take_requests(self) -> None:
        """Queue what was added, and remove what was cancelled, by any thread."""
        while not self._inbox.empty():
            request = self._inbox.get()
            if isinstance(request, Sequence):
                self._loop.add(request)
                continue
            self._loop.remove(request)
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
                self._loop.rest()
            finally:
                self._stepping.release()

    def _require_idle(self) -> None:
        self.require_open()
        if self.busy:
            raise RequestError("the engine is generating; finish or close that generation first")

    def _step(self) -> None:
        self.require_open()
        self._take_requests()
        try:
            self._loop.step(self.on_step, self.prepare_masks)
        finally:
            self._hand_out()

    def _hand_out(self) -> None:
        """Give the streams what a step has brought, and cancel the sequences whose masks have failed."""
        loop = self._loop
        while loop.events:
            self._deliver(*loop.events.pop(0))
        while loop.failed:
            self._fail(loop.failed.pop(0))
        while loop.failed_masks:
            self.cancel(loop.failed_masks.pop())

    def _deliver(self, events: StepEvents, streams: Int32) -> None:
        """Give each stream its events; those of sequences of `add`, which are of no stream, wait for `_next_step`."""
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

    def _fail(self, sequence: Sequence) -> None:
        """Note that no token could be drawn for a sequence."""
        stream = self._streams.get(sequence.stream)
        if stream is not None:
            stream.failed.append(stream.numbers.index(sequence.number))
        elif sequence.stream == 0:
            self._failed.append(sequence.number)
