"""Throughput of one model on one device: many requests through the engine, whose tokens are checked in the same run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from infernum.bundle import Bundle
from infernum.engine.engine import Engine
from infernum.errors import DeviceError, RequestError
from infernum.lab.measure.bounds import Speeds, measure_speeds
from infernum.lab.measure.checks import allowed_error
from infernum.lab.measure.latency import bytes_per_token
from infernum.lab.measure.origin import origin
from infernum.lab.measure.requests import (
    MIXED,
    Request,
    Timeline,
    first_token_ms,
    gap_ms,
    mixed_lengths,
    poisson,
    requests_of,
    serve,
    steady_rate,
    warm_up_lengths,
)
from infernum.lab.measure.subject import ModelRequest
from infernum.opening import Progress, load_executor
from infernum.step import Executor, Float32

CHECKED_REQUESTS = 4
"""Requests of each scenario, evenly from the first to the last, whose tokens are checked."""

DEVIATIONS = 8
"""How many times the allowed error of logits a chosen token may lie below the most likely one."""


@dataclass(frozen=True, kw_only=True)
class ThroughputRequest(ModelRequest):
    """The scenarios, each of which runs `repeats` times.

    batches   so many equal requests at once, of `prompt` tokens in and `tokens` out
    mixed     the mixed requests all at once, `requests` of them
    rates     the mixed requests at random times, so many a second on average; once each
    """

    batches: tuple[int, ...] = ()
    prompt: int = 512
    tokens: int = 256
    mixed: bool = False
    requests: int = MIXED
    rates: tuple[float, ...] = ()
    repeats: int = 2

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        lengths = [(self.prompt, self.tokens)] if self.batches else []
        if self.mixed or self.rates:
            lengths += mixed_lengths(self.requests)
        return max(map(sum, lengths), default=1)


def measure_throughput(request: ThroughputRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Run the scenarios, and relate their times to the speeds of the GPU, which are measured first.

    Raises DeviceError, and gives no number, when a token is wrong; RequestError for a request that cannot be measured.
    """
    _check(request)
    checkpoint, bundle = request.checkpoint(), request.bundle(progress)
    manifest = bundle.manifest
    about = origin(manifest.nvrtc, request.device)
    speeds = None
    if request.device == "cuda":
        speeds = measure_speeds(manifest.dtype if manifest.dtype != "f32" else None)
    executor = load_executor(
        bundle,
        checkpoint,
        request.device,
        max_model_len=request.longest,
        max_pages_total=None if request.device == "cuda" else _pages(request, manifest.page_size),
        seed=request.seed,
        progress=progress,
    )
    with closing(Engine(executor, manifest.model, max_model_len=request.longest)) as engine:
        scenarios = list(_scenarios(request, Bench(engine, executor, bundle, speeds, count()), progress))
    return {
        "benchmark": "throughput",
        **about,
        "model": manifest.model.name,
        "config": manifest.model.config,
        "load_format": request.load_format,
        "dtype": manifest.dtype,
        "arch": manifest.arch,
        "fuse": manifest.fuse,
        "rules": manifest.rules,
        "repeats": request.repeats,
        "seed": request.seed,
        "read_bandwidth_gb_s": None if speeds is None else speeds.bytes_per_second / 1e9,
        "flops_per_second": None if speeds is None else speeds.flops_per_second,
        "scenarios": scenarios,
    }


def _check(request: ThroughputRequest) -> None:
    context = request.source.config.max_position_embeddings
    for name, value, least in (
        *(("--batch", batch, 1) for batch in request.batches),
        ("--prompt", request.prompt, 1),
        ("--tokens", request.tokens, 3),
        ("--requests", request.requests, 1),
        ("--repeats", request.repeats, 1),
    ):
        if value < least:
            raise RequestError(f"{name} is {value}; it must be {least} or more")
    for rate in request.rates:
        if not (rate > 0 and math.isfinite(rate)):
            raise RequestError(f"--rate is {rate}; it must be a number above 0")
    if request.longest > context:
        raise RequestError(f"a request has {request.longest} tokens, more than the context of {context}")


def _pages(request: ThroughputRequest, page_size: int) -> int:
    """Pages in host memory: room for all requests at once, but for 64 at most."""
    most = max((*request.batches, request.requests if request.mixed or request.rates else 0))
    return min(most, 64) * -(-request.longest // page_size)


@dataclass(frozen=True)
class Bench:
    """An engine that is measured.

    speeds   of the GPU; None: on the CPU
    numbers  of the requests, each used once
    """

    engine: Engine
    executor: Executor
    bundle: Bundle
    speeds: Speeds | None
    numbers: Iterator[int]

    def requests(self, lengths: Sequence[tuple[int, int]]) -> list[Request]:
        return requests_of(lengths, self.bundle.manifest.model.vocab_size, self.numbers)

    def warm_up(self, lengths: Sequence[tuple[int, int]]) -> None:
        serve(self.engine, self.requests(warm_up_lengths(lengths)))

    def check(self, requests: Sequence[Request], timeline: Timeline) -> None:
        """Raises DeviceError unless every request has its tokens, and those of some are the most likely ones."""
        for number, (request, tokens) in enumerate(zip(requests, timeline.tokens, strict=True)):
            if len(tokens) != request.tokens:
                raise DeviceError(
                    f"request {number} has {len(tokens)} tokens instead of {request.tokens}; no result is given"
                )
        for number in {int(i) for i in np.linspace(0, len(requests) - 1, CHECKED_REQUESTS)}:
            prompt, tokens = requests[number].prompt, timeline.tokens[number]
            logits = self.engine.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
            check_most_likely(number, logits, tokens, allowed_error(self.bundle))

    def floor_seconds(self, lengths: Sequence[tuple[int, int]]) -> float | None:
        """The least time for these requests all at once; None: not known.

        The weights are read once for each token of the longest output, and the keys and values of a request for each of
        its tokens. Products are computed for all tokens, those of the head for output tokens only.
        """
        if self.speeds is None:
            return None
        steps = max(out for _, out in lengths)
        moved = steps * bytes_per_token(self.bundle, 1, 0)["weights"]
        for prompt, out in lengths:
            moved += out * bytes_per_token(self.bundle, 1, prompt + out / 2)["kv"]
        of_token, of_row = product_flops(self.bundle)
        outputs = sum(out for _, out in lengths)
        tokens = sum(prompt for prompt, _ in lengths) + outputs
        return self.speeds.floor_seconds(moved, of_token * tokens + of_row * outputs)

    def floor_of_step(self, batch: int, context: float) -> float | None:
        """The least time of a decode step of `batch` sequences of `context` positions; None: not known."""
        if self.speeds is None:
            return None
        return self.speeds.floor_seconds(
            sum(bytes_per_token(self.bundle, batch, context).values()),
            batch * sum(product_flops(self.bundle)),
        )


def check_most_likely(number: int, logits: Float32, tokens: Sequence[int], allowed: float) -> None:
    """Raises DeviceError unless each token is the most likely one of its row of logits, float32 [tokens, vocab].

    Logits that are computed alone differ from those of the step that chose the token, by a relative error of at most
    `allowed`. So a token may lie below the most likely one by DEVIATIONS of such errors.
    """
    if not np.isfinite(logits).all():
        raise DeviceError("the logits are not finite; no result is given")
    behind = logits.max(axis=1) - logits[np.arange(len(tokens)), tokens]
    scale = np.sqrt(np.mean(np.square(logits), axis=1))
    wrong = np.flatnonzero(behind > DEVIATIONS * allowed * scale)
    if len(wrong):
        raise DeviceError(
            f"request {number} has other tokens than alone from output token {wrong[0]} on; no result is given"
        )


def product_flops(bundle: Bundle) -> tuple[int, int]:
    """FLOPs of the products with weights: of a token in the layers, and of a row of logits."""
    layers = rows = 0
    for stage in bundle.manifest.program[1:]:
        block = next(iter(bundle.manifest.blocks[stage.block].values()))
        shapes = [[int(dim) for dim in weight.spec.shape] for weight in block.weights.values()]
        flops = sum(2 * math.prod(shape) for shape in shapes if len(shape) > 1)
        if block.state:
            layers += flops
        else:
            rows += flops
    return layers, rows


def _scenarios(
    request: ThroughputRequest, bench: Bench, progress: Progress | None
) -> Iterator[dict[str, Any]]:
    total = len(request.batches) + request.mixed + len(request.rates)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("measuring", done, total)

    for batch in request.batches:
        if batch > bench.executor.max_rows:
            raise RequestError(f"--batch is {batch}; a step has at most {bench.executor.max_rows} sequences")
    for batch in request.batches:
        yield _equal(request, bench, batch)
        advance()
    lengths = mixed_lengths(request.requests)
    if request.mixed:
        yield _mixed(request, bench, lengths)
        advance()
    for rate in request.rates:
        yield _at_rate(request, bench, lengths, rate)
        advance()


def _equal(request: ThroughputRequest, bench: Bench, batch: int) -> dict[str, Any]:
    lengths = [(request.prompt, request.tokens)] * batch
    bench.warm_up(lengths)
    rates: list[float] = []
    for _ in range(request.repeats):
        requests = bench.requests(lengths)
        timeline = serve(bench.engine, requests)
        bench.check(requests, timeline)
        rate = steady_rate(timeline)
        if rate is None:
            raise RequestError(
                f"--tokens is {request.tokens}: the first of {batch} sequences ends before the last has begun;"
                " give more tokens"
            )
        rates.append(rate)
    rate = statistics.median(rates)
    step_ms = 1e3 * batch / rate
    floor = bench.floor_of_step(batch, request.prompt + request.tokens / 2)
    return {
        "scenario": "equal",
        "batch": batch,
        "prompt_tokens": request.prompt,
        "output_tokens": request.tokens,
        "tokens_per_second": rate,
        "tokens_per_second_all": rates,
        "ms_per_step": step_ms,
        "floor_ms_per_step": None if floor is None else 1e3 * floor,
        "fraction_of_bound": None if floor is None else 1e3 * floor / step_ms,
    }


def _mixed(request: ThroughputRequest, bench: Bench, lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    bench.warm_up(lengths)
    seconds: list[float] = []
    for _ in range(request.repeats):
        requests = bench.requests(lengths)
        timeline = serve(bench.engine, requests)
        bench.check(requests, timeline)
        seconds.append(timeline.end)
    prompts, outputs = (sum(tokens) for tokens in zip(*lengths, strict=True))
    median, floor = statistics.median(seconds), bench.floor_seconds(lengths)
    return {
        "scenario": "mixed",
        "requests": len(lengths),
        "prompt_tokens": prompts,
        "output_tokens": outputs,
        "seconds": median,
        "seconds_all": seconds,
        "tokens_per_second": (prompts + outputs) / median,
        "output_tokens_per_second": outputs / median,
        "floor_seconds": floor,
        "fraction_of_bound": None if floor is None else floor / median,
    }


def _at_rate(
    request: ThroughputRequest, bench: Bench, lengths: Sequence[tuple[int, int]], rate: float
) -> dict[str, Any]:
    bench.warm_up(lengths[: max(1, len(lengths) // 8)])
    requests = bench.requests(lengths)
    timeline = serve(bench.engine, requests, poisson(len(requests), rate, request.seed))
    bench.check(requests, timeline)
    return {
        "scenario": "rate",
        "requests_per_second": rate,
        "requests": len(lengths),
        "seconds": timeline.end,
        "output_tokens_per_second": timeline.output_tokens / timeline.end,
        "first_token_ms": first_token_ms(timeline),
        "gap_ms": gap_ms(timeline),
    }
