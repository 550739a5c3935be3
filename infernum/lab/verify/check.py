"""The verdict on a unit: its kernels run in many trials, and the results are compared with the meaning of its node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from infernum.lab.verify.bench import Bench
from infernum.lab.verify.compare import differences, results_of, row_errors
from infernum.lab.verify.facts import Chunks, count_tokens, steps_for
from infernum.lab.verify.image import Image
from infernum.lab.verify.operands import weight_bytes
from infernum.lab.verify.trials import Trial, trials
from infernum.lab.verify.units import Unit, UnitProgram
from infernum.lab.verify.values import KINDS, Array, Kind, smallest_normal

HEAVY = 32 * 2**20
"""Bytes of weights from which on a unit is tried on the fewest and the most tokens only, since NumPy is slow."""

VERY_HEAVY = 256 * 2**20
"""Bytes of weights, such as a head's, from which on only FEW_KINDS of values are tried."""

FEW_KINDS: tuple[Kind, ...] = ("normal", "equal rows")

EVERY_END = 8
"""Sequences of the step whose contexts end around the ends of pages, one token each."""

DRAWS = 4
"""Trials of a step of up to EVERY_END sequences where tokens are drawn: a mistake shows in few draws."""

MOST_SENTENCES = 3
"""Differences that are shown of one program, which may differ in every trial."""

_POSITIONS = {"positions", "page_table", "query_start"}


@dataclass(kw_only=True)
class Verdict:
    """Whether the kernels of one node, usually one kernel, compute its meaning.

    error             largest relative error against NumPy, of any row in any trial; infinite: no number at all
    tolerance         the largest error that is right; `at` is the trial in which the error was largest
    decomposed_error  the same of the node taken apart into its ops; None: not fused, or for the reason in `note`
    between           largest relative error of the kernels against the decomposed form
    fused_us          median microseconds, and `decomposed_us` of the decomposed form; None where they were not timed
    in_cache          the operands were so small that they stayed in the L2 cache while they were timed
    wrong             a sentence for everything that is wrong; at most MOST_SENTENCES, and the number of the others
    """

    kernel: str
    block: str
    variant: str
    node: str
    ops: tuple[str, ...]
    rules: tuple[str, ...]
    edited: bool
    trials: int = 0
    error: float = 0.0
    tolerance: float
    at: str = ""
    decomposed_kernels: int = 0
    decomposed_error: float | None = None
    between: float | None = None
    fused_us: float | None = None
    decomposed_us: float | None = None
    in_cache: bool = False
    note: str = ""
    wrong: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, unit: Unit, *wrong: str) -> Verdict:
        """The verdict on a unit before its first trial."""
        return cls(
            kernel=unit.name,
            block=unit.variant.block,
            variant=unit.variant.variant,
            node=unit.node.name,
            ops=unit.ops,
            rules=unit.rules,
            edited=unit.edited,
            tolerance=unit.tolerance,
            wrong=[*wrong],
        )

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def speed_up(self) -> float | None:
        """The time of the decomposed form over that of the kernels."""
        if self.fused_us is None or self.decomposed_us is None or self.fused_us <= 0:
            return None
        return self.decomposed_us / self.fused_us


def check_unit(
    bench: Bench,
    unit: Unit,
    decomposed: UnitProgram | None = None,
    *,
    steps: Iterable[Chunks] | None = None,
    kinds: Iterable[Kind] = KINDS,
    timed: bool = False,
) -> Verdict:
    """Run a unit, and its decomposed form if given, in every trial; by default in those of `plan_trials`.

    `timed`: both are timed, in the trial of normal values with the most tokens.
    Raises DeviceError when a kernel fails; the GPU's context is then lost.
    """
    planned = plan_trials(unit) if steps is None else [(chunks, tuple(kinds)) for chunks in steps]
    verdict, apart, between = Verdict.of(unit), Verdict.of(unit), 0.0
    largest: Trial | None = None
    for trial in _trials(unit, planned):
        results = _run(bench, unit, unit.program, trial, verdict)
        if decomposed is None:
            continue
        decomposed_results = _run(bench, unit, decomposed, trial, apart)
        between = max(between, _error_between(results, decomposed_results, unit))
        if trial.kind == "normal" and (largest is None or trial.facts.tokens >= largest.facts.tokens):
            largest = trial
    verdict.wrong = [*_first(verdict.wrong, ""), *_first(apart.wrong, "taken apart, ")]
    if decomposed is not None:
        verdict.decomposed_kernels = len(decomposed.variant.steps)
        verdict.decomposed_error, verdict.between = apart.error, between
    if timed and decomposed is not None and largest is not None:
        images = [Image(each, largest.facts, largest.operands) for each in (unit.program, decomposed)]
        times = [bench.time(image) for image in images]
        verdict.fused_us, verdict.decomposed_us = (time.microseconds for time in times)
        verdict.in_cache = any(time.in_cache for time in times)
    return verdict


def plan_trials(unit: Unit) -> list[tuple[Chunks, tuple[Kind, ...]]]:
    """The steps a unit is tried on, and the kinds of values in each.

    Every step that the unit serves has normal values; the first step, the last step and the step of single tokens
    around the ends of pages have the other kinds as well. A unit that reads no positions is tried once for each number
    of tokens and rows.
    """
    manifest = unit.bundle.manifest
    steps = steps_for(unit.spec, manifest.model.context)
    if not _POSITIONS & set(unit.program.named):
        steps = list({(count_tokens(chunks), len(chunks)): chunks for chunks in steps}.values())
    if weight_bytes(unit) >= HEAVY:
        steps = list(dict.fromkeys([steps[0], steps[-1]]))
        with_all = {steps[0]}
    else:
        with_all = {steps[0], steps[-1], *(chunks for chunks in steps if len(chunks) == EVERY_END)}
    many = FEW_KINDS if weight_bytes(unit) >= VERY_HEAVY else KINDS
    return [(chunks, many if chunks in with_all else ("normal",)) for chunks in steps]


def _trials(unit: Unit, planned: Iterable[tuple[Chunks, tuple[Kind, ...]]]) -> Iterator[Trial]:
    for chunks, kinds in planned:
        draws = DRAWS if "seed" in unit.program.named and len(chunks) <= EVERY_END else 1
        for again in range(draws):
            yield from trials(unit, chunks, ("normal",) if again else kinds, again)


def _run(bench: Bench, unit: Unit, program: UnitProgram, trial: Trial, verdict: Verdict) -> list[Array]:
    """The results of a program in a trial; their error, and sentences on what is wrong, enter the verdict."""
    image = Image(program, trial.facts, trial.operands)
    after = bench.run(image)
    error, sentences = differences(unit, image, after, trial.expected)
    verdict.trials += 1
    verdict.wrong += [f"at {trial}: {sentence}" for sentence in sentences]
    if error > verdict.error or not verdict.at:
        verdict.error, verdict.at = error, str(trial)
    return results_of(image, after)


def _error_between(results: Sequence[Array], others: Sequence[Array], unit: Unit) -> float:
    """The largest relative error of a row between the results of two programs, where both are finite."""
    largest = 0.0
    for result, other, type_ in zip(results, others, unit.node.types, strict=True):
        if type_.dtype.is_float:
            finite = np.isfinite(result).all(axis=-1) & np.isfinite(other).all(axis=-1)
            errors = row_errors(result[finite], other[finite], smallest_normal(type_.dtype))
            largest = max(largest, float(errors.max(initial=0.0)))
    return largest


def _first(sentences: Sequence[str], prefix: str) -> list[str]:
    """The first few sentences, and the number of the others."""
    more = len(sentences) - MOST_SENTENCES
    shown = [f"{prefix}{sentence}" for sentence in sentences[:MOST_SENTENCES]]
    return [*shown, *([f"{prefix}and {more} more differences"] if more > 0 else [])]
