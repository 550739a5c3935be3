"""Runs a unit in trial after trial, and says where its kernels do not do what its node means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infernum.lab.verify.bench import Bench
from infernum.lab.verify.compare import differences, results_of, row_errors
from infernum.lab.verify.facts import Chunks, count_tokens, steps_for
from infernum.lab.verify.image import Image
from infernum.lab.verify.operands import weight_bytes
from infernum.lab.verify.trials import Trial, trials
from infernum.lab.verify.units import Unit, UnitProgram
from infernum.lab.verify.values import KINDS, Kind, smallest_normal

Array = np.ndarray[Any, Any]

HEAVY = 32 * 2**20
"""Bytes of weights from which on a unit is tried on the fewest and the most tokens only: NumPy takes its time."""

VERY_HEAVY = 256 * 2**20
"""Bytes of weights, such as a head's, from which on only FEW_KINDS of values are tried."""

FEW_KINDS: tuple[Kind, ...] = ("normal", "equal rows")

EVERY_END = 8
"""Sequences of the step whose contexts end around the ends of pages, one token each."""

DRAWS = 4
"""Times that a step of up to EVERY_END sequences is tried where tokens are drawn: mistakes show in few draws."""

_POSITIONS = {"positions", "page_table", "query_start"}


@dataclass(frozen=True)
class UnitFault:
    """A way in which a unit's kernels do not do what its node means."""

    unit: Unit
    at: str
    what: str

    def __str__(self) -> str:
        return f"{self.unit} at {self.at}: {self.what}"


@dataclass
class Checked:
    """What came of a unit's trials. Errors are the largest relative ones, `at` is where that of its kernels was.

    `error` is that of the unit against NumPy, `decomposed_error` that of its decomposed form, `between` of the one
    against the other; `largest` is the trial of normal values with the most tokens that both were in.
    """

    unit: Unit
    trials: int = 0
    error: float = 0.0
    at: str = ""
    decomposed_error: float = 0.0
    between: float = 0.0
    wrong: list[UnitFault] = field(default_factory=list[UnitFault])
    wrong_apart: list[UnitFault] = field(default_factory=list[UnitFault])
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
        for trial in trials(unit, chunks, of_kinds):
            _try(bench, checked, trial, decomposed)
        for again in range(1, _draws(unit, chunks)):
            for trial in trials(unit, chunks, ("normal",), again):
                _try(bench, checked, trial, decomposed)
    return checked


def plan_trials(unit: Unit) -> list[tuple[Chunks, tuple[Kind, ...]]]:
    """The steps a unit is tried on, and the kinds of values in each.

    Every step that the unit serves has normal values; the first one, the last one and that of single tokens around
    the ends of pages have the others as well. What asks for no positions sees only how many tokens and rows there are.
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


def _draws(unit: Unit, chunks: Chunks) -> int:
    return DRAWS if "seed" in unit.program.named and len(chunks) <= EVERY_END else 1


def image_of(program: UnitProgram, trial: Trial) -> Image:
    """A program's memory before a trial."""
    image = Image(program, trial.facts)
    for place, values in zip(program.operands, trial.operands, strict=True):
        image.write(place, values)
    return image


def _try(bench: Bench, checked: Checked, trial: Trial, decomposed: UnitProgram | None) -> None:
    unit = checked.unit
    found, checked_error = _run(bench, unit, unit.program, trial, checked.wrong)
    checked.trials += 1
    if checked_error > checked.error or not checked.at:
        checked.error, checked.at = checked_error, str(trial)
    if decomposed is None:
        return
    most = 0 if checked.largest is None else checked.largest.facts.tokens
    if trial.kind == "normal" and trial.facts.tokens >= most:
        checked.largest = trial
    apart, error = _run(bench, unit, decomposed, trial, checked.wrong_apart)
    checked.decomposed_error = max(checked.decomposed_error, error)
    for one, other, type_ in zip(found, apart, unit.node.types, strict=True):
        if type_.dtype.is_float:
            written = np.isfinite(one).all(axis=-1) & np.isfinite(other).all(axis=-1)
            if written.any():
                errors = row_errors(one[written], other[written], smallest_normal(type_.dtype))
                checked.between = max(checked.between, float(errors.max()))


def _run(
    bench: Bench, unit: Unit, program: UnitProgram, trial: Trial, wrong: list[UnitFault]
) -> tuple[list[Array], float]:
    """The results of a program in a trial, and their error; what is wrong with them goes to `wrong`."""
    image = image_of(program, trial)
    after = bench.run(image)
    error, sentences = differences(
        image, after, trial.expected, unit.tolerance, bitwise=unit.copies, may_flush=unit.uses_library
    )
    wrong += [UnitFault(unit, str(trial), sentence) for sentence in sentences]
    return results_of(image, after), error
