"""Whether single kernels of a block variant, by name, compute what they should; nothing is taken apart or timed."""

from __future__ import annotations

from collections.abc import Collection

from infernum.bundle import Bundle
from infernum.lab.verify.bench import Bench
from infernum.lab.verify.check import check_unit
from infernum.lab.verify.units import units_of
from infernum.runtime.layout import block_variant


def wrong_kernels(
    bundle: Bundle, bench: Bench, variant: str, kernels: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Those of `kernels`, block and name each, that differ from NumPy in some trial, and the first difference.

    Raises DeviceError when a kernel fails; the GPU's context is then lost.
    """
    bench.device.activate()
    wrong: dict[tuple[str, str], str] = {}
    for block in dict.fromkeys(block for block, _ in kernels):
        for unit in units_of(bundle, block_variant(bundle.manifest, block, variant)):
            names = [k.name for k in unit.kernels if (block, k.name) in kernels]
            found = check_unit(bench, unit).wrong if names else []
            wrong |= {(block, name): str(found[0]) for name in names if found}
    return wrong
