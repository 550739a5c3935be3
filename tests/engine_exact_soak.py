"""The demo in float32 NumPy: do sequences that share an engine with many others have the tokens that each has alone?

    python tests/engine_exact_soak.py [SEQUENCES] [SEED]

The others are cancelled, preempted, cut into chunks, or have the same beginning. Prints the sequences that differ, and
fails if there are any. A thousand sequences take half an hour on two cores.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.engine.engine import Engine
from infernum.engine.events import Event, PromptLogprobs, TokenLogprobs
from infernum.engine.sequence import Mask
from infernum.graph_bundle import trace_model
from infernum.models.presets import resolve
from infernum.resources import demo_folder
from infernum.sampling_params import SamplingParams

ROUND = 50
"""Sequences that share an engine, beside a quarter as many that are cancelled."""

VOCAB = 4000


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    allowed: Mask | None = None


def open_engine(folder: Path, *, max_batch_tokens: int, pages: int) -> Engine:
    """The demo, with its graphs in `folder`. It admits without a reserve of pages, so that many are preempted."""
    bundle = trace_model(resolve("dante"), folder, dtype="float32", max_batch_tokens=max_batch_tokens)
    executor = CpuExecutor.open(bundle, Checkpoint.open(demo_folder()), max_pages_total=pages)
    engine = Engine(executor, bundle.manifest.model, max_model_len=300)
    engine._scheduler._reserved = lambda own, growing: 0
    return engine


def random_requests(rng: np.random.Generator, count: int) -> list[Request]:
    """Requests of up to 192 tokens, most of which have a beginning in common, and 1 to 16 tokens out; some have 70."""
    common = rng.integers(0, VOCAB, 130).tolist()
    requests: list[Request] = []
    for _ in range(count):
        shared, length = int(rng.integers(0, 131)), int(rng.integers(1, 61))
        if rng.random() < 0.7:  # the output begins a new page, and soon
            length += 62 - (shared + length) % 64
        own = rng.integers(0, VOCAB, max(1, length)).tolist()
        params = SamplingParams(
            max_tokens=int(rng.choice([rng.integers(1, 17), 70], p=[0.95, 0.05])),
            temperature=float(rng.choice([0.0, 0.9])),
            repetition_penalty=float(rng.choice([1.0, 1.0, 1.2])),
            seed=int(rng.integers(1 << 30)),
            frequency_penalty=float(rng.choice([0.0, 0.0, 0.6])),
            logprobs=None if rng.random() < 0.6 else 2,
            prompt_logprobs=None if rng.random() < 0.8 else 1,
            ignore_eos=True,
        )
        requests.append(Request([*common[:shared], *own], params, int(rng.integers(0, 3))))
    return requests


Output = list[tuple[int, TokenLogprobs | None] | PromptLogprobs]
"""The tokens of a sequence and of its prompt, with log-probabilities where the request asks for them."""


def output_of(event: Event) -> Output:
    of_prompt = [] if event.prompt_logprobs is None else [event.prompt_logprobs]
    return [*of_prompt, *zip(event.tokens, event.logprobs or [None] * len(event.tokens), strict=True)]


def alone(engine: Engine, request: Request, salt: str) -> Output:
    """The output of a request in an idle engine; under a salt of its own it finds nothing in the cache."""
    engine.add(request.prompt, request.params, salt=salt, allowed=request.allowed)
    output: Output = []
    while engine.busy:
        output += [each for event in engine.step() for each in output_of(event)]
    return output


def together(
    engine: Engine, requests: list[Request], cancelled: int, rng: np.random.Generator
) -> list[Output]:
    """The outputs of the requests in an engine that gets them bit by bit, the last `cancelled` to be cancelled."""
    numbers: dict[int, int] = {}
    outputs: list[Output] = [[] for _ in requests]
    waiting = rng.permutation(len(requests)).tolist()
    doomed = {int(place) for place in range(len(requests) - cancelled, len(requests))}
    while waiting or engine.busy:
        for place in waiting[: int(rng.integers(0, 12))]:
            request = requests[place]
            number = engine.add(
                request.prompt, request.params, priority=request.priority, allowed=request.allowed
            )
            numbers[number] = place
            waiting.remove(place)
        for number, place in numbers.items():
            if place in doomed and rng.random() < 0.1:
                engine.cancel(number)
        for _ in range(int(rng.integers(1, 6))):
            for event in engine.step():
                outputs[numbers[event.sequence]] += output_of(event)
    return outputs


def unequal(ample: Engine, scarce: Engine, seed: int, count: int = ROUND) -> list[int]:
    """Of `count` sequences in the engine `scarce`, those whose outputs are not those that each has alone in `ample`."""
    rng = np.random.default_rng(seed)
    cancelled = count // 4
    requests = random_requests(rng, count + cancelled)
    outputs = together(scarce, requests, cancelled, rng)
    return [
        place
        for place, request in enumerate(requests[:count])
        if outputs[place] != alone(ample, request, f"{seed}: {place}")
    ]


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else secrets.randbits(30)
    differing = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ample, *scarce = (
            stack.enter_context(
                closing(open_engine(Path(folder) / str(tokens), max_batch_tokens=tokens, pages=pages))
            )
            for tokens, pages in ((512, 400), (40, 8), (150, 9))
        )
        for number, start in enumerate(range(0, count, ROUND)):
            seed, engine = first + number, scarce[number % 2]
            size = min(ROUND, count - start)
            places = unequal(ample, engine, seed, size)
            differing += len(places)
            preempted = engine._scheduler.preempted
            sys.stdout.write(
                f"seed {seed}: {size} sequences, {preempted} preemptions so far, differ: {places}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{differing} of {count} sequences differ\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
