"""The verdict on every kernel of a bundle, from what a GPU makes of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from infernum import fusion
from infernum.bundle import Bundle
from infernum.errors import BundleError, DeviceError
from infernum.lab.verify.bench import Bench, Time
from infernum.lab.verify.check import Checked, UnitFault, check_unit, image_of
from infernum.lab.verify.decompose import decomposed_programs
from infernum.lab.verify.units import Unit, UnitProgram, units_of
from infernum.manifest import BlockVariant, variant_names
from infernum.runtime.layout import check_arch

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

MOST_SENTENCES = 3
"""Differences told of one kernel; a broken one differs in every trial."""


@dataclass(frozen=True)
class Verdict:
    """What was found of the kernels that compute one node, usually one kernel.

    error             largest relative error against NumPy, of any row in any trial; infinite: no number at all
    tolerance         what it may be; `at` is the trial in which it was largest
    decomposed_error  the same of the node taken apart into its ops; None: not fused, or `note` says why
    between           largest relative error of the one against the other
    fused_us          median microseconds of both; None where nothing was taken apart
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
    wrong: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def speed_up(self) -> float | None:
        """How many times as long the decomposed form takes."""
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
            verdicts.append(_verdict(Checked(unit), (f"not tried: the GPU was lost by {lost}",)))
            continue
        try:
            verdicts.append(_verify(bench, unit, apart.get(str(unit), ""), timed=timed))
        except DeviceError as error:
            lost = str(unit)
            verdicts.append(_verdict(Checked(unit), (str(error),)))
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

    With a variant, those of a sampler serve the steps of that variant only.
    Raises BundleError, with names that are near, for a name that the bundle does not have.
    """
    manifest = bundle.manifest
    every = [found for variants in manifest.blocks.values() for found in variants.values()]
    _check_name(bundle, "block", block, manifest.blocks)
    _check_name(bundle, "variant", variant, variant_names(manifest))
    for name in kernels or ():
        _check_name(bundle, "kernel", name, {kernel.name for found in every for kernel in found.kernels})
    made_by = {rule for found in every for kernel in found.kernels for rule in kernel.rules}
    _check_name(bundle, "rule", rule, {*manifest.rules, *made_by, *(each.name for each in fusion.RULES)})

    def wanted(found: BlockVariant) -> bool:
        named = kernels is None or any(kernel.name in kernels for kernel in found.kernels)
        return named and block in (None, found.block) and found.serves(variant)

    units = [
        unit
        for found in every
        if wanted(found)
        for unit in units_of(bundle, found, variant)
        if (kernels is None or any(kernel.name in kernels for kernel in unit.kernels))
        and (rule is None or rule in unit.rules)
    ]
    if not units and kernels is not None:
        raise BundleError(
            f"{bundle.folder}: has no kernel {', '.join(kernels)} in that block, variant and rule"
        )
    return units


def _check_name(bundle: Bundle, what: str, name: str | None, known: Collection[str]) -> None:
    if name is None or name in known:
        return
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.4) or sorted(known)
    raise BundleError(f"{bundle.folder}: has no {what} {name!r}; it has {', '.join(near) or 'none'}")


def _verify(bench: Bench, unit: Unit, apart: UnitProgram | str, *, timed: bool) -> Verdict:
    program = apart if isinstance(apart, UnitProgram) else None
    checked = check_unit(bench, unit, program)
    times: tuple[Time, Time] | None = None
    if timed and program is not None and checked.largest is not None:
        fused, split = (bench.time(image_of(each, checked.largest)) for each in (unit.program, program))
        times = fused, split
    return _verdict(checked, (), apart, times)


def _verdict(
    checked: Checked,
    failed: Sequence[str],
    apart: UnitProgram | str = "",
    times: tuple[Time, Time] | None = None,
) -> Verdict:
    unit = checked.unit
    wrong = [*failed, *_told(checked.wrong, ""), *_told(checked.wrong_apart, "taken apart, ")]
    program = apart if isinstance(apart, UnitProgram) else None
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
        decomposed_kernels=len(program.variant.steps) if program else 0,
        decomposed_error=checked.decomposed_error if program else None,
        between=checked.between if program else None,
        fused_us=times[0].microseconds if times else None,
        decomposed_us=times[1].microseconds if times else None,
        in_cache=times is not None and any(time.in_cache for time in times),
        note=apart if isinstance(apart, str) else "",
        wrong=tuple(wrong),
    )


def _told(found: Sequence[UnitFault], where: str) -> list[str]:
    """A sentence for each of the first few differences, and how many more there are."""
    more = len(found) - MOST_SENTENCES
    sentences = [f"{where}at {difference.at}: {difference.what}" for difference in found[:MOST_SENTENCES]]
    return [*sentences, *([f"{where}and {more} more differences"] if more > 0 else [])]
