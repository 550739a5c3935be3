"""The limit of time for a step (`max_itl_ms`), on a clock that the executor moves."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from toy_executor import ToyExecutor, ToyPending, scripted

from infernum.engine import step_loop
from infernum.engine.engine import Engine
from infernum.engine.scheduler import LEAST_PROMPT_TOKENS
from infernum.engine.step_time import StepTime
from infernum.manifest import ModelInfo
from infernum.sampling_params import SamplingParams

VOCAB = 97
BUDGET = 512
LIMIT = 0.008
WAKING = 10.0
"""Seconds that the launch of a step takes where the GPU is idle."""


def seconds_of(prompt_tokens, decodes):
    return 2e-3 + 2e-5 * prompt_tokens + 1e-4 * decodes


@dataclass(frozen=True)
class TimedStep:
    prompt_tokens: int
    decodes: int
    seconds: float


@dataclass(frozen=True)
class TimedPending:
    pending: ToyPending
    due: float

    def tokens(self):
        executor = self.pending.executor
        executor.now = max(executor.now, self.due)
        return self.pending.tokens()


class TimedExecutor(ToyExecutor):
    """Takes `seconds_of` a step times the factor that `slowness` gives for its number, on a clock of its own."""

    now = 0.0
    free_at = 0.0
    slowness = staticmethod(lambda step: 1.0)

    def __init__(self):
        model = scripted(VOCAB, 0, ())
        super().__init__(model, VOCAB, pages=400, page_size=64, max_batch_tokens=BUDGET)
        self.timed = []

    def _step(self, batch, s):
        lengths = [int(length) for length in batch.query_start[1:] - batch.query_start[:-1]]
        chunks = [length for length in lengths if length > 1]
        prompt_tokens, decodes = sum(chunks), len(lengths) - len(chunks)
        seconds = seconds_of(prompt_tokens, decodes) * self.slowness(self.steps)
        if self.now >= self.free_at:
            self.now += WAKING
        self.free_at = max(self.free_at, self.now) + seconds
        self.timed.append(TimedStep(prompt_tokens, decodes, seconds))
        return TimedPending(super()._step(batch, s), self.free_at)


def served(monkeypatch, max_itl_ms, slowness=lambda step: 1.0):
    """The steps of a load: 1300 tokens alone, then two of 64, which decode beside five long prompts."""
    toy = TimedExecutor()
    toy.slowness = slowness
    monkeypatch.setattr(step_loop, "time", SimpleNamespace(perf_counter=lambda: toy.now))
    info = ModelInfo("toy", "toy", {}, "", vocab_size=VOCAB, context=4096, num_layers=1)
    engine = Engine(toy, info, max_itl_ms=max_itl_ms)
    engine.generate([[1] * 1300], SamplingParams(max_tokens=1, temperature=0))
    long = SamplingParams(max_tokens=600, temperature=0)
    short = SamplingParams(max_tokens=2, temperature=0)
    numbers = [engine.add([2 + index] * 64, long) for index in range(2)]
    engine.step_events()
    numbers += [engine.add([10 + index] * 1500, short) for index in range(5)]
    ended = set()
    while engine.busy:
        events = engine.step_events()
        ended.update(events.sequences[events.ends > 0].tolist())
    assert ended == set(numbers)
    return toy.timed


def mixed(steps):
    return [step for step in steps if step.decodes and step.prompt_tokens]


def test_steps_that_decode_keep_below_the_limit_and_use_it(monkeypatch):
    steps = mixed(served(monkeypatch, 1e3 * LIMIT))
    assert max(step.seconds for step in steps) <= LIMIT
    assert min(step.seconds for step in steps[5:-1]) >= 0.9 * LIMIT


def test_without_a_limit_prompts_fill_the_budget_of_tokens(monkeypatch):
    steps = mixed(served(monkeypatch, None))
    assert max(step.seconds for step in steps) > LIMIT
    assert all(step.prompt_tokens + step.decodes == BUDGET for step in steps[:-1])


def test_without_decodes_there_is_no_limit(monkeypatch):
    alone = [step.prompt_tokens for step in served(monkeypatch, 1e-3) if not step.decodes]
    assert alone[:2] == [BUDGET, BUDGET]


def test_a_limit_that_cannot_be_met_lets_prompts_go_on_by_64_tokens_a_step(monkeypatch):
    steps = mixed(served(monkeypatch, 1e-3))
    assert {step.prompt_tokens for step in steps[:-1]} == {LEAST_PROMPT_TOKENS}


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_one_disturbed_step_takes_no_later_step_over_the_limit_nor_prompts_their_share(monkeypatch, factor):
    steps = mixed(served(monkeypatch, 1e3 * LIMIT, lambda step: factor if step == 20 else 1.0))
    undisturbed = [step for step in steps if step.seconds == seconds_of(step.prompt_tokens, step.decodes)]
    assert len(undisturbed) == len(steps) - 1
    assert max(step.seconds for step in undisturbed) <= 1.1 * LIMIT
    assert min(step.seconds for step in steps[20:-1]) >= 0.7 * LIMIT


def test_a_gpu_that_becomes_slower_is_followed(monkeypatch):
    steps = mixed(served(monkeypatch, 1e3 * LIMIT, lambda step: 1.0 if step < 15 else 2.0))
    assert max(step.seconds for step in steps[30:]) <= LIMIT


def test_the_estimate_is_that_of_the_steps_however_they_vary():
    estimate = StepTime()
    assert estimate.prompt_tokens_within(LIMIT, 3) is None
    for step in range(200):
        prompt_tokens, decodes = 64 + 97 * step % 1000, 31 * step % 256
        estimate.measure(prompt_tokens, decodes, seconds_of(prompt_tokens, decodes))
    for decodes in (1, 40):
        most = estimate.prompt_tokens_within(0.02, decodes)
        assert most is not None and seconds_of(most, decodes) == pytest.approx(0.95 * 0.02, rel=0.01)


def test_steps_that_are_all_alike_leave_a_limit_for_all_others():
    estimate = StepTime()
    for _ in range(1000):
        estimate.measure(200, 16, seconds_of(200, 16))
    most = estimate.prompt_tokens_within(2 * seconds_of(200, 16), 16)
    assert most is not None and 200 < most < 8000


def test_large_steps_of_which_the_first_was_disturbed_do_not_hold_up_prompts():
    estimate = StepTime()
    for step in range(9):
        estimate.measure(4096, 7 * step, seconds_of(4096, 7 * step) * (20 if step == 0 else 1))
    for step in range(100):
        decodes, most = 50 + step % 14, estimate.prompt_tokens_within(0.02, 60)
        prompt_tokens = min(max(LEAST_PROMPT_TOKENS, most), (523, 200, 800, 60)[step % 4])
        estimate.measure(prompt_tokens, decodes, seconds_of(prompt_tokens, decodes))
    assert seconds_of(estimate.prompt_tokens_within(0.02, 60), 60) == pytest.approx(0.95 * 0.02, rel=0.1)
