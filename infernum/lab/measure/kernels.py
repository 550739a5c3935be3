"""Each kernel of a step in its place: its time, its bound measured in the same run, and where the rest of a step goes.

The time of a kernel in place is the difference of two cuts of the step (`infernum.lab.measure.cuts`), each captured as
a CUDA graph and replayed back to back. All cuts are timed in turn, round after round, so that a drift of the clocks
hits all alike; the least of the rounds counts, since what disturbs a GPU, such as its power limit, only makes it
slower. The sum over the kernels is the time of the whole graph; what a step takes longer than that by the wall clock,
run as the engine runs it, is the launch of graphs, the copy of tokens and the host: it is given as unaccounted. The
first kernel's time includes the pause between two replays. `alone_us` is another number: a graph of nothing but this
kernel for every layer in turn, which neither hides behind its neighbours nor is slowed by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum.bundle import Bundle
from infernum.errors import DeviceError, RequestError
from infernum.lab.measure.bounds import Speeds, cost, cost_symbols, measure_speeds
from infernum.lab.measure.cuts import KernelInStep, cuts, in_place, kernels_in_step
from infernum.lab.measure.origin import origin
from infernum.lab.measure.replay import Replayed, launches_alone, replays_for
from infernum.lab.measure.workload import Workload, greedy, prompt_steps, workload
from infernum.llm import Progress
from infernum.manifest import BlockVariant, Launch, Pointer
from infernum.runtime.device import Device
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.layout import block_variant
from infernum.runtime.timing import HeadStart, Stopwatch
from infernum.weights.source import TensorSource

LOOP_STEPS = 64
"""Decode steps of the loop that is timed by the wall clock."""

LOOP_PROMPTS = 2
"""Prompts in that loop, as few as there are replays of such a step."""

Check = Callable[[Bundle, str], None]
"""Raises DeviceError, naming the kernel, unless every kernel of a variant that is told of computes what it should."""


@dataclass(frozen=True)
class Request:
    """What is measured: a step of `variant` or of `tokens` tokens, at `context` positions; see `workload`.

    `kernels`: the names of those that are told of; none: all of the step.
    """

    variant: str | None = None
    tokens: int | None = None
    context: int = 512
    repeats: int = 10
    seed: int = 0
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Times:
    """Milliseconds. `cuts` and `alone`, by the number of a kernel: the step cut after it, and one launch of it alone.

    `cuts` has the last one, which is the whole step as a graph; `step` is that by the wall clock.
    """

    cuts: dict[int, float]
    alone: dict[int, float]
    step: float

    @property
    def graph(self) -> float:
        """The whole step as a graph: the last cut."""
        return self.cuts[max(self.cuts)]


def measure_kernels(
    bundle: Bundle,
    checkpoint: TensorSource | None,
    request: Request,
    check: Check,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time every kernel of a step, after `check` has found them right; None for `checkpoint`: random weights.

    Raises RequestError, BundleError or DeviceError, and gives no number, when the step is not in the bundle, the
    bundle is not for this GPU, a kernel computes wrongly, or the logits are not finite.
    """
    if request.repeats < 1:
        raise RequestError(f"--repeats is {request.repeats}; it must be 1 or more")
    load = workload(
        bundle,
        variant=request.variant,
        tokens=request.tokens,
        context=request.context,
        room=LOOP_STEPS,
        seed=request.seed,
    )
    manifest = bundle.manifest
    check(bundle, load.variant)
    executor = CudaExecutor.open(
        bundle, checkpoint, max_model_len=load.length, max_pages_total=load.pages.size, seed=request.seed
    )
    with executor:
        kernels, symbols, times = time_step(executor, bundle, load, request, progress)
    device = Device.open()
    try:
        products = any(
            k.template == "cublaslt" for v in _variants(bundle, load.variant).values() for k in v.kernels
        )
        speeds = measure_speeds(device, manifest.dtype, products=products or manifest.dtype != "f32")
    finally:
        device.close()
    return {
        "benchmark": "kernels",
        **origin(manifest.nvrtc),
        "model": manifest.model.name,
        "dtype": manifest.dtype,
        "arch": bundle.arch,
        "fuse": manifest.fuse,
        "variant": load.variant,
        "tokens": load.tokens,
        "context": load.context,
        "repeats": request.repeats,
        "read_bandwidth_gb_s": speeds.bytes_per_second / 1e9,
        "flops_per_second": speeds.flops_per_second,
        **results(bundle, load.variant, kernels, symbols, times, speeds),
    }


def time_step(
    executor: CudaExecutor, bundle: Bundle, load: Workload, request: Request, progress: Progress | None = None
) -> tuple[list[KernelInStep], dict[str, int], Times]:
    """The kernels of a step, the values of all symbols in it, and the least times of the rounds that are asked for.

    Raises DeviceError when the logits are not finite, before or after.
    """
    for batch, _ in prompt_steps(load.prompts, load.pages, executor):
        executor.run(batch, greedy(batch.rows)).tokens()
    _check_logits(executor, load)
    loop_seconds(executor, load)  # loads kernels, chooses algorithms, captures graphs
    replays = replays_for(loop_seconds(executor, load))
    batch = load.batch()
    step = executor.prepare(batch, greedy(batch.rows))
    kernels = kernels_in_step(step.places, step.queued())
    step.queue()
    sizes = cost_symbols(step.symbols, batch)
    advancing = advancing_launches(bundle, load.variant, kernels)
    blocks = _variants(bundle, load.variant)
    told = [
        number
        for number, kernel in enumerate(kernels)
        if not request.kernels or blocks[kernel.block].kernels[kernel.index].name in request.kernels
    ]
    ends = sorted({end for number in told for end in (number - 1, number) if end >= 0} | {len(kernels) - 1})
    with ExitStack() as stack:
        start = HeadStart(step.device, step.stream)
        stack.callback(start.close)
        watch = stack.enter_context(Stopwatch(step.device, step.stream))
        stack.callback(step.stream.synchronize)
        every = cuts(kernels)
        groups = [every[end] for end in ends] + [
            launches_alone(kernels[number], advancing) for number in told
        ]
        graphs = [
            Replayed(step, group, not advancing.isdisjoint(group), load, replays, stack) for group in groups
        ]
        whole = dict(zip(ends, graphs[: len(ends)], strict=True))
        alone = dict(zip(told, graphs[len(ends) :], strict=True))
        taken: dict[Replayed, list[float]] = {graph: [] for graph in graphs}
        loops: list[float] = []
        for done in range(request.repeats):
            for graph, milliseconds in taken.items():
                milliseconds.append(graph.milliseconds(start, watch))
            loops.append(1e3 * loop_seconds(executor, load))
            if progress:
                progress("timing", done + 1, request.repeats)
    _check_logits(executor, load)
    return (
        kernels,
        sizes,
        Times(
            cuts={end: min(taken[graph]) for end, graph in whole.items()},
            alone={number: min(taken[graph]) / len(graph.launches) for number, graph in alone.items()},
            step=min(loops),
        ),
    )


def loop_seconds(executor: CudaExecutor, load: Workload) -> float:
    """Seconds of a step by the wall clock, as the engine runs it: tokens are read when the next step is under way."""
    steps = load.repeats(LOOP_STEPS) if load.decodes else LOOP_PROMPTS
    batch = load.batch(load.start(steps))
    sampling = greedy(batch.rows)
    begin = time.perf_counter()
    pending = executor.run(batch, sampling)
    for _ in range(steps - 1):
        following = executor.advance() if load.decodes else executor.run(batch, sampling)
        pending.tokens()
        pending = following
    pending.tokens()
    return (time.perf_counter() - begin) / steps


def results(
    bundle: Bundle,
    variant: str,
    kernels: Sequence[KernelInStep],
    symbols: Mapping[str, int],
    times: Times,
    speeds: Speeds,
) -> dict[str, Any]:
    """What is reported: kernels by what they would gain at their bound, and what of the step is unaccounted for."""
    blocks = _variants(bundle, variant)
    rows: list[dict[str, Any]] = []
    for number, alone in times.alone.items():
        kernel = kernels[number]
        described = blocks[kernel.block].kernels[kernel.index]
        nbytes, flops = cost(described, symbols)
        floor_us, us = 1e6 * speeds.floor_seconds(nbytes, flops), 1e3 * in_place(kernels, times.cuts, number)
        layers = len(kernel.launches)
        rows.append(
            {
                "block": kernel.block,
                "variant": blocks[kernel.block].variant,
                "kernel": described.name,
                "template": described.template,
                "layers": layers,
                "us": us,
                "alone_us": 1e3 * alone,
                "bytes": nbytes,
                "flops": flops,
                "floor_us": floor_us,
                "fraction": floor_us / us if us else 0.0,
                "gain_us": (us - floor_us) * layers,
                "share": us * layers / (1e3 * times.step),
            }
        )
    unaccounted = times.step - times.graph
    return {
        "ms_per_step": times.step,
        "graph_ms": times.graph,
        "kernels": sorted(rows, key=lambda row: -row["gain_us"]),
        "unaccounted_us": 1e3 * unaccounted,
        "unaccounted_share": unaccounted / times.step,
    }


def advancing_launches(bundle: Bundle, variant: str, kernels: Sequence[KernelInStep]) -> set[int]:
    """The launches that write `positions`: those of the sampler that names it."""
    blocks = _variants(bundle, variant)
    found: set[int] = set()
    for kernel in kernels:
        block = blocks[kernel.block]
        step = block.steps[kernel.index]
        if kernel.block in bundle.manifest.samplers and isinstance(step, Launch):
            named = {arg.tensor for arg in step.args if isinstance(arg, Pointer)}
            found |= set(kernel.launches) if "positions" in named else set()
    return found


def _variants(bundle: Bundle, variant: str) -> dict[str, BlockVariant]:
    return {name: block_variant(bundle.manifest, name, variant) for name in bundle.manifest.blocks}


def _check_logits(executor: CudaExecutor, load: Workload) -> None:
    if not np.isfinite(executor.logits(load.batch())).all():
        raise DeviceError("the logits are not finite; no result is given")
