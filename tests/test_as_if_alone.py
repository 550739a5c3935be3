"""A sequence is as if alone, on each device: in chunks, behind cached pages, preempted, with windows, beside masks.

In NumPy its tokens and log-probabilities have the same bits. On a GPU its logits differ in their last bits with the
class of a step and the number of its tokens: each token is as likely as the likeliest, as far as the type of the
activations can tell, for the logits of the whole sequence in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from engine_exact_soak import Output, Request, alone, together
from numpy.typing import NDArray
from oracle.checkpoints import write_checkpoint
from oracle.configs import case
from oracle.weights import random_weights

from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.compiler import Options, compile_model
from infernum.engine.engine import Engine
from infernum.engine.events import StepRecord
from infernum.graph_bundle import trace_model
from infernum.machine import Device, native_arch
from infernum.models.presets import resolve
from infernum.opening import load_executor
from infernum.resources import demo_folder
from infernum.sampling_params import SamplingParams
from infernum.step import Array, Int32

LONGEST = 300
"""Most tokens of a sequence: five pages."""


@dataclass(frozen=True)
class Place:
    """Where a model runs, and how far log-probabilities may be from those of the whole sequence in one step.

    The difference is relative to the largest logit; None: there is none, not in a single bit.
    """

    device: Device
    dtype: str
    tolerance: float | None

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}"


NUMPY = Place("cpu", "float32", None)
GPU = (Place("cuda", "float32", 1e-4), Place("cuda", "bfloat16", 0.02))
on_each_device = pytest.mark.parametrize(
    "place",
    [
        pytest.param(NUMPY, id=str(NUMPY)),
        *(
            pytest.param(
                each,
                id=str(each),
                marks=[
                    pytest.mark.gpu,
                    pytest.mark.filterwarnings("default"),
                    pytest.mark.xdist_group(str(each)),  # the bundles of a place are compiled by one process
                ],
            )
            for each in GPU
        ),
    ],
)

Open = Callable[..., Engine]
"""`open_engine(place, max_batch_tokens=…, pages=…, model=…)`: each is opened once, for all tests of its place."""


@pytest.fixture(scope="module")
def open_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Engines of the demo, and of a Gemma 3 whose layers have a window of 100 tokens, every other one.

    They admit without a reserve of pages, so that many sequences are preempted.
    """
    folder = tmp_path_factory.mktemp("as-if-alone")
    config = case("gemma3_text").config | {"sliding_window": 100, "head_dim": 64}
    windowed = write_checkpoint(folder / "windowed", config, random_weights(config))
    opened: list[Engine] = []

    @cache
    def open_engine(place: Place, *, max_batch_tokens: int, pages: int, model: str = "demo") -> Engine:
        weights = {"demo": demo_folder(), "windowed": windowed}[model]
        bundle = compiled(weights, folder / f"{model}-{place}-{max_batch_tokens}", place, max_batch_tokens)
        executor = load_executor(
            bundle, Checkpoint.open(weights), place.device, max_model_len=LONGEST, max_pages_total=pages
        )
        engine = Engine(executor, bundle.manifest.model, max_model_len=LONGEST)
        engine._scheduler._reserved = lambda own, growing: 0
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        engine.close()


def compiled(model: Path, folder: Path, place: Place, max_batch_tokens: int) -> Bundle:
    """The bundle of a model for a place, in which no step has more tokens."""
    source = resolve(str(model))
    if place.device == "cpu":
        return trace_model(source, folder, dtype=place.dtype, max_batch_tokens=max_batch_tokens)
    options = Options(arch=native_arch(), dtype=place.dtype, max_batch_tokens=max_batch_tokens)
    return compile_model(source, options, folder)


def random_prompts(engine: Engine, lengths: Sequence[int], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, engine.model.vocab_size, length).tolist() for length in lengths]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, logprobs=0, ignore_eos=True)


def serve(engine: Engine, requests: list[Request]) -> tuple[list[Output], list[StepRecord]]:
    """The outputs of requests that come a few at a time, and the steps that the engine made for them."""
    steps: list[StepRecord] = []
    engine.on_step = steps.append
    outputs = together(engine, requests, 0, np.random.default_rng(0))
    engine.on_step = None
    return outputs, steps


def check_as_if_alone(place: Place, whole: Engine, requests: list[Request], outputs: list[Output]) -> None:
    """Each output is that of its request alone; `whole` computes any sequence in one step."""
    for number, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        assert len(output) == request.params.max_tokens, f"sequence {number}"
        if place.tolerance is None:
            assert output == alone(whole, request, salt=f"{request.prompt}"), f"sequence {number}"
        else:
            check_near(whole, request, output, place.tolerance)


def check_near(whole: Engine, request: Request, output: Output, tolerance: float) -> None:
    """Each token is as likely as the likeliest that it may be, by the logits of the whole sequence in one step."""
    tokens, logprobs = zip(*[(token, own.logprob) for token, own in output], strict=True)
    rows = np.arange(len(tokens))
    logits = whole.logits([*request.prompt, *tokens])[len(request.prompt) - 1 : -1].astype(np.float64)
    bound = tolerance * np.abs(logits).max()
    likely = np.where([may_follow(request, tokens[:row], logits.shape[1]) for row in rows], logits, -np.inf)
    assert (likely.max(axis=1) - likely[rows, tokens]).max() <= bound
    normalizer = logits.max(axis=1) + np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
    assert np.abs(logits[rows, tokens] - normalizer - logprobs).max() <= bound


def may_follow(request: Request, tokens: tuple[int, ...], vocab: int) -> NDArray[np.bool_]:
    """The tokens that a request may sample after these."""
    mask = None if request.allowed is None else request.allowed(np.array(tokens, np.int32))
    if mask is None:
        return np.ones(vocab, np.bool_)
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab].astype(np.bool_)


@on_each_device
def test_a_prompt_in_chunks_gives_what_it_gives_whole(place: Place, open_engine: Open) -> None:
    whole = open_engine(place, max_batch_tokens=512, pages=64)
    short = open_engine(place, max_batch_tokens=70, pages=64)
    prompts = random_prompts(short, [71, 290, 64, 200, 1, 128], seed=1)
    requests = [Request(prompt, greedy(10)) for prompt in prompts]
    outputs, steps = serve(short, requests)
    later = [step for step in steps if ((step.starts > 0) & (step.lengths > 1)).any()]
    beside = [step for step in later if (step.lengths == 1).any()]
    assert len(later) > 5 and beside, "further chunks of prompts, some beside decodes"
    check_as_if_alone(place, whole, requests, outputs)


@on_each_device
def test_a_prompt_behind_cached_pages_gives_what_it_gives_without_them(
    place: Place, open_engine: Open
) -> None:
    whole = open_engine(place, max_batch_tokens=512, pages=64)
    beginning, *endings = random_prompts(whole, [130, 1, 9, 62, 63, 100], seed=2)
    cached = whole._scheduler.cached_tokens
    serve(whole, [Request(beginning, greedy(1))])
    requests = [Request([*beginning, *ending], greedy(10)) for ending in endings]
    outputs, steps = serve(whole, requests)
    assert whole._scheduler.cached_tokens == cached + 128 * len(requests)
    assert sum(step.prompt_tokens for step in steps) == sum(2 + len(ending) for ending in endings)
    check_as_if_alone(place, whole, requests, outputs)


@on_each_device
def test_a_sequence_that_was_preempted_gives_what_it_gives_undisturbed(
    place: Place, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_engine(place, max_batch_tokens=512, pages=64)
    scarce = open_engine(place, max_batch_tokens=512, pages=8)
    prompts = random_prompts(scarce, [50, 60, 20, 63, 120, 40, 55, 10], seed=3)
    requests = [Request(prompt, greedy(70)) for prompt in prompts]
    preempted = scarce._scheduler.preempted
    monkeypatch.setattr(scarce._scheduler, "_reserved", lambda own, growing: 0)  # so that pages run out
    outputs, _ = serve(scarce, requests)
    assert scarce._scheduler.preempted >= preempted + 3
    check_as_if_alone(place, whole, requests, outputs)


@on_each_device
def test_a_sequence_that_gives_back_pages_behind_a_window_gives_what_it_gives_with_them(
    place: Place, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_engine(place, max_batch_tokens=512, pages=64, model="windowed")
    scarce = open_engine(place, max_batch_tokens=70, pages=9, model="windowed")
    prompts = random_prompts(scarce, [1, 230, 99, 150, 64, 210, 30, 101], seed=4)
    requests = [Request(prompt, greedy(70)) for prompt in prompts]
    (group,) = scarce._scheduler.slots.windowed
    release, behind = group.release_behind, []

    def release_and_count(slots: Array, positions: Int32) -> None:
        before = group.pool.free_pages
        release(slots, positions)
        behind.append(group.pool.free_pages - before)

    monkeypatch.setattr(group, "release_behind", release_and_count)
    outputs, _ = serve(scarce, requests)
    assert group.window == 100 and sum(behind) >= 8, "pages behind the window went to others"
    check_as_if_alone(place, whole, requests, outputs)


@on_each_device
def test_sequences_beside_others_with_masks_and_those_with_masks_give_what_each_gives_alone(
    place: Place, open_engine: Open
) -> None:
    whole = open_engine(place, max_batch_tokens=512, pages=64)
    vocab = whole.model.vocab_size

    def every_third(output: Int32) -> Int32:
        bits = np.zeros(-(-vocab // 32) * 32, np.bool_)
        bits[len(output) % 3 : vocab : 3] = True
        return np.packbits(bits, bitorder="little").view(np.int32)

    prompts = random_prompts(whole, [5, 70, 33, 64, 1, 90], seed=5)
    requests = [
        Request(prompt, greedy(12), allowed=every_third if number % 2 else None)
        for number, prompt in enumerate(prompts)
    ]
    outputs, steps = serve(whole, requests)
    assert any(step.masked and len(step.sampled) > 3 for step in steps), "steps of both kinds"
    for request, output in zip(requests, outputs, strict=True):
        in_turn = all(token % 3 == place % 3 for place, (token, _) in enumerate(output))
        assert in_turn == (request.allowed is not None)
    check_as_if_alone(place, whole, requests, outputs)
