"""Who takes part in the next step: running sequences decode together, prompts fill up what room is left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from infernum.engine.page_pool import PagePool
from infernum.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens start … start + length − 1 of a sequence go into a step.

    `last`: they end with its last known token, so that the step samples the one after.
    """

    sequence: Sequence
    start: int
    length: int
    last: bool

    @property
    def prompt_tokens(self) -> int:
        """How many of the chunk's tokens belong to the prompt."""
        return max(0, min(self.length, self.sequence.prompt_length - self.start))


@dataclass(frozen=True)
class StepPlan:
    """One step: chunks of different sequences, sequence after sequence."""

    chunks: tuple[Chunk, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The chunks whose last token's logits are wanted.

        A step of which nobody wants a token asks for one all the same, so that no executor meets a step
        without rows.
        """
        return tuple(i for i, chunk in enumerate(self.chunks) if chunk.last) or (len(self.chunks) - 1,)

    @property
    def prompt_tokens(self) -> int:
        """How many of the step's tokens belong to prompts."""
        return sum(chunk.prompt_tokens for chunk in self.chunks)

    def following(self) -> StepPlan:
        """The step after this one when each sequence goes on by the one token that it samples."""
        return StepPlan(tuple(replace(chunk, start=chunk.start + 1) for chunk in self.chunks))


class Scheduler:
    """Admits sequences first come, first served, and plans the steps.

    A sequence is admitted once the cache has pages for all it may ever need, so that none that runs has to be
    stopped for lack of them.
    """

    def __init__(self, pool: PagePool, *, max_tokens: int, max_sequences: int) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_sequences = min(max_sequences, max_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the cache when it has it for itself."""
        assert sequence.longest <= self.pool.capacity, "a sequence that never fits waits for ever"
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages.

        A step in flight may still write to them; whoever gets them next is launched after it, on the same
        stream.
        """
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = ()

    def plan(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do. Every token sampled so far must be known."""
        while self._can_admit():
            sequence = self.waiting.popleft()
            pages = self.pool.allocate(sequence.longest)
            assert pages is not None, "enough pages were free a moment ago"
            sequence.pages = pages
            self.running.append(sequence)
        room = self.max_tokens
        chunks: list[Chunk] = []
        decoding_first = sorted(self.running, key=lambda s: s.cached < s.prompt_length)
        for sequence in decoding_first:
            remaining = len(sequence.tokens) - sequence.cached
            length = min(remaining, room)
            if length > 0:
                chunks.append(Chunk(sequence, sequence.cached, length, last=length == remaining))
                room -= length
        return StepPlan(tuple(chunks)) if chunks else None

    def repeats(self, plan: StepPlan) -> bool:
        """True when the step after `plan`, which is still in flight, needs nothing from the host.

        That is when every sequence had one token, samples another that it may keep, and nobody comes or goes.
        """
        alone = len(plan.chunks) == len(self.running) and not self._can_admit()
        return alone and all(
            c.length == 1
            and c.last
            and not c.sequence.finished
            and c.sequence.output_length + 1 < c.sequence.max_tokens
            for c in plan.chunks
        )

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.max_sequences:
            return False
        return self.pool.pages_for(self.waiting[0].longest) <= self.pool.free_pages
