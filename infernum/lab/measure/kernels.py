"""Each kernel of a step in its place: its time, its bound measured in the same run, and where the rest of a step goes.

The time of a kernel in place is the difference of two cuts of the step (`infernum.lab.measure.cuts`), each captured as
a CUDA graph and replayed back to back. The sum over the kernels is the time of the whole graph. A step by the wall
clock, run as the engine runs it, takes longer: the launch of graphs, the copy of tokens and the host are reported as
unaccounted. The first kernel's time includes the pause between two replays. `alone_us` is another number: a graph of
nothing but this kernel for every layer in turn, which neither hides behind its neighbours nor is slowed by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from infernum.bundle import Bundle
from infernum.errors import RequestError
from infernum.lab.measure.bounds import Speeds, cost, cost_symbols, measure_speeds
from infernum.lab.measure.cuts import KernelInStep, cuts, in_place
from infernum.lab.measure.origin import origin
from infernum.lab.measure.step_timer import StepTimer, blocks_of
from infernum.lab.measure.workload import Workload, greedy, workload
from infernum.opening import Progress
from infernum.runtime.executor import CudaExecutor
from infernum.weights.source import TensorSource

LOOP_STEPS = 64
"""Decode steps of the loop that is timed by the wall clock."""

LOOP_PROMPTS = 2
"""Prompts in that loop, as few as there are replays of such a step."""

Check = Callable[[Bundle, str], None]
"""Raises DeviceError, naming the kernel, unless the kernels of a variant compute what they should."""


@dataclass(frozen=True)
class StepTimes:
    """The kernels of a step, the values of its symbols, and times in milliseconds.

    cuts   the step cut after a kernel, by the kernel's number; the last cut is the whole step as a graph
    alone  one launch of a kernel alone, by the kernel's number
    step   the whole step by the wall clock
    """

    kernels: Sequence[KernelInStep]
    symbols: Mapping[str, int]
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
    check: Check,
    *,
    variant: str | None = None,
    tokens: int | None = None,
    context: int = 512,
    repeats: int = 10,
    kernels: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the kernels of a step, all or those named in `kernels`, after `check` has passed.

    `variant`, `tokens` and `context` choose the step, as in `workload`. `repeats`: rounds, of which the fastest counts.
    None for `checkpoint`: random weights. Raises RequestError, BundleError or DeviceError, and gives no number, when
    the step is not in the bundle, the bundle is not for this GPU, a kernel is wrong, or the logits are not finite.
    """
    if repeats < 1:
        raise RequestError(f"--repeats is {repeats}; it must be 1 or more")
    load = workload(bundle, variant=variant, tokens=tokens, context=context, room=LOOP_STEPS, seed=seed)
    manifest = bundle.manifest
    check(bundle, load.variant)
    with CudaExecutor.open(
        bundle, checkpoint, max_model_len=load.length, max_pages_total=load.pages.size, seed=seed
    ) as executor:
        times = time_step(executor, bundle, load, kernels, repeats, progress)
    blocks = blocks_of(bundle, load.variant).values()
    by_library = any(kernel.template == "cublaslt" for block in blocks for kernel in block.kernels)
    speeds = measure_speeds(manifest.dtype if by_library or manifest.dtype != "f32" else None)
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
        "repeats": repeats,
        "read_bandwidth_gb_s": speeds.bytes_per_second / 1e9,
        "flops_per_second": speeds.flops_per_second,
        **results(bundle, load.variant, times, speeds),
    }


def time_step(
    executor: CudaExecutor,
    bundle: Bundle,
    load: Workload,
    names: Collection[str],
    repeats: int,
    progress: Progress | None = None,
) -> StepTimes:
    """The least times of a step over `repeats` rounds; of kernels, the times of those in `names`, or of all.

    Raises DeviceError when the logits are not finite, before or after.
    """
    loops: list[float] = []
    with ExitStack() as stack:
        timer = StepTimer(executor, bundle, load, stack)
        loop_seconds(executor, load)  # loads kernels, chooses algorithms, captures graphs
        kernels, blocks = timer.kernels, blocks_of(bundle, load.variant)
        numbers = [
            number
            for number, kernel in enumerate(kernels)
            if not names or blocks[kernel.block].kernels[kernel.index].name in names
        ]
        ends = sorted(
            {end for number in numbers for end in (number - 1, number) if end >= 0} | {len(kernels) - 1}
        )
        cut_launches = cuts(kernels)
        graphs = [timer.graph(cut_launches[end], stack) for end in ends]
        graphs += [timer.graph(timer.launches_alone(kernels[number]), stack) for number in numbers]

        def after_round(rounds: int) -> None:
            loops.append(1e3 * loop_seconds(executor, load))
            if progress:
                progress("timing", rounds, repeats)

        least = timer.least_milliseconds(graphs, repeats, after_round)
        symbols = cost_symbols(timer.step.symbols, load.batch())
    timer.check_logits()
    alone = [ms / len(graph.launches) for ms, graph in zip(least, graphs, strict=True)][len(ends) :]
    return StepTimes(
        kernels,
        symbols,
        cuts=dict(zip(ends, least, strict=False)),
        alone=dict(zip(numbers, alone, strict=True)),
        step=min(loops),
    )


def loop_seconds(executor: CudaExecutor, load: Workload) -> float:
    """Seconds of a step by the wall clock, as the engine runs it: tokens are read while the next step runs."""
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


def results(bundle: Bundle, variant: str, times: StepTimes, speeds: Speeds) -> dict[str, Any]:
    """The kernels, sorted by the time that each would gain at its bound, and the time that belongs to no kernel."""
    blocks = blocks_of(bundle, variant)
    rows: list[dict[str, Any]] = []
    for number, alone in times.alone.items():
        kernel = times.kernels[number]
        described = blocks[kernel.block].kernels[kernel.index]
        nbytes, flops = cost(described, times.symbols)
        floor_us, us = (
            1e6 * speeds.floor_seconds(nbytes, flops),
            1e3 * in_place(times.kernels, times.cuts, number),
        )
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
