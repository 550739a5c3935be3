"""The host's cost of a step: the engine under a steady load, over an executor that computes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infernum import dims
from infernum.engine.engine import Engine
from infernum.engine.events import StepRecord, ahead_share
from infernum.engine.null_executor import NullExecutor
from infernum.lab.measure.origin import cpu_name, versions
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams
from infernum.step import Int32

CONTEXT = 4096
VOCAB = 128_256

OUTPUT = 160
"""Tokens that a sequence generates on average: of S sequences, S / 160 end in a step, and as many arrive."""

PROMPT_TOKENS = (200, 520)
"""Fewest and most tokens of a prompt."""

BEGINNINGS = 8
"""Every other prompt has one of so many beginnings, each of `PROMPT_TOKENS[0]` tokens."""

WARM_UP = 2 * OUTPUT
"""Steps before the measured ones. In them all first sequences end, and the cache fills up."""


@dataclass(frozen=True)
class HostCost:
    """What a step costs the host with so many sequences, in microseconds of CPU time, and what the steps were like.

    us             median of all that the engine does for a step, `Engine.add` of the sequences that arrive included
    p10_us         the time that one of 10 steps keeps below, which other work on the machine disturbs least
    least_us       the fastest step
    p99_us         the time that 99 of 100 steps keep below
    arrivals       sequences that arrive in a step, and as many end
    prompt_tokens  tokens of prompts that a step computes
    cached_share   of the tokens of prompts, the share that was found in the cache
    ahead_share    of the steps without masks, the share that was launched before the tokens of the last were read
    masked         steps with masks
    """

    sequences: int
    steps: int
    us: float
    p10_us: float
    least_us: float
    p99_us: float
    arrivals: float
    prompt_tokens: float
    cached_share: float
    ahead_share: float
    masked: int


def measure_host(
    sizes: Sequence[int], steps: int, on_measured: Callable[[HostCost], None] = lambda cost: None
) -> dict[str, Any]:
    """The cost of `steps` steps for each number of sequences in `sizes`, with the CPU's name. One core is used."""
    costs: list[HostCost] = []
    for sequences in sizes:
        costs.append(measure_steps(sequences, steps))
        on_measured(costs[-1])
    own = versions()
    return {
        "cpu": cpu_name(),
        "versions": {name: own[name] for name in ("python", "infernum", "numpy")},
        "costs": [asdict(cost) for cost in costs],
    }


def measure_steps(sequences: int, steps: int, warm_up: int = WARM_UP) -> HostCost:
    """Keep `sequences` sequences running, a new one for each that ends, and time `steps` steps.

    Full pages are kept and found again; there is no text. As many steps again, which are not timed, tell what the load
    is like.
    """
    load = _Load(sequences)
    for _ in range(warm_up):
        load.step()
    seconds = np.array([load.step() for _ in range(steps)])
    arrived = load.arrived
    records: list[StepRecord] = []
    load.engine.on_step = records.append
    for _ in range(steps):
        load.step()
    computed = sum(record.prompt_tokens for record in records)
    cached = records[-1].cached_tokens - records[0].cached_tokens
    return HostCost(
        sequences=sequences,
        steps=steps,
        us=1e6 * float(np.median(seconds)),
        p10_us=1e6 * float(np.quantile(seconds, 0.1)),
        least_us=1e6 * float(seconds.min()),
        p99_us=1e6 * float(np.quantile(seconds, 0.99)),
        arrivals=(load.arrived - arrived) / steps,
        prompt_tokens=computed / steps,
        cached_share=cached / max(cached + computed, 1),
        ahead_share=ahead_share(records),
        masked=sum(record.masked for record in records),
    )


class _Load:
    """An engine with a constant number of sequences."""

    def __init__(self, sequences: int) -> None:
        pages = sequences * dims.ceildiv(PROMPT_TOKENS[1] + OUTPUT, NullExecutor.page_size)
        executor = NullExecutor(pages + pages // 4 + 16, max(sequences, 16), VOCAB)
        model = ModelInfo(
            family="null",
            name="null",
            config={},
            config_hash="",
            vocab_size=VOCAB,
            context=CONTEXT,
            num_layers=1,
        )
        self.engine = Engine(executor, model, end_tokens=(VOCAB - 1,))
        self.arrived = 0
        self._prompts = _prompts(sequences)
        self._missing = sequences
        self._rng = np.random.default_rng(sequences)

    def step(self) -> float:
        """Add a sequence for each that ended in the last step, and make a step. Returns its seconds of CPU time."""
        arriving = [
            (
                next(self._prompts),
                SamplingParams(max_tokens=int(self._rng.integers(1, 2 * OUTPUT)), temperature=0.8),
            )
            for _ in range(self._missing)
        ]
        began = time.thread_time()
        for prompt, params in arriving:
            self.engine.add(prompt, params)
        events = self.engine.step_events()
        seconds = time.thread_time() - began
        self.arrived += len(arriving)
        self._missing = int(np.count_nonzero(events.ends))
        return seconds


def _prompts(seed: int) -> Generator[Int32]:
    """Random prompts without end; every other one has a beginning in common with some of the others."""
    rng = np.random.default_rng(seed)
    fewest, most = PROMPT_TOKENS
    beginnings: Int32 = rng.integers(0, VOCAB, (BEGINNINGS, fewest), np.int32)
    while True:
        for beginning in beginnings:
            yield rng.integers(0, VOCAB, int(rng.integers(fewest, most + 1)), np.int32)
            rest = rng.integers(0, VOCAB, int(rng.integers(1, most - fewest + 1)), np.int32)
            yield np.concatenate([beginning, rest])
