"""A prompt and the tokens after it, kernel by kernel, as a trace.

Time stamps are CUDA events, one before the first kernel of a step and one after each kernel. An event orders the
kernels: the next kernel begins when the one before the event has ended. So the trace lacks the overlap of the normal
run, and a step takes longer in it; `infernum bench kernels` measures what each kernel adds to a step. Events resolve
about half a microsecond. Where the package `nvtx` is installed, ranges named after steps and blocks surround the
launches, for Nsight Systems to show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib import import_module
from itertools import groupby
from typing import Any

import numpy as np

from infernum import dims
from infernum.bundle import Bundle
from infernum.errors import RequestError
from infernum.lab.measure.bounds import cost, cost_symbols
from infernum.lab.measure.origin import origin
from infernum.lab.measure.trace import TracedKernel, TracedStep, block_name, trace
from infernum.lab.measure.workload import decode_batch, greedy, page_table, prompt_steps, random_prompts
from infernum.manifest import Gemm, Launch, Step
from infernum.opening import Progress
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.layout import block_variant
from infernum.runtime.prepared import PreparedStep
from infernum.runtime.timing import HeadStart
from infernum.step import Batch, Int32
from infernum.weights.source import TensorSource

TIME_SOURCE = (
    "CUDA events between launches: kernels do not overlap as they do otherwise, and gaps are left out"
)

HEAD_STARTS = (1, 8, 64)
"""Factors on the head start of the host, in turn until the host has queued a step before the GPU begins it."""

Ranges = Callable[[str], AbstractContextManager[object]]
"""Opens a range of that name in the timeline of a profiler."""


def profile(
    bundle: Bundle,
    checkpoint: TensorSource | None,
    *,
    prompt: int = 64,
    tokens: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The trace of a prompt of random tokens and of `tokens` decode steps; None for `checkpoint`: random weights.

    Raises RequestError when the sizes do not fit the bundle; BundleError, CheckpointError or DeviceError in loading.
    """
    model = bundle.manifest.model
    for name, value in (("--prompt-tokens", prompt), ("--tokens", tokens)):
        if value < 1:
            raise RequestError(f"{name} is {value}; it must be 1 or more")
    length = prompt + tokens
    if length > model.context:
        raise RequestError(
            f"--prompt-tokens and --tokens make {length} tokens, more than the context of {model.context}"
        )
    prompts = random_prompts(1, prompt, model.vocab_size, seed)
    pages = page_table(1, length, bundle.manifest.page_size, seed)
    ranges = nvtx_ranges()
    about = origin(bundle.manifest.nvrtc)
    with CudaExecutor.open(
        bundle, checkpoint, max_model_len=length, max_pages_total=pages.size, seed=seed
    ) as executor:
        steps = trace_steps(executor, bundle, prompts, tokens, pages, ranges or nullcontext, progress)
    metadata = {
        **about,
        "model": model.name,
        "dtype": bundle.manifest.dtype,
        "fuse": bundle.manifest.fuse,
        "prompt_tokens": prompt,
        "output_tokens": tokens,
        "time_source": TIME_SOURCE,
        "nvtx": ranges is not None,
    }
    return trace(f"{model.name} on {about['gpu']}", steps, metadata)


def nvtx_ranges() -> Ranges | None:
    """A function that opens NVTX ranges; None where the package `nvtx` is not installed."""
    try:
        nvtx = import_module("nvtx")
    except ImportError:
        return None
    return lambda name: nvtx.annotate(name, domain="infernum")


def trace_steps(
    executor: CudaExecutor,
    bundle: Bundle,
    prompts: Int32,
    tokens: int,
    pages: Int32,
    ranges: Ranges,
    progress: Progress | None = None,
) -> list[TracedStep]:
    """The steps of the prompt [1, positions], and `tokens` steps after it; each has run once before it is timed."""
    chunks = [batch for batch, _ in prompt_steps(prompts, pages, executor)]
    first = executor.prepare(chunks[0], greedy(chunks[0].rows))
    traced: list[TracedStep] = []
    sampled: Int32 = np.zeros(1, np.int32)
    with ExitStack() as stack:
        head_start = HeadStart(first.device, first.stream)
        stack.callback(head_start.close)
        stack.callback(first.stream.synchronize)
        for number in range(total := len(chunks) + tokens):
            token = number - len(chunks)
            if token < 0:
                batch = chunks[number]
                name = "prompt" if len(chunks) == 1 else f"prompt, part {number + 1}"
            else:
                batch = decode_batch(sampled, prompts.shape[1] + token, pages)
                name = f"token {token + 1}"
            step = executor.prepare(batch, greedy(batch.rows))
            with ranges(name):
                traced.append(_timed(step, batch, bundle, name, head_start, ranges))
            sampled = step.sampled().tokens()
            if progress:
                progress("profiling", number + 1, total)
    return traced


def _timed(
    step: PreparedStep, batch: Batch, bundle: Bundle, name: str, head_start: HeadStart, ranges: Ranges
) -> TracedStep:
    """A step that runs once as it is, then again from the same inputs with an event after each kernel.

    Where the host does not keep ahead of the GPU, the step runs again with a longer head start.
    """
    begin = time.perf_counter()
    step.queue()
    queueing = time.perf_counter() - begin
    step.stream.synchronize()
    launches = step.queued()
    ahead = False
    marks_us: list[float] = []
    for factor in HEAD_STARTS:
        step.upload(batch)
        marks_us, ahead = _marked(step, launches, head_start, factor * (3 * queueing + 1e-3), ranges)
        if ahead:
            break
    variant = bundle.variant_for(batch.tokens, batch.decodes).name
    symbols = cost_symbols(step.symbols, batch)
    kernels: list[TracedKernel] = []
    for number, start, end in zip(launches, marks_us, marks_us[1:], strict=False):
        place = step.places[number]
        block = block_variant(bundle.manifest, place.block, variant)
        kernel, launch = block.kernels[place.index], block.steps[place.index]
        nbytes, flops = cost(kernel, symbols)
        facts = {
            "ops": ", ".join(kernel.ops),
            "from": ", ".join(kernel.where),
            "bytes": nbytes,
            "flops": flops,
            **_geometry(launch, symbols),
        }
        kernels.append(TracedKernel(kernel.name, place, start, end, facts))
    note = {} if ahead else {"note": "the host did not keep ahead of the GPU: times may include its work"}
    return TracedStep(name, variant, batch.tokens, kernels, note)


def _marked(
    step: PreparedStep, launches: Sequence[int], head_start: HeadStart, seconds: float, ranges: Ranges
) -> tuple[list[float], bool]:
    """Microseconds before the first kernel and after each one; True when the host kept ahead of the GPU."""
    with ExitStack() as stack:
        events = [step.device.event(timing=True) for _ in range(len(launches) + 1)]
        for event in events:
            stack.callback(event.close)
        unrecorded = iter(events)
        head_start.queue(seconds)
        step.stream.record(next(unrecorded))
        for _, numbers in groupby(launches, key=lambda n: (step.places[n].block, step.places[n].layer)):
            of_block = list(numbers)
            with ranges(block_name(step.places[of_block[0]])):
                for number in of_block:
                    step.queue([number])
                    step.stream.record(next(unrecorded))
        ahead = not events[0].passed()
        step.stream.synchronize()
        return [1e3 * event.milliseconds_since(events[0]) for event in events], ahead


def _geometry(launch: Step, symbols: dict[str, int]) -> dict[str, object]:
    match launch:
        case Launch():
            grid = " × ".join(str(dims.evaluate(size, symbols)) for size in launch.grid)
            cluster = dims.evaluate(launch.cluster, symbols)
            return {
                "grid": grid if cluster == 1 else f"{grid}, in clusters of {cluster}",
                "threads": " × ".join(map(str, launch.block)),
                "shared": launch.shared_bytes,
            }
        case Gemm():
            return {"product": f"{dims.evaluate(launch.m, symbols)} × {launch.n} × {launch.k}"}
