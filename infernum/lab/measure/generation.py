"""A generation as the engine runs it, timed: prompts in as few steps as fit, then one token of each sequence a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from infernum.lab.measure.workload import decode_batch, drawn, prompt_steps
from infernum.sampling_params import SamplingParams
from infernum.step import Batch, Executor, Int32

GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Generation:
    """What is generated: `tokens` after each of `prompts`, int32 [batch, prompt], over the cache's `pages`."""

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
    """Wall-clock of one generation, and the tokens that came out, int32 [batch, tokens]."""

    prompt_seconds: float
    decode_seconds: float
    output: Int32


def generate(
    executor: Executor,
    generation: Generation,
    steps: Sequence[tuple[Batch, list[int]]],
    params: SamplingParams,
) -> TimedGeneration:
    """One whole generation, as the engine does it: each step's tokens are read when the next one is under way."""
    sampling = drawn(params, range(generation.batch))
    begin = time.perf_counter()
    first = np.zeros(generation.batch, np.int32)
    for batch, finished in steps:
        sampled = executor.run(batch, drawn(params, finished or [0])).tokens()
        first[finished] = sampled[: len(finished)]
    middle = time.perf_counter()
    output = [first]
    position = generation.prompts.shape[1]
    pending = executor.run(decode_batch(first, position, generation.pages), sampling)
    for _ in range(generation.tokens - 2):
        following = executor.advance()
        output.append(pending.tokens())
        pending = following
    output.append(pending.tokens())
    return TimedGeneration(middle - begin, time.perf_counter() - middle, np.stack(output, axis=1))


def interleaved(
    run: Callable[[SamplingParams], TimedGeneration], modes: Sequence[SamplingParams], repeats: int
) -> list[list[TimedGeneration]]:
    """The timings of each mode over `repeats` rounds; a round runs all modes, in turns forwards and backwards.

    What drifts while it is measured, such as a clock, then hits all modes alike.
    """
    timings: list[list[TimedGeneration]] = [[] for _ in modes]
    for repeat in range(repeats):
        order = range(len(modes)) if repeat % 2 == 0 else reversed(range(len(modes)))
        for mode in order:
            timings[mode].append(run(modes[mode]))
    return timings
