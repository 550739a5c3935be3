"""What each kernel of a block costs in a step of some size, before and after the rules, and what limits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from infernum.bundle import Bundle
from infernum.dims import evaluate
from infernum.lab.explain.occupancy import Occupancy, occupancy
from infernum.manifest import BlockVariant, Cost, Gemm, Kernel, Step, spec_of
from infernum.roofline import CONTEXT, Gpu, floor_seconds, gpu_of, step_symbols

Bound = Literal["memory", "compute"]


@dataclass(frozen=True)
class Amount:
    """Some kernels, and the bytes, FLOPs and least microseconds that they take together.

    The floor is that of the sums: kernels that wait for each other take at least as long.
    """

    kernels: int
    bytes: int
    flops: int
    floor_us: float


@dataclass(frozen=True)
class KernelFacts:
    """One step of a block when it processes `tokens` tokens; `before` is what it took the place of.

    `occupancy` and `grid` are None for a library product; `occupancy` also where registers are not known. `cluster`:
    blocks that run together and share their memory, 1 where none do.
    """

    kernel: Kernel
    step: Step
    tokens: int
    bytes: int
    flops: int
    floor_us: float
    bound: Bound
    before: Amount
    occupancy: Occupancy | None
    grid: tuple[int, ...] | None
    cluster: int = 1


def facts_of(
    bundle: Bundle, variant: BlockVariant, *, tokens: int | None = None, context: int = CONTEXT
) -> list[KernelFacts]:
    """Facts of every step of a block variant, in launch order.

    `tokens`: new tokens in the step, by default as many as the variant is for; `context`: positions of each sequence.
    Raises InfernumError for a formula that cannot be evaluated.
    """
    spec = spec_of(bundle.manifest.variants, variant.variant)
    tokens = spec.max_tokens if tokens is None else tokens
    arch = bundle.arch
    gpu = gpu_of(arch)
    symbols = step_symbols(tokens, context=context, sms=gpu.sms, decodes=spec.decodes)
    return [
        _facts(arch, gpu, kernel, step, tokens, symbols)
        for kernel, step in zip(variant.kernels, variant.steps, strict=True)
    ]


def amount(arch: str, symbols: Mapping[str, int], cost: Cost) -> Amount:
    """The amount of a cost whose formulas are over the symbols of a step."""
    nbytes, flops = evaluate(cost.bytes, symbols), evaluate(cost.flops, symbols)
    return Amount(cost.kernels, nbytes, flops, floor_seconds(arch, nbytes, flops) * 1e6)


def total(amounts: Iterable[Amount]) -> Amount:
    """The cost of kernels that run one after another: their floors add up, and so does everything else."""
    amounts = list(amounts)
    return Amount(
        sum(a.kernels for a in amounts),
        sum(a.bytes for a in amounts),
        sum(a.flops for a in amounts),
        sum(a.floor_us for a in amounts),
    )


def _facts(
    arch: str, gpu: Gpu, kernel: Kernel, step: Step, tokens: int, symbols: Mapping[str, int]
) -> KernelFacts:
    own = amount(arch, symbols, Cost(kernels=1, bytes=kernel.bytes, flops=kernel.flops))
    memory_bound = own.bytes / gpu.bytes_per_second >= own.flops / gpu.flops_per_second
    fits, grid, cluster = None, None, 1
    if not isinstance(step, Gemm):
        grid = tuple(evaluate(size, symbols) for size in step.grid)
        cluster = evaluate(step.cluster, symbols)
        shared = step.shared_bytes + kernel.static_shared_bytes
        threads = step.block[0] * step.block[1] * step.block[2]
        if kernel.registers:
            fits = occupancy(gpu, threads=threads, registers=kernel.registers, shared_bytes=shared)
    return KernelFacts(
        kernel=kernel,
        step=step,
        tokens=tokens,
        bytes=own.bytes,
        flops=own.flops,
        floor_us=own.floor_us,
        bound="memory" if memory_bound else "compute",
        before=amount(arch, symbols, kernel.before),
        occupancy=fits,
        grid=grid,
        cluster=cluster,
    )
