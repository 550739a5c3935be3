"""The results of an engine: events of a sequence, completions, records of steps, and statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, repeat
from typing import Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from infernum.step import NO_TOKEN, Array, Float32, Int32, Logprobs

FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop token or a stop string ended the sequence; `length`: the sequence reached max_tokens,
the context or the end of the KV cache.
"""

FINISH_REASONS: tuple[FinishReason | None, ...] = (None, "stop", "length")
"""What the elements of `StepEvents.ends` mean."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one place of an output, by the model's own logits, whatever altered them for sampling.

    top  the most likely tokens and their log-probabilities, as many as `SamplingParams.logprobs` asks for
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class PromptLogprobs(Sequence[TokenLogprobs | None]):
    """Log-probabilities of each token of a prompt, None for the first: a list whose items are made when they are read.

    Arrays [prompt − 1, 1 + SamplingParams.prompt_logprobs]: of each token itself, then of the most likely ones.
    """

    tokens: Int32
    values: Float32

    def __len__(self) -> int:
        return 1 + len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprobs | None]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprobs | list[TokenLogprobs | None] | None:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return _chosen(self.tokens[place - 1], self.values[place - 1]) if place else None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PromptLogprobs)
            and np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.values, other.values, equal_nan=True)
        )

    def __hash__(self) -> int:
        return hash((self.tokens.tobytes(), self.values.tobytes()))


@dataclass(slots=True)
class StepEvents:
    """The advances of one or more steps: a token for each of some sequences, in order. They do not change (`Batch`).

    sequences  int64 [events]: numbers of the sequences
    tokens     int32 [events]; `NO_TOKEN` for a sequence that ends with its prompt
    ends       int8 [events]: places in `FINISH_REASONS`. Stop strings are found where text is made, and end no sequence
               here
    logprobs   of each event, None where its sequence does not ask for them; empty where none does
    prompt_logprobs
               by the number of a sequence that asks for them, at its first event
    """

    sequences: NDArray[np.int64]
    tokens: Int32
    ends: NDArray[np.int8]
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    prompt_logprobs: Mapping[int, PromptLogprobs] = field(default_factory=dict[int, PromptLogprobs])

    @classmethod
    def joined(cls, parts: Sequence[StepEvents]) -> StepEvents:
        """All events of `parts`."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([np.empty(0, np.int64), *(part.sequences for part in parts)]),
            np.concatenate([np.empty(0, np.int32), *(part.tokens for part in parts)]),
            np.concatenate([np.empty(0, np.int8), *(part.ends for part in parts)]),
            tuple(chain(*(part.logprobs_of_each() for part in parts)))
            if any(p.logprobs for p in parts)
            else (),
            {number: each for part in parts for number, each in part.prompt_logprobs.items()},
        )

    def where(self, chosen: NDArray[np.bool_]) -> StepEvents:
        """The events that `chosen` marks."""
        logprobs = tuple(compress(self.logprobs, chosen.tolist()))
        sequences, prompts = self.sequences[chosen], self.prompt_logprobs
        own = {number: prompts[number] for number in prompts if number in sequences}
        return StepEvents(sequences, self.tokens[chosen], self.ends[chosen], logprobs, own)

    def logprobs_of_each(self) -> Iterable[TokenLogprobs | None]:
        """The log-probabilities of each event, or None."""
        return self.logprobs or repeat(None, len(self))

    def with_logprobs(self) -> Iterator[tuple[tuple[int, int, FinishReason | None], TokenLogprobs | None]]:
        """Each event, as by iteration, and its log-probabilities, or None."""
        return zip(self, self.logprobs_of_each(), strict=True)

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[tuple[int, int, FinishReason | None]]:
        """Number, token, and why the sequence has ended, of each event."""
        columns = (self.sequences.tolist(), self.tokens.tolist(), self.ends.tolist())
        for number, token, end in zip(*cast("tuple[list[int], ...]", columns), strict=True):
            yield number, token, FINISH_REASONS[end]


def tokens_of(token: int) -> tuple[int, ...]:
    """The new tokens of an event of `StepEvents`: none where the sequence ends with its prompt."""
    return () if token == NO_TOKEN else (token,)


def logprobs_of(logprobs: Logprobs, rows: Array, counts: Int32) -> tuple[TokenLogprobs | None, ...]:
    """What sequences that ask for `counts` [events] tokens, the sampled one included, get of these rows of a step."""
    return tuple(
        _chosen(tokens[:count], values[:count]) if count else None
        for tokens, values, count in zip(
            logprobs.tokens[rows], logprobs.values[rows], counts.tolist(), strict=True
        )
    )


def _chosen(tokens: Int32, values: Float32) -> TokenLogprobs:
    """One row of log-probabilities: first that of the token itself, then the most likely ones."""
    (token, *others), (logprob, *of_others) = tokens.tolist(), values.tolist()
    return TokenLogprobs(token, logprob, tuple(zip(others, of_others, strict=True)))


@dataclass(frozen=True)
class Event:
    """One advance of a sequence: its new tokens, the text that they complete, and whether the sequence has ended.

    An end token or stop token is in `tokens` but not in `text`. `text` is empty without a tokenizer. `logprobs` has an
    element for each token where `SamplingParams.logprobs` asks for them. The first event of a sequence has the
    `prompt_logprobs` that it asks for.
    """

    sequence: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class Completion:
    """The generated tokens and text of one prompt, and log-probabilities of both where they are asked for."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class StepRecord:
    """What one launched step did, for measurements and logs. Arrays are int32, but for the numbers.

    A step computes the tokens `starts[i]` … `starts[i] + lengths[i] − 1` of the sequence `sequences[i]`. The records of
    a run hold where every prompt was cut, which is all that is needed to replay the run.

    number         of the step, from 0
    sequences      [seqs]  numbers of the sequences, int64
    starts         [seqs]
    lengths        [seqs]
    sampled        [rows]  indices into `sequences`: those whose next token the step samples
    prompt_tokens  tokens of prompts among the tokens of the step
    waiting        sequences that wait to be admitted, after the step was planned
    running        sequences that have a slot
    free_pages     pages of the cache without owners
    preemptions    how often a sequence was preempted, since the engine was created
    cached_tokens  tokens of prompts that were found in the cache instead of computed, since the engine was created
    ahead          False when the tokens of the last step had to be read before this step was launched
    masked         True when its sampler waited for masks, which are made once the tokens of the last step are read
    host_seconds   wall-clock seconds that planning and launching it took, and reading the step before, without the time
                   that the host waited for tokens
    """

    number: int
    sequences: NDArray[np.int64]
    starts: Int32
    lengths: Int32
    sampled: Int32
    prompt_tokens: int
    waiting: int
    running: int
    free_pages: int
    preemptions: int
    cached_tokens: int
    ahead: bool
    host_seconds: float
    masked: bool = False


def ahead_share(records: Iterable[StepRecord]) -> float:
    """Share of the steps without masks that were launched before the tokens of the last were read.

    A step with masks always waits for these tokens, though only its sampler does. 1 where all steps have masks.
    """
    ahead = [record.ahead for record in records if not record.masked]
    return sum(ahead) / len(ahead) if ahead else 1.0


@dataclass
class Statistics:
    """Tokens and wall-clock seconds since the engine was created.

    The time of a step with prompt tokens counts as prompt time. Tokens sampled by such a step count as output tokens
    but not as decoded tokens.

    idle_seconds  between steps, while the device waited though there was a sequence to compute
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    output_tokens: int = 0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    idle_seconds: float = 0.0

    def add(self, prompt_tokens: int, sampled_tokens: int, seconds: float) -> None:
        """Count one step more."""
        self.prompt_tokens += prompt_tokens
        self.output_tokens += sampled_tokens
        if prompt_tokens:
            self.prompt_seconds += seconds
        else:
            self.decoded_tokens += sampled_tokens
            self.decode_seconds += seconds
