"""The emitted kernels of the samplers, compiled for the host, against their NumPy meaning: no GPU needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from breakages import BREAKAGES, Breakage
from host_bench import COMPILER, HostBench

from infernum.bundle import Bundle
from infernum.lab.verify.check import check_unit
from infernum.lab.verify.units import units_of
from infernum.manifest import ANY

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def wrong_kernels(
    bundle: Bundle, block: str, serving: str, source: str, folder: Path
) -> dict[str, list[str]]:
    """What is wrong with each unit of a sampler, in steps of one variant, when its kernels are those of `source`."""
    bench = HostBench(source, folder)
    try:
        return {
            " + ".join(kernel.name for kernel in unit.kernels): found.wrong
            for unit in units_of(bundle, bundle.manifest.blocks[block][ANY], serving)
            for found in [check_unit(bench, unit)]
        }
    finally:
        bench.close()


@pytest.mark.parametrize("serving", ["t1", "t8"])
@pytest.mark.parametrize("block", ["greedy", "sample", "logprobs"])
def test_every_kernel_of_a_sampler_computes_what_its_node_means(
    dante_bundle: Bundle, block: str, serving: str, tmp_path: Path
) -> None:
    source = (dante_bundle.folder / f"{block}.{ANY}.cu").read_text(encoding="utf-8")
    found = wrong_kernels(dante_bundle, block, serving, source, tmp_path)
    assert len(found) >= (1 if block == "logprobs" else 2)
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "breakage", [b for b in BREAKAGES if b.block in ("greedy", "sample", "logprobs")], ids=str
)
def test_a_broken_kernel_of_a_sampler_is_found_and_the_others_pass(
    dante_bundle: Bundle, breakage: Breakage, tmp_path: Path
) -> None:
    source = (dante_bundle.folder / breakage.file).read_text(encoding="utf-8")
    assert breakage.old in source
    broken = source.replace(breakage.old, breakage.new)
    found = wrong_kernels(dante_bundle, breakage.block, "t8", broken, tmp_path)
    assert [breakage.kernel in kernels.split(" + ") for kernels, wrong in found.items() if wrong] == [True]
