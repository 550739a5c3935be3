"""The cases for compute-sanitizer: they have a bundle each, and together they launch every kernel of attention."""

from __future__ import annotations

from pathlib import Path

from conftest import graphs_only
from gpu.recipes import Bundles
from gpu.sanitize import TINY, recipe_of, with_long_context

from infernum.compiler import Options
from infernum.fusion import RULES
from infernum.ir.kernel import KernelSpec, Template
from infernum.ir.op import OPS
from infernum.ir.rewrite import Fusion

ATTENTION = ("attention", "append", "rope", "rope_by_length")
FUSIONS = ("attend", "rope_append")


def templates_of_attention() -> set[str]:
    """The names of the templates of attention, of what writes its cache, and of the kernels behind them."""
    ops = [OPS[name].lowering for name in ATTENTION]
    specs: list[KernelSpec] = [spec for lowering in ops if isinstance(lowering, tuple) for spec in lowering]
    for rule in RULES:
        if isinstance(rule, Fusion) and rule.name in FUSIONS:
            specs += rule.kernels
    names: set[str] = set()
    for spec in specs:
        kernel: KernelSpec | None = spec
        while isinstance(kernel, Template):
            names.add(kernel.name)
            kernel = kernel.next_kernel
    return names


def test_the_tiny_models_launch_every_kernel_of_attention(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path, "sm_90a")
    launched: set[str] = set()
    for name in TINY:
        recipe = recipe_of(name)
        options = Options(arch="sm_90a", dtype=recipe.dtype, fuse=recipe.fuse)
        bundle = graphs_only(with_long_context(bundles.source(recipe.model)), options, tmp_path / name)
        for stage in bundle.manifest.program:
            variants = bundle.manifest.blocks[stage.block].values()
            launched |= {kernel.template for variant in variants for kernel in variant.kernels}
    bundles.close()
    assert len(templates_of_attention()) >= 8
    assert templates_of_attention() - launched == set()
