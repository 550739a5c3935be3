"""Latency of one model on one GPU: the whole loop as the engine runs it, checked before any number is given."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum import dtypes
from infernum.bundle import Bundle
from infernum.compiler import Options, cached_bundle
from infernum.dtypes import relative_error
from infernum.errors import DeviceError, RequestError
from infernum.llm import Progress, open_checkpoint
from infernum.machine import native_arch
from infernum.measure.origin import origin
from infernum.measure.read_bandwidth import measure_read_bandwidth
from infernum.measure.workload import decode_batch, greedy, page_table, prompt_steps, random_prompts
from infernum.models.presets import ModelSource
from infernum.runtime.batch import Batch, Executor, Float32, Int32
from infernum.runtime.device import Device
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.weight_plan import weight_key
from infernum.runtime.weights import TensorSource

CHECKED_STEPS = 4
"""Decode steps, from the first to the last, whose logits are computed again by the unfused path."""


@dataclass(frozen=True)
class Request:
    """What is measured: `batch` prompts of `prompt` random tokens, each continued greedily by `tokens` tokens."""

    source: ModelSource
    load_format: str
    prompt: int
    tokens: int
    batch: int = 1
    fuse: bool = True
    rules: tuple[str, ...] = ()
    dtype: str = "auto"
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """Wall-clock of one repeat, and the tokens that came out, int32 [batch, tokens]."""

    prompt_seconds: float
    decode_seconds: float
    output: Int32


def measure(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Time prompt and decoding, check what was computed, and relate the time to the GPU's read bandwidth.

    Raises DeviceError, and gives no number, when a check fails.
    """
    _check(request)
    bundle = _compile(request, fuse=request.fuse, progress=progress)
    unfused = _compile(request, fuse=False, progress=progress)
    most = max(variant.max_rows for variant in bundle.manifest.variants)
    if request.batch > most:
        raise RequestError(f"--batch is {request.batch}; a step has at most {most} sequences")
    weights = open_checkpoint(request.source, request.load_format)
    prompts = random_prompts(request.batch, request.prompt, request.source.config.vocab_size, request.seed)
    pages = page_table(
        request.batch, request.prompt + request.tokens, bundle.manifest.page_size, request.seed
    )
    with _open(request, bundle, weights, pages) as executor:
        steps = prompt_steps(prompts, pages, executor)
        for _ in range(2):  # loads kernels, chooses algorithms, captures graphs
            _repeat(executor, request, steps, pages)
        timings = [_repeat(executor, request, steps, pages) for _ in range(request.repeats)]
        output = timings[-1].output
        places = _checked_places(request)
        logits = _decoded_logits(executor, prompts, output, pages, places)
    with _open(request, unfused, weights, pages) as executor:
        reference = _prefilled_logits(executor, prompts, output, pages, places)
    error = _compare(request, bundle, logits, reference, output, places)
    device = Device.open()
    try:
        bandwidth = measure_read_bandwidth(device)
    finally:
        device.close()
    return _results(request, bundle, timings, bandwidth, error)


def _check(request: Request) -> None:
    context = request.source.config.max_position_embeddings
    for name, value, least in (
        ("--prompt", request.prompt, 1),
        ("--tokens", request.tokens, 3),
        ("--batch", request.batch, 1),
        ("--repeats", request.repeats, 1),
    ):
        if value < least:
            raise RequestError(f"{name} is {value}; it must be {least} or more")
    if request.prompt + request.tokens > context:
        raise RequestError(
            f"--prompt and --tokens make {request.prompt + request.tokens} tokens, more than the context of {context}"
        )


def _compile(request: Request, *, fuse: bool, progress: Progress | None) -> Bundle:
    rules = request.rules if fuse == request.fuse else ()
    options = Options(arch=native_arch(), dtype=request.dtype, fuse=fuse, rules=rules)
    return cached_bundle(request.source, options, progress=progress)


def _open(request: Request, bundle: Bundle, weights: TensorSource | None, pages: Int32) -> CudaExecutor:
    length = request.prompt + request.tokens
    return CudaExecutor.open(
        bundle, weights, max_model_len=length, max_pages_total=pages.size, seed=request.seed
    )


def _repeat(
    executor: Executor, request: Request, prompt_steps: list[tuple[Batch, list[int]]], pages: Int32
) -> Timing:
    """One whole generation, as the engine does it: each step's tokens are read when the next one is under way."""
    sampling = greedy(request.batch)
    begin = time.perf_counter()
    first = np.zeros(request.batch, np.int32)
    for batch, finished in prompt_steps:
        sampled = executor.run(batch, greedy(batch.rows)).tokens()
        first[finished] = sampled[: len(finished)]
    middle = time.perf_counter()
    output = [first]
    pending = executor.run(decode_batch(first, request.prompt, pages), sampling)
    for _ in range(request.tokens - 2):
        following = executor.advance()
        output.append(pending.tokens())
        pending = following
    output.append(pending.tokens())
    return Timing(middle - begin, time.perf_counter() - middle, np.stack(output, axis=1))


def _checked_places(request: Request) -> list[int]:
    """Indices of output tokens, beginning with the one after the first, whose choice is checked."""
    return sorted({int(i) for i in np.linspace(1, request.tokens - 1, CHECKED_STEPS)})


def _decoded_logits(
    executor: Executor, prompts: Int32, output: Int32, pages: Int32, places: list[int]
) -> Float32:
    """Logits of the measured path that chose output tokens `places`, [places, batch, vocab], over its own cache."""
    length = prompts.shape[1]
    steps = [decode_batch(np.ascontiguousarray(output[:, p - 1]), length + p - 1, pages) for p in places]
    return np.stack([executor.logits(step) for step in steps])


def _prefilled_logits(
    executor: Executor, prompts: Int32, output: Int32, pages: Int32, places: list[int]
) -> Float32:
    """The same logits from another executor, which is given prompt and output at once."""
    length = prompts.shape[1]
    whole = np.concatenate([prompts, output], axis=1)
    found: list[Float32] = []
    for sequence, tokens in enumerate(whole):
        rows: list[Float32] = []
        wanted = [length + p - 1 for p in places]
        for start in range(0, len(tokens), executor.max_batch_tokens):
            chunk = np.ascontiguousarray(tokens[start : start + executor.max_batch_tokens])
            positions = np.arange(start, start + len(chunk), dtype=np.int32)
            inside = [w - start for w in wanted if start <= w < start + len(chunk)]
            batch = Batch(
                token_ids=chunk,
                positions=positions,
                sequence=np.zeros(len(chunk), np.int32),
                query_start=np.array([0, len(chunk)], np.int32),
                page_table=pages[sequence : sequence + 1],
                output_rows=np.array(inside or [len(chunk) - 1], np.int32),
            )
            logits = executor.logits(batch)
            if inside:
                rows.append(logits)
        found.append(np.concatenate(rows))
    return np.stack(found, axis=1)


def _compare(
    request: Request, bundle: Bundle, logits: Float32, reference: Float32, output: Int32, places: list[int]
) -> float:
    """The relative error of the measured logits. Raises DeviceError when anything is not as it should be."""
    vocab = bundle.manifest.model.vocab_size
    if not (np.isfinite(logits).all() and np.isfinite(reference).all()):
        raise DeviceError("the logits are not finite; no result is given")
    if output.min() < 0 or output.max() >= vocab:
        raise DeviceError("sampled tokens lie outside of the vocabulary; no result is given")
    error = relative_error(logits, reference)
    allowed = allowed_error(bundle)
    if not error <= allowed:
        raise DeviceError(
            f"the logits differ from those of the unfused path by {error:.2e}, more than {allowed:.2e};"
            " no result is given"
        )
    if not np.array_equal(logits.argmax(axis=-1), output[:, places].T):
        raise DeviceError("decoding chose other tokens than the most likely ones; no result is given")
    return error


def allowed_error(bundle: Bundle) -> float:
    """How far two right computations of the logits may differ: layers round independently, errors add in quadrature."""
    return dtypes.dtype(bundle.manifest.dtype).tolerance * math.sqrt(max(1, bundle.manifest.model.num_layers))


def bytes_per_token(bundle: Bundle, batch: int, mean_context: float) -> dict[str, int]:
    """What one decode step must at least read: weights once (of the embedding a row each), and the KV cache."""
    manifest = bundle.manifest
    variant = bundle.variant_for(batch).name
    weights: dict[object, int] = {}
    gathered = kv = 0
    for index, stage in enumerate(manifest.program):
        block = manifest.blocks[stage.block][variant]
        for weight in block.weights.values():
            shape = [int(dim) for dim in weight.spec.shape]
            element = dtypes.dtype(weight.spec.dtype).bytes
            if index == 0:  # the embedding table, of which each token reads its row
                gathered += batch * math.prod(shape[1:]) * element
            else:
                weights[weight_key(weight, stage)] = math.prod(shape) * element
        for state in block.state:
            page = math.prod(int(dim) for dim in state.shape[1:]) * dtypes.dtype(state.dtype).bytes
            kv += int(page / manifest.page_size * mean_context * batch)
    return {"weights": sum(weights.values()) + gathered, "kv": kv}


def _results(
    request: Request, bundle: Bundle, timings: list[Timing], bandwidth: float, error: float
) -> dict[str, Any]:
    manifest = bundle.manifest
    steps = request.tokens - 1
    prompt_ms = statistics.median(1e3 * t.prompt_seconds for t in timings)
    token_ms = statistics.median(1e3 * t.decode_seconds / steps for t in timings)
    read = bytes_per_token(bundle, request.batch, request.prompt + request.tokens / 2)
    floor_ms = 1e3 * sum(read.values()) / bandwidth
    return {
        "benchmark": "latency",
        **origin(manifest.nvrtc),
        "model": manifest.model.name,
        "config": manifest.model.config,
        "load_format": request.load_format,
        "dtype": manifest.dtype,
        "arch": manifest.arch,
        "fuse": request.fuse,
        "rules": manifest.rules,
        "batch": request.batch,
        "prompt_tokens": request.prompt,
        "output_tokens": request.tokens,
        "repeats": request.repeats,
        "prompt_ms": prompt_ms,
        "ms_per_token": token_ms,
        "tokens_per_second": request.batch * 1e3 / token_ms,
        "prompt_ms_all": [1e3 * t.prompt_seconds for t in timings],
        "ms_per_token_all": [1e3 * t.decode_seconds / steps for t in timings],
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "bytes_per_step": read,
        "floor_ms_per_token": floor_ms,
        "fraction_of_bound": floor_ms / token_ms,
        "error_against_unfused": error,
        "allowed_error": allowed_error(bundle),
    }
