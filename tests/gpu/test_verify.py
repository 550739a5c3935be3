"""`verify` on a GPU: kernels that were broken on purpose are found and named, and all others pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from breakages import BREAKAGES, Breakage, broken_bundles

from gpu.recipes import Bundles, Recipe
from infernum.bundle import Bundle
from infernum.ir.op import Fused
from infernum.lab.verify.bench import Bench
from infernum.lab.verify.verdict import select_units, verify_units

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DANTE = Recipe("dante", "bfloat16", True)


@pytest.fixture
def broken(breakage: Breakage, bundles: Bundles, tmp_path: Path) -> Bundle:
    """The demo model's bundle with a mistake."""
    return broken_bundles(bundles.get(DANTE), [breakage], tmp_path)[breakage.name]


@pytest.mark.parametrize("recipe", [DANTE], ids=str)
def test_every_kernel_passes_and_every_fused_one_is_taken_apart(
    recipe: Recipe, bundles: Bundles, bench: Bench
) -> None:
    bundle = bundles.get(recipe)
    units = select_units(bundle)
    verdicts = verify_units(bundle, bench, units)
    bench.forget_modules()
    wrong = [f"{v.block}.{v.variant} {v.kernel}: {what}" for v in verdicts for what in v.wrong]
    assert not wrong, "\n".join(wrong)
    fused = {str(unit) for unit in units if isinstance(unit.node.op, Fused)}
    apart = [verdict for verdict in verdicts if verdict.decomposed_error is not None]
    assert len(apart) == len(fused) > 0
    for verdict in apart:
        assert not verdict.note
        assert verdict.speed_up is not None and verdict.speed_up > 0.2, f"{verdict.kernel}: {verdict}"


@pytest.mark.parametrize("breakage", BREAKAGES, ids=str)
def test_a_broken_kernel_is_found_and_named_and_the_others_pass(
    breakage: Breakage, broken: Bundle, bench: Bench
) -> None:
    units = select_units(broken, block=breakage.block, variant=breakage.variant)
    verdicts = verify_units(broken, bench, units, timed=False)
    bench.forget_modules()
    wrong = {verdict.kernel: verdict.wrong for verdict in verdicts if not verdict.ok}
    assert [kernel for kernel in wrong if breakage.kernel in kernel.split(" + ")], (
        f"not found; wrong are {wrong}"
    )
    assert len(wrong) == 1, f"others are called wrong too: {wrong}"


@pytest.mark.parametrize("breakage", [b for b in BREAKAGES if b.name == "residual not added"], ids=str)
def test_the_command_line_says_which_kernel_is_wrong(
    breakage: Breakage, broken: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from infernum.cli import run

    assert breakage.kernel == "gemv_mma_down_proj"
    assert run(["verify", str(broken.folder), "--kernel", "gemv_mma_down_proj", "--variant", "t8"]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said and "decoder.t8 gemv_mma_down_proj is wrong: at " in said
