"""`infernum tune`: parameters of kernels by timing, in their place in the whole step, and kept for the next compile.

Each kernel's candidates race against the default, one kernel changed at a time, those first that take most of the step.
Then the winners are put together, verified against NumPy, and timed again: all of them, and all but each one, since
kernels that overlap may help or hinder each other. What is beyond doubt faster than the default is kept.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.codegen.cubin import Cubin
from infernum.codegen.nvrtc import nvrtc_version
from infernum.codegen.tuned import store_tuned
from infernum.compiler import Options, Sources, emit_sources
from infernum.errors import DeviceError, RequestError
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
from infernum.lab.measure.race import FIRST_ROUNDS, Comparison, race, winner
from infernum.lab.measure.rig import Named, Rig
from infernum.lab.measure.workload import Workload, workload
from infernum.llm import Progress, check_claims, open_checkpoint
from infernum.machine import native_arch
from infernum.models.config import config_hash
from infernum.models.presets import ModelSource
from infernum.runtime.driver import describe
from infernum.runtime.executor import CudaExecutor

COMPILING, RACING = 0.35, 0.75
"""Shares of the budget after which no more candidates are compiled, and no more kernels raced by themselves.

What follows is short: it takes the time that it takes.
"""

Check = Callable[[Bundle, str, Collection[Named]], Mapping[Named, str]]
"""Which kernels of a variant do not compute what they should, and what is wrong with each."""

SAMPLER = "greedy"
"""The sampler of the step that is timed."""

PROMPTS = (512, 2048, 4096)
"""Tokens of the prompts for which cuBLASLt's algorithms are timed."""


@dataclass(frozen=True)
class TuneRequest:
    """What is tuned: `variants` of a model, decodes with `context` positions each, within `budget` seconds.

    `prompts`: lengths for which library products are tuned too, when the variant prefill is among `variants`.
    """

    source: ModelSource
    load_format: str = "dummy"
    dtype: str = "auto"
    fuse: bool = True
    rules: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("t1", "t8")
    context: int = 512
    prompts: tuple[int, ...] = PROMPTS
    budget: float = 120.0
    seed: int = 0


@dataclass
class TuningResult:
    """What came of one kernel, or of kernels that are alike. Times are of one launch in its place, in microseconds.

    `raced`: False when the time was up before all candidates were compared. `gain_us`: of the whole step.
    """

    tunable: Tunable
    launches: int = 0
    before_us: float = 0.0
    gain_us: float = 0.0
    values: Values = field(default_factory=dict[str, int])
    raced: bool = False
    refused: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def default(self) -> Values:
        return self.tunable.parameters.default

    @property
    def key(self) -> str:
        return self.tunable.parameters.key

    @property
    def changed(self) -> bool:
        return dict(self.values) != dict(self.default)

    @property
    def after_us(self) -> float:
        return self.before_us - self.gain_us / max(1, self.launches) if self.changed else self.before_us


@dataclass(frozen=True)
class Step:
    """Microseconds of a variant's step before and after, as far as both were timed side by side."""

    variant: str
    before_us: float
    after_us: float


def tune(request: TuneRequest, check: Check, progress: Progress | None = None) -> dict[str, Any]:
    """Find and keep the fastest parameters that `check` finds right.

    When the budget is used up, what was decided until then is kept and the rest stays as it is. Raises DeviceError
    without a GPU, or when a kernel fails on it; RequestError or CompileError.
    """
    if request.budget <= 0:
        raise RequestError(f"--budget is {request.budget:g}; it must be more than 0 seconds")
    try:
        gpu = describe().gpus[0].name
    except DeviceError as error:
        raise DeviceError(f"tune measures a GPU: {error}; see `infernum doctor`") from error
    begin = time.perf_counter()

    def at(share: float) -> float:
        return begin + share * request.budget

    options = Options(native_arch(), request.dtype, request.fuse, request.rules)
    checkpoint = open_checkpoint(request.source, request.load_format)
    if checkpoint is not None:
        check_claims(request.source, checkpoint)
    sources = emit_sources(request.source, options)
    check_variants(request, sources)
    base = compile_default(sources)
    found = [TuningResult(each) for each in tunables_of(request, sources)]
    with tempfile.TemporaryDirectory(prefix="infernum-tune-") as folder:
        workshop = _Workshop(request, sources, base, checkpoint, Path(folder), check, progress)
        workshop.race_each(found, still_before(at(COMPILING)), at(RACING))
        steps, products = workshop.put_together(found, still_before(at(1.0)))
    found = [each for each in found if each.launches]
    seconds = time.perf_counter() - begin
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept = {
        f.key: Tuned(dict(f.values), why(f, gpu, options.arch, date)) for f in found if f.raced or f.changed
    }
    path = store_tuned(gpu, config_hash(request.source.config), kept) if kept else None
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
        "complete": all(f.raced for f in found),
        "kept": str(path) if path else None,
        "steps": [
            {"variant": step.variant, "before_us": step.before_us, "after_us": step.after_us}
            for step in steps
        ],
        "kernels": [row(f, kept) for f in found],
        "products": products,
    }


def tunables_of(request: TuneRequest, sources: Sources) -> list[Tunable]:
    """What is tuned: the model's kernels in each variant, the sampler's in the first one, since it has but one code."""
    blocks = {block.name for block, _ in sources.program.stages}
    first, *others = request.variants
    found = tunables(sources, first, blocks | {SAMPLER})
    return [*found, *(each for variant in others for each in tunables(sources, variant, blocks))]


def check_variants(request: TuneRequest, sources: Sources) -> None:
    """Raises RequestError for a variant, context or prompt that the model has not."""
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


def spelled(values: Mapping[str, int]) -> str:
    """Values of parameters in words: "WARPS 8, SPLITS 16"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def why(found: TuningResult, gpu: str, arch: str, date: str) -> str:
    """The sentence that the manifest has of a kernel that was tuned."""
    tried = f"{len(found.tunable.parameters.candidates)} candidates"
    if not found.changed:
        return f"default for {arch}; none was faster on {gpu}, {date}: {found.before_us:.2f} µs; {tried}"
    return (
        f"tuned on {gpu}, {date}: {found.after_us:.2f} µs;"
        f" default {spelled(found.default)}: {found.before_us:.2f} µs; {tried}"
    )


def row(found: TuningResult, kept: Mapping[str, Tuned]) -> dict[str, Any]:
    """What is reported of a kernel."""
    blocks = dict.fromkeys(block for block, _ in found.tunable.kernels)
    names = dict.fromkeys(name for _, name in found.tunable.kernels)
    return {
        "variant": found.tunable.variant,
        "block": ", ".join(blocks),
        "kernel": " + ".join(names),
        "key": found.key,
        "launches": found.launches,
        "before": dict(found.default),
        "after": dict(found.values),
        "before_us": found.before_us,
        "after_us": found.after_us,
        "candidates": len(found.tunable.parameters.candidates),
        "decided": found.raced,
        "refused": found.refused,
        "why": kept[found.key].why if found.key in kept else "not decided: the time was up",
    }


def record_kernel_times(found: Sequence[TuningResult], times: Mapping[Named, tuple[int, float]]) -> None:
    """Note how often each kernel runs in a step and what it takes: those of one key, and of one op, together."""
    for each in found:
        timed = [times[name] for name in each.tunable.kernels if name in times]
        each.launches = timed[0][0] if timed else 0
        total = sum(launches * us for launches, us in timed)
        each.before_us = total / each.launches if each.launches else 0.0


def decide(found: TuningResult, names: Mapping[str, Values], comparisons: Mapping[str, Comparison]) -> None:
    """Take the winner of a race, or the default; `names`: the values of each candidate that took part."""
    found.raced = all(each.decided for each in comparisons.values())
    best = winner(dict(comparisons), found.before_us * found.launches)
    found.values = dict(found.default if best is None else names[best])
    found.gain_us = 0.0 if best is None else -comparisons[best].median


def combinations(variant: str, winners: Sequence[TuningResult]) -> list[CandidateVariant]:
    """All winners of a variant together, and all but each of them."""
    changes: dict[str, Values] = {f.key: f.values for f in winners}
    if not changes:
        return []
    without = [{k: v for k, v in changes.items() if k != key} for key in changes] if len(changes) > 1 else []
    return [
        CandidateVariant(f"{variant}.with{i}", variant, each) for i, each in enumerate([changes, *without])
    ]


def settle_together(
    winners: Sequence[TuningResult], tried: Sequence[CandidateVariant], comparisons: Mapping[str, Comparison]
) -> float:
    """Keep of the winners those of the fastest combination, none where no one is faster than the default beyond doubt.

    The microseconds that the step gains.
    """
    best = winner(dict(comparisons), 0.0)
    kept = {key for each in tried if each.name == best for key in each.changes}
    for each in winners:
        if each.key not in kept:
            each.values, each.gain_us = dict(each.default), 0.0
    return 0.0 if best is None else -comparisons[best].median


class _Workshop:
    """Compiles candidates of one model and times them on the GPU."""

    def __init__(
        self,
        request: TuneRequest,
        sources: Sources,
        base: Mapping[str, Cubin],
        checkpoint: Checkpoint | None,
        folder: Path,
        check: Check,
        progress: Progress | None,
    ) -> None:
        self._request, self._sources, self._base = request, sources, base
        self._checkpoint, self._folder, self._check, self._progress = checkpoint, folder, check, progress

    def race_each(self, found: Sequence[TuningResult], may_compile: Callable[[], bool], until: float) -> None:
        """Race the candidates of every kernel against the default, one kernel changed at a time."""
        listed: list[list[CandidateVariant]] = []
        for each in found:
            each.values = dict(each.default)
            listed.append(candidates_of(each.tunable, sum(map(len, listed))))
        every = [candidate for candidates in listed for candidate in candidates]
        compiled = compile_candidates(self._sources, self._base, every, may_compile, self._progress)
        refused = {each.candidate.name: each.refused for each in compiled if each.refused}
        bundle = write_candidates(
            self._folder / "each", self._sources, self._base, [each for each in compiled if not each.refused]
        )
        kernels = list(zip(found, listed, strict=True))
        with self._executor(bundle) as executor:
            for number, variant in enumerate(self._request.variants):
                mine = [pair for pair in kernels if pair[0].tunable.variant == variant]
                turn = still_before(end_of_turn(until, len(self._request.variants) - number))
                with ExitStack() as stack:
                    rig = Rig(executor, bundle, self._workload(bundle, variant), stack)
                    record_kernel_times([each for each, _ in mine], rig.kernel_us())
                    mine.sort(key=lambda pair: -pair[0].before_us * pair[0].launches)
                    for each, candidates in mine:
                        self._race(rig, each, candidates, refused, turn)

    def put_together(
        self, found: Sequence[TuningResult], in_time: Callable[[], bool]
    ) -> tuple[list[Step], list[dict[str, Any]]]:
        """Verify the winners, time them together, and settle what is kept; then the products of prompts."""
        compiled = self._verified(found)
        bundle = write_candidates(self._folder / "together", self._sources, self._base, compiled)
        steps: list[Step] = []
        with self._executor(bundle) as executor:
            for variant in self._request.variants:
                tried = [each.candidate for each in compiled if each.candidate.variant == variant]
                winners = [f for f in found if f.changed and f.tunable.variant == variant]
                with ExitStack() as stack:
                    rig = Rig(executor, bundle, self._workload(bundle, variant), stack)
                    names = [each.name for each in tried if not rig.open(each.name, stack)]
                    comparisons = race(variant, names, rig.sample, lambda: True)
                    gain = settle_together(winners, tried, comparisons)
                    before = min(rig.sample(variant) for _ in range(FIRST_ROUNDS))
                    steps.append(Step(variant, before, before - gain))
            products = self._products(executor, in_time) if "prefill" in self._request.variants else []
        return steps, products

    def _race(
        self,
        rig: Rig,
        each: TuningResult,
        candidates: Sequence[CandidateVariant],
        refused: Mapping[str, str],
        in_time: Callable[[], bool],
    ) -> None:
        if not each.launches or not in_time():
            return
        names: dict[str, Values] = {}
        with ExitStack() as stack:
            for candidate in candidates:
                values = candidate.changes[each.key]
                reason = refused.get(candidate.name) or rig.open(candidate.name, stack)
                if reason:
                    each.refused[spelled(values)] = reason
                else:
                    names[candidate.name] = values
            variant = each.tunable.variant
            decide(each, names, race(variant, list(names), rig.sample, in_time))
        each.raced = each.raced and not any("time was up" in reason for reason in each.refused.values())

    def _verified(self, found: Sequence[TuningResult]) -> list[CompiledCandidate]:
        """Combinations of the winners, after those that NumPy does not agree with have gone back to the default."""
        winners = [f for f in found if f.changed]
        together = [
            candidates[0]
            for variant in self._request.variants
            if (candidates := combinations(variant, [f for f in winners if f.tunable.variant == variant]))
        ]
        compiled = compile_candidates(self._sources, self._base, together)
        usable = [each for each in compiled if not each.refused]
        bundle = write_candidates(self._folder / "verified", self._sources, self._base, usable)
        for candidate in (each.candidate for each in usable):
            mine = [f for f in winners if f.key in candidate.changes]
            names = [name for f in mine for name in f.tunable.kernels]
            wrong = self._check(bundle, candidate.name, names)
            for each in mine:
                reasons = [wrong[name] for name in each.tunable.kernels if name in wrong]
                if reasons:
                    each.refused[spelled(each.values)] = f"wrong: {reasons[0]}"
                    each.values, each.gain_us = dict(each.default), 0.0
        right = [f for f in winners if f.changed]
        tried = [
            candidate
            for variant in self._request.variants
            for candidate in combinations(variant, [f for f in right if f.tunable.variant == variant])
        ]
        return [each for each in compile_candidates(self._sources, self._base, tried) if not each.refused]

    def _products(self, executor: CudaExecutor, in_time: Callable[[], bool]) -> list[dict[str, Any]]:
        """Algorithms of the library for prompts; the executor keeps them in the user's cache."""
        rows: list[dict[str, Any]] = []
        for tokens in self._request.prompts:
            if tokens > executor.max_batch_tokens or not in_time():
                continue
            rows += [
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
        return rows

    def _workload(self, bundle: CandidateBundle, variant: str) -> Workload:
        request = self._request
        return workload(
            bundle, variant=variant, tokens=None, context=request.context, room=64, seed=request.seed
        )

    def _executor(self, bundle: CandidateBundle) -> CudaExecutor:
        loads = [self._workload(bundle, variant) for variant in self._request.variants]
        return CudaExecutor.open(
            bundle,
            self._checkpoint,
            max_model_len=max(load.length for load in loads),
            max_pages_total=max(load.pages.size for load in loads),
            seed=self._request.seed,
        )


def end_of_turn(until: float, to_come: int) -> float:
    """When the next of `to_come` variants must be done: what is left until then, divided among them evenly."""
    now = time.perf_counter()
    return now + max(0.0, until - now) / to_come


def still_before(moment: float) -> Callable[[], bool]:
    """Whether that moment of `time.perf_counter` is still to come."""
    return lambda: time.perf_counter() < moment
