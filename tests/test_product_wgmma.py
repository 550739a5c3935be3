"""How products of tens of tokens are laid out on Hopper: tiles, clusters, and what the kernel refuses."""

import pytest

from infernum.dtypes import BF16, F32, DType
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Epilogue, Layout, Refusal, Target
from infernum.ops.product_wgmma import PRODUCT_WGMMA
from infernum.roofline import GPUS


def target(arch: int = 90, most: int = 64) -> Target:
    return Target(arch, "t64", 9, most, BF16)


def product(columns: int, width: int, *, parts: int = 1, dtype: DType = BF16) -> Call:
    """A product of `parts` times so many columns; of several parts, one that an epilogue combines."""
    x, weight = TensorType(("tokens", width), dtype), TensorType((parts * columns, width), dtype)
    result = TensorType(("tokens", parts * columns), dtype)
    combined = Epilogue(("mul",), parts, (), TensorType(("tokens", columns), dtype))
    return Call(
        "linear", {"x": x, "weight": weight}, {"out": result}, {}, epilogue=combined if parts > 1 else None
    )


SHAPES = [
    product(6144, 4096),
    product(4096, 4096),
    product(14336, 4096, parts=2),
    product(4096, 14336),
    product(3072, 2048),
    product(8192, 2048, parts=2),
    product(2048, 8192),
    product(64, 64),
    product(96, 192, parts=3),
    product(8, 128),
]


@pytest.mark.parametrize("most", [64, 128])
@pytest.mark.parametrize("call", SHAPES, ids=lambda call: f"{call.columns}x{call.operands['weight'].width}")
def test_every_layout_covers_all_columns_and_fits_on_an_sm(call: Call, most: int) -> None:
    gpu = GPUS[90]
    parts = call.epilogue.parts if call.epilogue else 1
    layouts = [each for each in PRODUCT_WGMMA.layouts(call, target(most=most)) if isinstance(each, Layout)]
    assert layouts
    for layout in layouts:
        constants = layout.constants | layout.parameters
        assert constants["TILE"] % 8 == 0 and constants["TILE"] * parts <= 256
        assert constants["TILE"] <= call.columns <= constants["TILE"] * constants["BLOCKS"]
        assert constants["SPLIT"] <= call.operands["weight"].width // 64
        assert constants["SHARED"] <= gpu.shared_per_sm - gpu.shared_reserved


def test_few_columns_are_shared_by_clusters_and_many_are_not() -> None:
    def split(call: Call) -> int:
        layout = PRODUCT_WGMMA.plan(call, target())
        assert isinstance(layout, Layout)
        return layout.parameters["SPLIT"]

    assert split(product(14336, 4096, parts=2)) == 1
    assert split(product(4096, 4096)) == split(product(4096, 14336)) == 4
    assert split(product(64, 64)) == 1, "a single panel cannot be shared"


@pytest.mark.parametrize(
    ("call", "of", "reason"),
    [
        (product(4096, 4096), target(arch=80), "Hopper"),
        (product(4096, 4096), target(most=256), "a block serves 128 tokens, the variant t64 up to 256"),
        (product(4096, 4096, dtype=F32), target(), "not f32"),
        (product(4096, 4000), target(), "rows of 4000 are not whole panels of 64 columns"),
        (product(4092, 4096), target(), "4092 columns are not whole octets"),
        (product(128256, 4096), target(), "128256 columns are more than two blocks to an SM multiply"),
    ],
    ids=["architecture", "tokens", "type", "width", "columns", "too many columns"],
)
def test_what_the_kernel_cannot_serve_is_refused_with_the_reason(call: Call, of: Target, reason: str) -> None:
    refusal = PRODUCT_WGMMA.plan(call, of)
    assert isinstance(refusal, Refusal) and reason in refusal.reason
