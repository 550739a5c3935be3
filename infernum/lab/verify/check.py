"""Runs the kernels of a unit in many trials, and compares the results with the meaning of its node."""

from __future__ import annotations

from collections.abc import Iterable
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

_POSITIONS = {"positions", "page_table", "query_start"}


@dataclass
class Checked:
    """The largest relative errors in the trials of a unit, and sentences on what is wrong.

    error             of the unit's kernels against NumPy; `at` is the trial in which it was largest
    decomposed_error  of the decomposed form against NumPy
    between           of the unit's kernels against the decomposed form
    wrong             trials in which the unit's kernels are wrong, `wrong_apart` those of the decomposed form
    largest           the trial of normal values with the most tokens, where there is a decomposed form
    """

    unit: Unit
    trials: int = 0
    error: float = 0.0
    at: str = ""
    decomposed_error: float = 0.0
    between: float = 0.0
    wrong: list[str] = field(default_factory=list[str])
    wrong_apart: list[str] = field(default_factory=list[str])
    largest: Trial | None = None


def check_unit(
    bench: Bench,
    unit: Unit,
    decomposed: UnitProgram | None = None,
    *,
    steps: Iterable[Chunks] | None = None,
    kinds: Iterable[Kind] = KINDS,
) -> Checked:
    """Run a unit, and its decomposed form if given, in every trial; by default in those of `plan_trials`.

    Raises DeviceError when a kernel fails; the GPU's context is then lost.
    """
    checked = Checked(unit)
    planned = plan_trials(unit) if steps is None else [(chunks, tuple(kinds)) for chunks in steps]
    for chunks, of_kinds in planned:
        draws = DRAWS if "seed" in unit.program.named and len(chunks) <= EVERY_END else 1
        for again in range(draws):
            for trial in trials(unit, chunks, ("normal",) if again else of_kinds, again):
                _try(bench, checked, trial, decomposed)
    return checked


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


def _try(bench: Bench, checked: Checked, trial: Trial, decomposed: UnitProgram | None) -> None:
    unit = checked.unit
    results, error = _run(bench, unit, unit.program, trial, checked.wrong)
    checked.trials += 1
    if error > checked.error or not checked.at:
        checked.error, checked.at = error, str(trial)
    if decomposed is None:
        return
    most = 0 if checked.largest is None else checked.largest.facts.tokens
    if trial.kind == "normal" and trial.facts.tokens >= most:
        checked.largest = trial
    decomposed_results, error = _run(bench, unit, decomposed, trial, checked.wrong_apart)
    checked.decomposed_error = max(checked.decomposed_error, error)
    for result, other, type_ in zip(results, decomposed_results, unit.node.types, strict=True):
        if type_.dtype.is_float:
            finite = np.isfinite(result).all(axis=-1) & np.isfinite(other).all(axis=-1)
            errors = row_errors(result[finite], other[finite], smallest_normal(type_.dtype))
            checked.between = max(checked.between, float(errors.max(initial=0.0)))


def _run(
    bench: Bench, unit: Unit, program: UnitProgram, trial: Trial, wrong: list[str]
) -> tuple[list[Array], float]:
    """The results of a program in a trial, and their error; sentences on what is wrong are added to `wrong`."""
    image = Image(program, trial.facts, trial.operands)
    after = bench.run(image)
    error, sentences = differences(
        image, after, trial.expected, unit.tolerance, bitwise=unit.copies, may_flush=unit.uses_library
    )
    wrong += [f"at {trial}: {sentence}" for sentence in sentences]
    return results_of(image, after), error
