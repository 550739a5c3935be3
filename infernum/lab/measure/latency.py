"""Latency of one model on one GPU: the whole loop as the engine runs it, checked before any number is given."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infernum import dtypes
from infernum.bundle import Bundle
from infernum.errors import RequestError
from infernum.lab.measure.against import against_transformers, check_comparable
from infernum.lab.measure.bounds import measure_speeds
from infernum.lab.measure.checks import (
    allowed_error,
    check_logits,
    check_same_logits,
    check_same_tokens,
    check_tokens,
    checked_places,
    decoded_logits,
    prefilled_logits,
)
from infernum.lab.measure.generation import (
    GREEDY_PARAMS,
    Generation,
    TimedGeneration,
    generate,
    interleaved,
    times,
)
from infernum.lab.measure.origin import origin
from infernum.lab.measure.shared_weights import tensors_on_gpu
from infernum.lab.measure.subject import ModelRequest
from infernum.lab.measure.workload import page_table, random_prompts
from infernum.opening import Progress
from infernum.runtime.executor import CudaExecutor
from infernum.sampling_params import PARAMETERS, SamplingParams
from infernum.step import Executor, Float32, Int32
from infernum.weights.plan import weight_key
from infernum.weights.source import TensorSource

WARM_UPS = 2
"""Generations ahead of the timed ones: they load kernels, choose algorithms and capture graphs."""


@dataclass(frozen=True, kw_only=True)
class LatencyRequest(ModelRequest):
    """`batch` prompts of `prompt` random tokens, each continued by `tokens` tokens.

    repeats    timed generations, over which medians are taken
    sampling   how tokens are chosen; unless that is greedily, greedy decoding is timed in turns with it
    identical  so many further generations must give the same tokens by the same logits, bit by bit
    against    "transformers": what is timed afterwards, with the same weights and prompts
    """

    prompt: int
    tokens: int
    batch: int = 1
    repeats: int = 3
    sampling: SamplingParams = GREEDY_PARAMS
    identical: int = 0
    against: str | None = None

    @property
    def modes(self) -> tuple[SamplingParams, ...]:
        """How tokens are chosen, the mode that is reported first."""
        return (self.sampling,) if self.sampling.greedy else (self.sampling, GREEDY_PARAMS)


@dataclass(frozen=True)
class CheckedGenerations:
    """The timed generations of each mode; tokens [batch, tokens] and checked logits of the mode that is reported."""

    timed: list[list[TimedGeneration]]
    output: Int32
    logits: Float32


def measure(request: LatencyRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Time prompt and decoding, check tokens and logits, and relate the time to the GPU's read bandwidth.

    Raises DeviceError, and gives no number, when a check fails; RequestError for a request that cannot be measured.
    """
    _check(request)
    source, weights = request.source, request.checkpoint()
    bundle = request.bundle(progress)
    unfused = replace(request, fuse=False, rules=()).bundle(progress) if request.fuse else bundle
    most = max(variant.max_rows for variant in bundle.manifest.variants)
    if request.batch > most:
        raise RequestError(f"--batch is {request.batch}; a step has at most {most} sequences")
    generation = Generation(
        random_prompts(request.batch, request.prompt, source.config.vocab_size, request.seed),
        page_table(request.batch, request.prompt + request.tokens, bundle.manifest.page_size, request.seed),
        request.tokens,
    )
    places = checked_places(request.tokens)
    with _open(request, bundle, weights, generation.pages) as executor:
        ours = _generations(executor, request, generation, places, progress)
        against: dict[str, Any] = {}
        if request.against:
            against["against"] = against_transformers(
                source.config,
                tensors_on_gpu(bundle.manifest, executor.weights_address),
                generation,
                ours.timed[-1],
                (ours.output, ours.logits),
                places,
                allowed_error(bundle),
            )
    with _open(request, unfused, weights, generation.pages) as executor:
        reference = prefilled_logits(executor, generation, ours.output, places)
    error = check_logits(bundle, ours.logits, reference)
    bandwidth = measure_speeds(None).bytes_per_second
    return _results(request, bundle, ours.timed, bandwidth, error) | against


def _check(request: LatencyRequest) -> None:
    context = request.source.config.max_position_embeddings
    for name, value, least in (
        ("--prompt", request.prompt, 1),
        ("--tokens", request.tokens, 3),
        ("--batch", request.batch, 1),
        ("--repeats", request.repeats, 1),
        ("--identical", request.identical, 0),
    ):
        if value < least:
            raise RequestError(f"{name} is {value}; it must be {least} or more")
    if request.prompt + request.tokens > context:
        raise RequestError(
            f"--prompt and --tokens make {request.prompt + request.tokens} tokens, more than the context of {context}"
        )
    if request.against:
        check_comparable(request.source.config)


def _open(
    request: LatencyRequest, bundle: Bundle, weights: TensorSource | None, pages: Int32
) -> CudaExecutor:
    length = request.prompt + request.tokens
    return CudaExecutor.open(
        bundle, weights, max_model_len=length, max_pages_total=pages.size, seed=request.seed
    )


def _generations(
    executor: Executor,
    request: LatencyRequest,
    generation: Generation,
    places: Sequence[int],
    progress: Progress | None,
) -> CheckedGenerations:
    """Time all modes, and check each by one more generation, whose tokens the timed generations must have too."""
    steps = generation.steps(executor)
    done, total = 0, len(request.modes) * (WARM_UPS + request.repeats + 1) + request.identical

    def run(params: SamplingParams) -> TimedGeneration:
        nonlocal done
        timed = generate(executor, generation, steps, params)
        done += 1
        if progress:
            progress("generating", done, total)
        return timed

    for params in request.modes:
        for _ in range(WARM_UPS):
            run(params)
    timed = interleaved(run, request.modes, request.repeats)
    checked: list[tuple[Int32, Float32]] = []
    for params, generations in zip(request.modes, timed, strict=True):
        output = run(params).output
        logits = decoded_logits(executor, generation, output, places)
        check_tokens(logits, output, places, params)
        for number, other in enumerate([*(g.output for g in generations[1:]), output], start=2):
            check_same_tokens(number, other, generations[0].output)
        checked.append((output, logits))
    output, logits = checked[0]
    for number in range(request.repeats + 2, request.repeats + 2 + request.identical):
        again = run(request.sampling).output
        check_same_tokens(number, again, output)
        check_same_logits(number, decoded_logits(executor, generation, again, places), logits)
    return CheckedGenerations(timed, output, logits)


def bytes_per_token(bundle: Bundle, batch: int, mean_context: float) -> dict[str, int]:
    """Bytes that one decode step must read: weights once (one row of the embedding a token), and the KV cache.

    Of a layer whose attention has a window, the cache within the window.
    """
    manifest = bundle.manifest
    variant = bundle.variant_for(batch, decodes=True).name
    weights: dict[object, int] = {}
    gathered = kv = 0
    for index, stage in enumerate(manifest.program):
        block = manifest.blocks[stage.block][variant]
        for weight in block.weights.values():
            shape = [int(dim) for dim in weight.spec.shape]
            element = dtypes.dtype(weight.spec.dtype).bytes
            if index == 0:  # the embedding table: each token reads one row
                gathered += batch * math.prod(shape[1:]) * element
            else:
                weights[weight_key(weight, stage)] = math.prod(shape) * element
        for state in block.state:
            page = math.prod(int(dim) for dim in state.shape[1:]) * dtypes.dtype(state.dtype).bytes
            read = min(mean_context, state.window or mean_context)
            kv += int(page / manifest.page_size * read * batch)
    return {"weights": sum(weights.values()) + gathered, "kv": kv}


def _results(
    request: LatencyRequest,
    bundle: Bundle,
    timed: list[list[TimedGeneration]],
    bandwidth: float,
    error: float,
) -> dict[str, Any]:
    manifest = bundle.manifest
    ours = times(timed[0])
    token_ms = ours["ms_per_token"]
    read = bytes_per_token(bundle, request.batch, request.prompt + request.tokens / 2)
    floor_ms = 1e3 * sum(read.values()) / bandwidth
    return {
        "benchmark": "latency",
        **origin(manifest.nvrtc),
        "model": manifest.model.name,
        "config": manifest.model.config,
        "load_format": request.load_format,
        "dtype": manifest.dtype,
        "arch": bundle.arch,
        "fuse": request.fuse,
        "rules": manifest.rules,
        "batch": request.batch,
        "prompt_tokens": request.prompt,
        "output_tokens": request.tokens,
        "repeats": request.repeats,
        "seed": request.seed,
        **ours,
        "tokens_per_second": request.batch * 1e3 / token_ms,
        "prompt_ms_range": [min(ours["prompt_ms_all"]), max(ours["prompt_ms_all"])],
        "ms_per_token_range": [min(ours["ms_per_token_all"]), max(ours["ms_per_token_all"])],
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "bytes_per_step": read,
        "floor_ms_per_token": floor_ms,
        "fraction_of_bound": floor_ms / token_ms,
        "error_against_unfused": error,
        "allowed_error": allowed_error(bundle),
        "identical_generations": 1 + len(timed[0]) + request.identical,
        **_sampling(request.sampling, ours["ms_per_token_all"], times(timed[-1])["ms_per_token_all"]),
    }


def _sampling(params: SamplingParams, sampled: list[float], greedy: list[float]) -> dict[str, Any]:
    """The sampling parameters, and their cost over greedy decoding: the median over rounds that ran both."""
    if params.greedy:
        return {"sampling": None}
    names = [parameter.name for parameter in PARAMETERS if parameter.bench_help is not None]
    ratios = [ours / theirs for ours, theirs in zip(sampled, greedy, strict=True)]
    return {
        "sampling": {name: getattr(params, name) for name in names},
        "greedy_ms_per_token": statistics.median(greedy),
        "greedy_ms_per_token_all": greedy,
        "sampling_cost": statistics.median(ratios) - 1,
    }
