"""Runs the kernels of a bundle on a GPU, and gives a verdict on each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace

from infernum import fusion
from infernum.bundle import Bundle
from infernum.compiler import Progress
from infernum.errors import BundleError, DeviceError
from infernum.lab.verify.bench import Bench
from infernum.lab.verify.check import Verdict, check_unit
from infernum.lab.verify.decompose import decomposed_programs
from infernum.lab.verify.units import Unit, units_of
from infernum.manifest import BlockVariant, variant_names
from infernum.runtime.layout import block_variant, check_arch


def verify_units(
    bundle: Bundle,
    bench: Bench,
    units: Sequence[Unit],
    *,
    timed: bool = True,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Try the kernels of units of a bundle, and take the fused ones apart to compare.

    Once a kernel has lost the GPU's context, the verdict on all that follow is that they could not be tried.
    Raises BundleError for an architecture that the GPU is not.
    """
    check_arch(bundle, bench.device.facts.arch, bench.device.facts.name)
    apart = decomposed_programs(units, progress)
    bench.device.activate()
    verdicts: list[Verdict] = []
    lost = ""
    for done, unit in enumerate(units, 1):
        if lost:
            verdicts.append(Verdict.of(unit, f"not tried: the GPU was lost by {lost}"))
            continue
        form = apart.get(str(unit), "")
        decomposed, note = (None, form) if isinstance(form, str) else (form, "")
        try:
            verdicts.append(replace(check_unit(bench, unit, decomposed, timed=timed), note=note))
        except DeviceError as error:
            lost = str(unit)
            verdicts.append(Verdict.of(unit, str(error)))
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
