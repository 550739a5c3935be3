"""Every kernel of many bundles against the NumPy meaning of its node, on ragged batches and nasty values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu.recipes import Bundles, Recipe, grouped
from infernum.bundle import Bundle
from infernum.errors import InfernumError
from infernum.fusion import RULES
from infernum.ir.kernel import Template
from infernum.ir.op import OPS
from infernum.ir.rewrite import Fusion
from infernum.lab.verify.bench import Bench
from infernum.lab.verify.check import check_unit
from infernum.lab.verify.facts import Chunks
from infernum.lab.verify.units import Unit, units_of
from infernum.runtime.layout import block_variant

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

BF16, F16, F32 = "bfloat16", "float16", "float32"

RECIPES = [
    Recipe("llama_layer", BF16, True),  # first, since they take longest
    Recipe("llama_layer", BF16, False),
    Recipe("llama_layer", F32, True),
    Recipe("dante", BF16, True),
    Recipe("dante", BF16, False),
    Recipe("all_biases", BF16, True),
    Recipe("all_biases", F32, True),
    Recipe("fourteen_to_two", BF16, True),
    Recipe("fourteen_to_two", F32, False),
    Recipe("head_80", F16, True),
    Recipe("head_80", BF16, False),
    Recipe("head_128_tied", BF16, True),
    Recipe("head_128_tied", F32, False),
    Recipe("odd", BF16, True),
    Recipe("odd", F32, True),
    Recipe("odd", F16, False),
    Recipe("seven_to_one", F16, True),
    *(Recipe(f"heads_{heads}_2_{dim}", BF16, True) for heads in (2, 8, 16) for dim in (64, 128)),
    Recipe("heads_64_64_16", BF16, True),
    *(Recipe(f"window_100_{dim}", BF16, True) for dim in (64, 128, 256)),
    Recipe("window_5_64", BF16, True),
    Recipe("window_5000_128", BF16, True),
    Recipe("window_5_80", F16, True),
    *(Recipe(f"{gemma}_{dim}", BF16, True) for gemma in ("gemma2", "gemma3_text") for dim in (64, 128, 256)),
    Recipe("gemma2_256", F32, True),
    Recipe("gemma3_text_256", F32, False),
    Recipe("gemma3_text_128", F16, True),
    Recipe("window_100_256", F32, True),
    Recipe("window_100_80", F32, False),
    Recipe("gemma2_types", F16, False),
    Recipe("gemma_untied", F16, True),
    Recipe("composed_normed", BF16, True),
    Recipe("composed_normed", F16, False),
    Recipe("composed_normed", F32, True),
    Recipe("composed_unturned", BF16, True),
    Recipe("composed_unturned", F32, True),
    Recipe("composed_geglu", BF16, True),
    Recipe("composed_geglu", F32, True),
    *(Recipe(f"composed_neighbours_{dim}", BF16, True) for dim in (80, 96, 256)),
    *(Recipe(f"composed_position_{dim}", BF16, True) for dim in (64, 80, 256)),
    Recipe("composed_neighbours_96", F32, True),
    Recipe("composed_neighbours_80", F16, False),
    Recipe("composed_position_64", F32, False),
    Recipe("composed_long_96", BF16, True),
    Recipe("composed_long_96", F32, True),
    Recipe("composed_long_96", F16, False),
]
"""Groups of 1, 2, 4, 7 and 8 query heads; heads of 16 to 256; windows; biases nowhere, somewhere, everywhere; norms
of queries and keys, no turn, and a GeGLU between norms of a plugin; Gemma's norms with a sum behind them, and caps;
turns of parts of heads, of neighbours, by position and by the lengths of sequences."""

VARIANTS = ("t1", "t8", "t64", "d128", "decode", "prefill")

ONE_OF_MANY: dict[str, Chunks] = {
    "t1": ((211, 1),),
    "t8": ((211, 3), (64, 1), (0, 1)),
    "t64": ((211, 1), (64, 17), (0, 1), (130, 13), (63, 1)),
    "d128": tuple((start, 1) for start in (211, 64, 0, 130, 63) * 13),
    "decode": tuple((start, 1) for start in (211, 64, 0, 130, 63) * 26),
    "prefill": ((211, 131), (64, 1), (0, 66), (130, 1)),
}
"""For the large layer, whose references take NumPy a while."""


SAMPLED = ("dante", "odd", "llama_layer", "head_80")
"""Models whose samplers are checked: these see rows of logits, and know of a model only its vocabulary."""


def units(recipe: Recipe, bundle: Bundle, variant: str) -> Iterator[Unit]:
    """Every unit of every block for the steps of one variant; of the samplers where the model is one of `SAMPLED`."""
    for block in bundle.manifest.blocks:
        if block in bundle.manifest.samplers and recipe.model not in SAMPLED:
            continue
        yield from units_of(bundle, block_variant(bundle.manifest, block, variant), variant)


def check(bench: Bench, unit: Unit, step: Chunks | None) -> Iterator[str]:
    """What is wrong with a unit, in one step or in all. Nothing more is launched after an error of the GPU."""
    try:
        wrong = check_unit(bench, unit, steps=None if step is None else [step]).wrong
        yield from (f"{unit} {sentence}" for sentence in wrong)
    except InfernumError as error:
        yield f"{unit}: {type(error).__name__}: {error}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", grouped(RECIPES))
def test_every_kernel_computes_what_its_node_means(
    recipe: Recipe, variant: str, bundles: Bundles, bench: Bench
) -> None:
    step = ONE_OF_MANY[variant] if recipe.model == "llama_layer" else None
    bench.device.activate()
    bundle = bundles.get(recipe)
    wrong = [what for unit in units(recipe, bundle, variant) for what in check(bench, unit, step)]
    try:
        assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(wrong)
    finally:
        bench.forget_modules()  # which fails after an error of the GPU: what was wrong is told first


ONE_PROCESS = pytest.mark.xdist_group("coverage")
"""For tests that read the bundles of all recipes."""


@ONE_PROCESS
def test_every_op_and_rule_with_a_kernel_is_among_what_is_checked(bundles: Bundles) -> None:
    checked = [
        unit
        for recipe in RECIPES
        for variant in VARIANTS
        for unit in units(recipe, bundles.get(recipe), variant)
    ]
    ops_with_kernels = {
        name: op.lowering for name, op in OPS.items() if isinstance(op.lowering, tuple) and op.lowering
    }
    of_rules = {rule.name: rule.kernels for rule in RULES if isinstance(rule, Fusion) and rule.kernels}
    assert {op for unit in checked for op in unit.ops} >= set(ops_with_kernels)
    assert {rule for unit in checked for rule in unit.rules} >= set(of_rules)

    templates = {"pointwise"}
    for kernels in (*ops_with_kernels.values(), *of_rules.values()):
        for spec in kernels:
            while isinstance(spec, Template):
                templates.add(spec.name)
                spec = spec.next_kernel
    assert {kernel.template for unit in checked for kernel in unit.kernels} >= templates


@ONE_PROCESS
def test_every_rule_has_made_some_kernel_that_is_checked(bundles: Bundles) -> None:
    fired: set[str] = set()
    for recipe in RECIPES:
        for variants in bundles.get(recipe).manifest.blocks.values():
            fired |= {rule for v in variants.values() for rule, count in v.fired.items() if count}
    assert {rule.name for rule in RULES} <= fired
