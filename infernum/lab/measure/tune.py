"""`infernum tune`: find the fastest parameters of kernels by timing the whole step, and keep them for the next compile.

Each kernel's candidates race against the default, one kernel changed at a time, beginning with the kernels that take
most of the step. Then the winners are combined, verified against NumPy, and timed again: all of them together, and all
but each one, since kernels that overlap may help or hinder each other. The fastest combination is kept.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.codegen.cubin import Cubin
from infernum.codegen.nvrtc import nvrtc_version
from infernum.codegen.tuned import store_tuned
from infernum.compiler import Options, Sources, emit_sources
from infernum.errors import RequestError
from infernum.ir.kernel import Tuned
from infernum.lab.measure.candidates import (
    CandidateBundle,
    CandidateVariant,
    CompiledCandidate,
    Tunable,
    Values,
    candidates_of,
    compile_candidates,
    compile_default,
    tunables,
    write_candidates,
)
from infernum.lab.measure.origin import origin
from infernum.lab.measure.race import FIRST_ROUNDS, PairedDifferences, race, winner
from infernum.lab.measure.subject import ModelRequest, require_gpu
from infernum.lab.measure.tuning_result import TuningResult, record_kernel_times, row, spelled, why
from infernum.lab.measure.variant_timer import KernelName, VariantTimer
from infernum.lab.measure.workload import Workload, workload
from infernum.machine import native_arch
from infernum.models.config import config_hash
from infernum.opening import Progress
from infernum.runtime.executor import CudaExecutor

COMPILING, RACING = 0.35, 0.75
"""Shares of the budget after which no more candidates are compiled, and no more single kernels raced.

The combination of the winners comes after that. It is short, and has no limit.
"""

Check = Callable[[Bundle, str, Collection[KernelName]], Mapping[KernelName, str]]
"""Compares kernels of a variant with NumPy; returns the wrong ones, each with a sentence that says what is wrong."""

SAMPLER = "greedy"
"""The sampler of the step that is timed."""

VARIANTS = ("t1", "t8")
"""The variants that are tuned by default."""

PROMPTS = (512, 2048, 4096)
"""Tokens of the prompts for which cuBLASLt's algorithms are timed by default."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest(ModelRequest):
    """`variants` of a model, to be tuned within `budget` seconds.

    context  positions of each sequence in the timed steps
    prompts  lengths for which library products are tuned too, when the variant prefill is among `variants`
    """

    variants: tuple[str, ...] = VARIANTS
    context: int = 512
    prompts: tuple[int, ...] = PROMPTS
    budget: float = 120.0


def tune(request: TuneRequest, check: Check, progress: Progress | None = None) -> dict[str, Any]:
    """Find and keep the fastest parameters that pass `check`.

    When the budget is used up, the decisions made until then are kept, and all other parameters stay. Raises
    DeviceError without a GPU, or when a kernel fails on it; RequestError or CompileError.
    """
    if request.budget <= 0:
        raise RequestError(f"--budget is {request.budget:g}; it must be more than 0 seconds")
    gpu = require_gpu("tune").name
    begin = time.perf_counter()

    def at(share: float) -> float:
        return begin + share * request.budget

    options = Options(native_arch(), request.dtype, request.fuse, request.rules)
    checkpoint = request.checkpoint()
    sources = emit_sources(request.source, options)
    check_variants(request, sources)
    base = compile_default(sources)
    results = [TuningResult(each) for each in tunables_of(request, sources)]
    with tempfile.TemporaryDirectory(prefix="infernum-tune-") as folder:
        tuner = _Tuner(request, sources, base, checkpoint, Path(folder), check, progress)
        tuner.race_each(results, still_before(at(COMPILING)), at(RACING))
        steps, products = tuner.combine(results, still_before(at(1.0)))
    results = [result for result in results if result.launches]
    seconds = time.perf_counter() - begin
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    tuned = {
        result.key: Tuned(dict(result.values), why(result, gpu, options.arch, date))
        for result in results
        if result.raced or result.changed
    }
    path = store_tuned(gpu, config_hash(request.source.config), tuned) if tuned else None
    return {
        "benchmark": "tune",
        **origin(nvrtc_version()),
        "model": request.source.name,
        "dtype": sources.program.dtype.name,
        "arch": options.arch,
        "fuse": request.fuse,
        "context": request.context,
        "budget_seconds": request.budget,
        "seconds": seconds,
        "complete": all(result.raced for result in results),
        "kept": str(path) if path else None,
        "steps": steps,
        "kernels": [row(result, tuned) for result in results],
        "products": products,
    }


def tunables_of(request: TuneRequest, sources: Sources) -> list[Tunable]:
    """The model's kernels in each variant, and in the first one the sampler's, whose code serves all variants."""
    blocks = {block.name for block, _ in sources.program.stages}
    first, *others = request.variants
    of_first = tunables(sources, first, blocks | {SAMPLER})
    return [*of_first, *(each for variant in others for each in tunables(sources, variant, blocks))]


def check_variants(request: TuneRequest, sources: Sources) -> None:
    """Raises RequestError for a variant, context or prompt that the model does not serve."""
    names = [spec.name for spec in sources.variants]
    for variant in request.variants:
        if variant not in names:
            raise RequestError(f"--variant is {variant!r}; this model has {', '.join(names)}")
    longest = sources.program.source.config.max_position_embeddings
    if not 1 <= request.context <= longest:
        raise RequestError(f"--context is {request.context}; this model serves contexts of 1 to {longest}")
    for tokens in request.prompts:
        if tokens < 1:
            raise RequestError(f"--prompt is {tokens}; it must be 1 or more")


def combinations(variant: str, winners: Sequence[TuningResult]) -> list[CandidateVariant]:
    """All winners of a variant together, and all but each one of them."""
    changes: dict[str, Values] = {
        each.key: each.values for each in winners if each.tunable.variant == variant
    }
    if not changes:
        return []
    without = [{k: v for k, v in changes.items() if k != key} for key in changes] if len(changes) > 1 else []
    return [
        CandidateVariant(f"{variant}.with{i}", variant, each) for i, each in enumerate([changes, *without])
    ]


def settle_together(
    winners: Sequence[TuningResult],
    candidates: Sequence[CandidateVariant],
    comparisons: Mapping[str, PairedDifferences],
) -> float:
    """Reset the winners that the fastest combination leaves out; all of them when none is faster than the default.

    Returns the microseconds that the step gains.
    """
    best = winner(dict(comparisons), 0.0)
    keys = {key for each in candidates if each.name == best for key in each.changes}
    for result in winners:
        if result.key not in keys:
            result.reset()
    return 0.0 if best is None else -comparisons[best].median


@dataclass(frozen=True)
class _Tuner:
    """Compiles candidates of one model and times them on the GPU. `base`: the default cubins by file."""

    request: TuneRequest
    sources: Sources
    base: Mapping[str, Cubin]
    checkpoint: Checkpoint | None
    folder: Path
    check: Check
    progress: Progress | None

    def race_each(
        self, results: Sequence[TuningResult], may_compile: Callable[[], bool], until: float
    ) -> None:
        """Race the candidates of every kernel against the default, one kernel changed at a time."""
        candidates: dict[str, list[CandidateVariant]] = {}
        for result in results:
            result.reset()
            candidates[result.key] = candidates_of(result.tunable, sum(map(len, candidates.values())))
        compiled = compile_candidates(
            self.sources,
            self.base,
            [each for by_kernel in candidates.values() for each in by_kernel],
            may_compile,
            self.progress,
        )
        refused = {each.candidate.name: each.refused for each in compiled if each.refused}
        bundle = self._write("each", compiled)
        with self._executor(bundle) as executor:
            for number, variant in enumerate(self.request.variants):
                in_time = still_before(end_of_turn(until, len(self.request.variants) - number))
                of_variant = [result for result in results if result.tunable.variant == variant]
                with ExitStack() as stack:
                    timer = VariantTimer(executor, bundle, self._workload(bundle, variant), stack)
                    record_kernel_times(of_variant, timer.kernel_us())
                    for result in sorted(of_variant, key=lambda each: -each.before_us * each.launches):
                        if result.launches and in_time():
                            race_kernel(result, candidates[result.key], refused, timer, in_time)

    def combine(
        self, results: Sequence[TuningResult], in_time: Callable[[], bool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Verify the winners, time their combinations and settle which are kept; then tune the products of prompts.

        Returns the times of each variant's step, and the products.
        """
        compiled = self._verified(results)
        bundle = self._write("together", compiled)
        steps: list[dict[str, Any]] = []
        products: list[dict[str, Any]] = []
        with self._executor(bundle) as executor:
            for variant in self.request.variants:
                candidates = [each.candidate for each in compiled if each.candidate.variant == variant]
                winners = [each for each in results if each.changed and each.tunable.variant == variant]
                with ExitStack() as stack:
                    timer = VariantTimer(executor, bundle, self._workload(bundle, variant), stack)
                    names = [each.name for each in candidates if not timer.open(each.name, stack)]
                    gain = settle_together(
                        winners, candidates, race(variant, names, timer.sample, lambda: True)
                    )
                    before = min(timer.sample(variant) for _ in range(FIRST_ROUNDS))
                steps.append({"variant": variant, "before_us": before, "after_us": before - gain})
            for tokens in self.request.prompts if "prefill" in self.request.variants else ():
                if tokens <= executor.max_batch_tokens and in_time():
                    products += tune_products(executor, tokens)
        return steps, products

    def _verified(self, results: Sequence[TuningResult]) -> list[CompiledCandidate]:
        """Combinations of the winners, after the winners that NumPy contradicts have been reset."""
        winners = [each for each in results if each.changed]
        compiled = self._compiled(c for v in self.request.variants for c in combinations(v, winners)[:1])
        bundle = self._write("verified", compiled)
        for candidate in (each.candidate for each in compiled):
            changed = [each for each in winners if each.key in candidate.changes]
            names = [name for each in changed for name in each.tunable.kernels]
            wrong = self.check(bundle, candidate.name, names)
            for result in changed:
                reasons = [wrong[name] for name in result.tunable.kernels if name in wrong]
                if reasons:
                    result.refused[spelled(result.values)] = f"wrong: {reasons[0]}"
                    result.reset()
        right = [each for each in winners if each.changed]
        return self._compiled(c for v in self.request.variants for c in combinations(v, right))

    def _compiled(self, candidates: Iterable[CandidateVariant]) -> list[CompiledCandidate]:
        """The candidates that are not refused."""
        compiled = compile_candidates(self.sources, self.base, list(candidates))
        return [each for each in compiled if not each.refused]

    def _write(self, name: str, compiled: Sequence[CompiledCandidate]) -> CandidateBundle:
        return write_candidates(self.folder / name, self.sources, self.base, compiled)

    def _workload(self, bundle: CandidateBundle, variant: str) -> Workload:
        request = self.request
        return workload(
            bundle, variant=variant, tokens=None, context=request.context, room=64, seed=request.seed
        )

    def _executor(self, bundle: CandidateBundle) -> CudaExecutor:
        loads = [self._workload(bundle, variant) for variant in self.request.variants]
        return CudaExecutor.open(
            bundle,
            self.checkpoint,
            max_model_len=max(load.length for load in loads),
            max_pages_total=max(load.pages.size for load in loads),
            seed=self.request.seed,
        )


def race_kernel(
    result: TuningResult,
    candidates: Sequence[CandidateVariant],
    refused: Mapping[str, str],
    timer: VariantTimer,
    in_time: Callable[[], bool],
) -> None:
    """Race the candidates of one kernel that are not in `refused`, and set the result to the winner or the default."""
    raced: dict[str, Values] = {}
    with ExitStack() as stack:
        for candidate in candidates:
            values = candidate.changes[result.key]
            if reason := refused.get(candidate.name) or timer.open(candidate.name, stack):
                result.refused[spelled(values)] = reason
            else:
                raced[candidate.name] = values
        comparisons = race(result.tunable.variant, list(raced), timer.sample, in_time)
    best = winner(comparisons, result.before_us * result.launches)
    if best is not None:
        result.values, result.gain_us = dict(raced[best]), -comparisons[best].median
    late = any("time was up" in reason for reason in result.refused.values())
    result.raced = not late and all(each.decided for each in comparisons.values())


def tune_products(executor: CudaExecutor, tokens: int) -> list[dict[str, Any]]:
    """Tune the library's products for a prompt of `tokens` tokens; the executor keeps them in the user's cache."""
    return [
        {
            "m": tuned.m,
            "n": tuned.shape.n,
            "k": tuned.shape.k,
            "before_us": tuned.first_microseconds,
            "after_us": tuned.microseconds,
            "rank": tuned.rank,
            "candidates": tuned.candidates,
        }
        for tuned in executor.tune_products(tokens)
    ]


def end_of_turn(until: float, variants_to_come: int) -> float:
    """When the next of the variants to come must be done: they share the time until then evenly."""
    now = time.perf_counter()
    return now + max(0.0, until - now) / variants_to_come


def still_before(moment: float) -> Callable[[], bool]:
    """True as long as `time.perf_counter` is before that moment."""
    return lambda: time.perf_counter() < moment
