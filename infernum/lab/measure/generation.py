"""A generation as the engine runs it, timed: prompts in as few steps as fit, then one token of each sequence a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum.lab.measure.workload import decode_batch, drawn, prompt_steps
from infernum.sampling_params import SamplingParams
from infernum.step import Batch, Executor, Int32

GREEDY_PARAMS = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Generation:
    """`tokens` after each of `prompts`, int32 [batch, prompt], whose keys and values lie in `pages` of the cache."""

    prompts: Int32
    pages: Int32
    tokens: int

    @property
    def batch(self) -> int:
        return len(self.prompts)

    def steps(self, executor: Executor) -> list[tuple[Batch, list[int]]]:
        """The steps of the prompts, each with the sequences that end in it."""
        return prompt_steps(self.prompts, self.pages, executor)


@dataclass(frozen=True)
class TimedGeneration:
    """Wall-clock time of one generation, and its output tokens, int32 [batch, tokens]."""

    prompt_seconds: float
    decode_seconds: float
    output: Int32

    @property
    def prompt_ms(self) -> float:
        return 1e3 * self.prompt_seconds

    @property
    def token_ms(self) -> float:
        """Milliseconds of one decode step. The prompt's steps make the first token, so there is one step fewer."""
        return 1e3 * self.decode_seconds / (self.output.shape[1] - 1)


def times(generations: Sequence[TimedGeneration]) -> dict[str, Any]:
    """The times of generations as fields of a result: medians, and the times of each."""
    prompts, tokens = [g.prompt_ms for g in generations], [g.token_ms for g in generations]
    return {
        "prompt_ms": statistics.median(prompts),
        "ms_per_token": statistics.median(tokens),
        "prompt_ms_all": prompts,
        "ms_per_token_all": tokens,
    }


def generate(
    executor: Executor,
    generation: Generation,
    steps: Sequence[tuple[Batch, list[int]]],
    params: SamplingParams,
) -> TimedGeneration:
    """One whole generation, as the engine does it: the tokens of a step are read while the next step runs."""
    sampling = drawn(params, range(generation.batch))
    begin = time.perf_counter()
    first = np.zeros(generation.batch, np.int32)
    for batch, finished in steps:
        sampled = executor.run(batch, drawn(params, finished or [0])).tokens()
        first[finished] = sampled[: len(finished)]
    decode_begin = time.perf_counter()
    output = [first]
    position = generation.prompts.shape[1]
    pending = executor.run(decode_batch(first, position, generation.pages), sampling)
    for _ in range(generation.tokens - 2):
        following = executor.advance()
        output.append(pending.tokens())
        pending = following
    output.append(pending.tokens())
    return TimedGeneration(decode_begin - begin, time.perf_counter() - decode_begin, np.stack(output, axis=1))


def interleaved(
    run: Callable[[SamplingParams], TimedGeneration], modes: Sequence[SamplingParams], repeats: int
) -> list[list[TimedGeneration]]:
    """The timed generations of each mode over `repeats` rounds.

    A round runs every mode once, forwards and backwards in turns, so that a drifting clock affects all modes alike.
    """
    timings: list[list[TimedGeneration]] = [[] for _ in modes]
    for repeat in range(repeats):
        order = range(len(modes)) if repeat % 2 == 0 else reversed(range(len(modes)))
        for mode in order:
            timings[mode].append(run(modes[mode]))
    return timings
