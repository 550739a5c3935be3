"""Runs the kernels of a bundle on a GPU, and gives a verdict on each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from infernum import fusion
from infernum.bundle import Bundle
from infernum.errors import BundleError, DeviceError
from infernum.lab.verify.bench import Bench
from infernum.lab.verify.check import Checked, check_unit
from infernum.lab.verify.decompose import decomposed_programs
from infernum.lab.verify.image import Image
from infernum.lab.verify.units import Unit, UnitProgram, units_of
from infernum.manifest import BlockVariant, variant_names
from infernum.runtime.layout import block_variant, check_arch

Progress = Callable[[str, int, int], None]
"""Called with the part of the work, the number of its items that are done, and the number of all."""

MOST_SENTENCES = 3
"""Differences that are shown of one kernel, which may differ in every trial."""


@dataclass(frozen=True)
class Verdict:
    """Whether the kernels of one node, usually one kernel, compute its meaning.

    error             largest relative error against NumPy, of any row in any trial; infinite: no number at all
    tolerance         the largest error that is right; `at` is the trial in which the error was largest
    decomposed_error  the same of the node taken apart into its ops; None: not fused, or for the reason in `note`
    between           largest relative error of the kernels against the decomposed form
    fused_us          median microseconds, and `decomposed_us` of the decomposed form; None where they were not timed
    in_cache          the operands were so small that they stayed in the L2 cache while they were timed
    wrong             a sentence for everything that is wrong
    """

    kernel: str
    block: str
    variant: str
    node: str
    ops: tuple[str, ...]
    rules: tuple[str, ...]
    edited: bool
    trials: int
    error: float
    tolerance: float
    at: str
    decomposed_kernels: int = 0
    decomposed_error: float | None = None
    between: float | None = None
    fused_us: float | None = None
    decomposed_us: float | None = None
    in_cache: bool = False
    note: str = ""
    wrong: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def speed_up(self) -> float | None:
        """The time of the decomposed form over that of the kernels."""
        if self.fused_us is None or self.decomposed_us is None or self.fused_us <= 0:
            return None
        return self.decomposed_us / self.fused_us


def verify_bundle(
    bundle: Bundle,
    bench: Bench,
    *,
    kernels: Collection[str] | None = None,
    block: str | None = None,
    variant: str | None = None,
    rule: str | None = None,
    timed: bool = True,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Try every kernel of a bundle, or those named, and take the fused ones apart to compare.

    Once a kernel has lost the GPU's context, the verdict on all that follow is that they could not be tried.
    Raises BundleError for a name that the bundle does not have or an architecture that the GPU is not.
    """
    check_arch(bundle, bench.device.facts.arch, bench.device.facts.name)
    units = select_units(bundle, kernels=kernels, block=block, variant=variant, rule=rule)
    apart = decomposed_programs(units, progress)
    bench.device.activate()
    verdicts: list[Verdict] = []
    lost = ""
    for done, unit in enumerate(units, 1):
        if lost:
            verdicts.append(_verdict(Checked(unit), [f"not tried: the GPU was lost by {lost}"]))
            continue
        try:
            verdicts.append(_verify(bench, unit, apart.get(str(unit), ""), timed=timed))
        except DeviceError as error:
            lost = str(unit)
            verdicts.append(_verdict(Checked(unit), [str(error)]))
        if progress:
            progress("verifying kernels", done, len(units))
    return verdicts


def select_units(
    bundle: Bundle,
    *,
    kernels: Collection[str] | None = None,
    block: str | None = None,
    variant: str | None = None,
    rule: str | None = None,
) -> list[Unit]:
    """The units of a bundle, or those with a kernel of these names, in a block, in a variant, made by a rule.

    With a variant, the units of a sampler serve the steps of that variant only.
    Raises BundleError, with similar names, for a name that the bundle does not have.
    """
    manifest = bundle.manifest
    variants = [each for of_block in manifest.blocks.values() for each in of_block.values()]
    every_kernel = [kernel for each in variants for kernel in each.kernels]
    _check_name(bundle, "block", block, manifest.blocks)
    _check_name(bundle, "variant", variant, variant_names(manifest))
    for name in kernels or ():
        _check_name(bundle, "kernel", name, {kernel.name for kernel in every_kernel})
    made_by = {name for kernel in every_kernel for name in kernel.rules}
    _check_name(bundle, "rule", rule, {*manifest.rules, *made_by, *(each.name for each in fusion.RULES)})

    def has_kernel(of: BlockVariant | Unit) -> bool:
        return kernels is None or any(kernel.name in kernels for kernel in of.kernels)

    units = [
        unit
        for each in variants
        if has_kernel(each) and block in (None, each.block) and each.serves(variant)
        for unit in units_of(bundle, each, variant)
        if has_kernel(unit) and (rule is None or rule in unit.rules)
    ]
    if not units and kernels is not None:
        raise BundleError(
            f"{bundle.folder}: has no kernel {', '.join(kernels)} in that block, variant and rule"
        )
    return units


def wrong_kernels(
    bundle: Bundle, bench: Bench, variant: str, kernels: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """The first difference from NumPy of each of `kernels`, block and name, that is wrong in a block variant.

    Nothing is taken apart or timed. Raises DeviceError when a kernel fails; the GPU's context is then lost.
    """
    bench.device.activate()
    wrong: dict[tuple[str, str], str] = {}
    for block in dict.fromkeys(block for block, _ in kernels):
        for unit in units_of(bundle, block_variant(bundle.manifest, block, variant)):
            names = [kernel.name for kernel in unit.kernels if (block, kernel.name) in kernels]
            sentences = check_unit(bench, unit).wrong if names else []
            wrong |= {(block, name): f"{unit} {sentences[0]}" for name in names if sentences}
    return wrong


def _check_name(bundle: Bundle, what: str, name: str | None, known: Collection[str]) -> None:
    if name is None or name in known:
        return
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.4) or sorted(known)
    raise BundleError(f"{bundle.folder}: has no {what} {name!r}; it has {', '.join(near) or 'none'}")


def _verify(bench: Bench, unit: Unit, apart: UnitProgram | str, *, timed: bool) -> Verdict:
    """The verdict on a unit. `apart`: its decomposed form, or a note on why it has none."""
    program, note = (apart, "") if isinstance(apart, UnitProgram) else (None, apart)
    checked = check_unit(bench, unit, program)
    wrong = [*_first(checked.wrong, ""), *_first(checked.wrong_apart, "taken apart, ")]
    verdict = replace(_verdict(checked, wrong), note=note)
    if program is None:
        return verdict
    verdict = replace(
        verdict,
        decomposed_kernels=len(program.variant.steps),
        decomposed_error=checked.decomposed_error,
        between=checked.between,
    )
    if not timed or checked.largest is None:
        return verdict
    trial = checked.largest
    times = [bench.time(Image(each, trial.facts, trial.operands)) for each in (unit.program, program)]
    fused_us, decomposed_us = (time.microseconds for time in times)
    in_cache = any(time.in_cache for time in times)
    return replace(verdict, fused_us=fused_us, decomposed_us=decomposed_us, in_cache=in_cache)


def _verdict(checked: Checked, wrong: Sequence[str]) -> Verdict:
    unit = checked.unit
    return Verdict(
        kernel=unit.name,
        block=unit.variant.block,
        variant=unit.variant.variant,
        node=unit.node.name,
        ops=unit.ops,
        rules=unit.rules,
        edited=unit.edited,
        trials=checked.trials,
        error=checked.error,
        tolerance=unit.tolerance,
        at=checked.at,
        wrong=tuple(wrong),
    )


def _first(sentences: Sequence[str], prefix: str) -> list[str]:
    """The first few sentences, and the number of the others."""
    more = len(sentences) - MOST_SENTENCES
    shown = [f"{prefix}{sentence}" for sentence in sentences[:MOST_SENTENCES]]
    return [*shown, *([f"{prefix}and {more} more differences"] if more > 0 else [])]
