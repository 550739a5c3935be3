"""Plans the next step: running sequences decode together, and prompts fill the rest of the step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from infernum.engine.page_pool import PagePool
from infernum.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens start … start + length − 1 of a sequence, as part of a step.

    `last` is True when the chunk ends with the last known token, so that the step samples the next token.
    """

    sequence: Sequence
    start: int
    length: int
    last: bool

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens in the chunk."""
        return max(0, min(self.length, self.sequence.prompt_length - self.start))


@dataclass(frozen=True)
class StepPlan:
    """One step: a chunk of each sequence that takes part."""

    chunks: tuple[Chunk, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The indices of the chunks whose last token needs logits.

        A step that samples nothing has the last chunk as its row, so that every step has a row.
        """
        return tuple(i for i, chunk in enumerate(self.chunks) if chunk.last) or (len(self.chunks) - 1,)

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens in the step."""
        return sum(chunk.prompt_tokens for chunk in self.chunks)

    def following(self) -> StepPlan:
        """The step after this one, when each sequence continues with the one token that it samples."""
        return StepPlan(tuple(replace(chunk, start=chunk.start + 1) for chunk in self.chunks))


class Scheduler:
    """Admits sequences in order of arrival, and plans the steps.

    A sequence is admitted once the pool has pages for its prompt and `max_tokens`, so that no running sequence ever
    has to be stopped for lack of pages. A sequence that grows beyond `short_context` tokens is computed anew.
    """

    def __init__(
        self, pool: PagePool, *, max_tokens: int, max_sequences: int, short_context: int | None = None
    ) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_sequences = min(max_sequences, max_tokens)
        self.short_context = short_context
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which must fit an empty cache."""
        assert sequence.longest <= self.pool.capacity, "a sequence that never fits waits for ever"
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence and free its pages.

        A step in flight may still write to the pages. The next owner's steps run after it, on the same stream.
        """
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = ()

    def plan(self) -> StepPlan | None:
        """Plan the next step; None when no sequence waits or runs. The host must have read all sampled tokens."""
        while self._can_admit():
            sequence = self.waiting.popleft()
            pages = self.pool.allocate(sequence.longest)
            assert pages is not None, "enough pages were free a moment ago"
            sequence.pages = pages
            self.running.append(sequence)
        for sequence in self.running:
            if self._is_long(len(sequence.tokens)) and not sequence.is_long:
                sequence.is_long, sequence.cached = True, 0
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
        """True when the step after `plan`, which is still in flight, needs no input from the host.

        Every sequence then has one token in `plan` and may take another, and no sequence is admitted or computed anew.
        """
        alone = len(plan.chunks) == len(self.running) and not self._can_admit()
        return alone and all(
            c.length == 1
            and c.last
            and not c.sequence.finished
            and c.sequence.output_length + 1 < c.sequence.max_tokens
            and self._is_long(c.start + 2) == c.sequence.is_long
            for c in plan.chunks
        )

    def _is_long(self, length: int) -> bool:
        return self.short_context is not None and length > self.short_context

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.max_sequences:
            return False
        return self.pool.pages_for(self.waiting[0].longest) <= self.pool.free_pages
