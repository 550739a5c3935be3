"""The matrix product: a GEMV of our own for a few tokens, cuBLASLt for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from infernum.dtypes import dtype as dtype_named
from infernum.errors import DTypeError, ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Library, Refusal, Target, Template, alternatives
from infernum.ir.op import op
from infernum.ops.pointwise import add
from infernum.ops.product_wgmma import PRODUCT_WGMMA
from infernum.ops.ranks import sum_ranks
from infernum.roofline import GPUS

if TYPE_CHECKING:
    from infernum.ir.block import Shard, Tensor, Weights

GEMV_TOKENS = 8
"""Most tokens of a GEMV: the columns of an mma, and what registers hold sums for without one."""

STAGED_LIMIT = 96 * 1024
"""Bytes of activations that a GEMV keeps in shared memory. More are read in place, or travel with the weights."""

_BLAS_PANEL = 1 << 19
"""Elements of the weights in one BLAS call of the NumPy meaning: 2 MiB, which stay in cache from row to row of x."""

_PANEL = 64
"""Columns of the weights that a warp of the GEMV takes at once; with 16 rows of them, 2 KiB."""


def _type(x: TensorType, weight: TensorType, *, out: str) -> tuple[TensorType, ...]:
    if len(x.shape) != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1]:
        raise ShapeError(f"linear: x is {x} and weight {weight}; the last dims must agree")
    if x.dtype is not weight.dtype or not x.dtype.is_float:
        raise DTypeError(f"linear: x is {x} and weight {weight}; the dtypes must agree, use cast")
    return (TensorType((x.shape[0], weight.shape[0]), dtype_named(out) if out else x.dtype),)


def _too_many_tokens(target: Target) -> Refusal | None:
    if target.max_tokens <= GEMV_TOKENS:
        return None
    return Refusal(
        f"a GEMV serves at most {GEMV_TOKENS} tokens, the variant {target.variant} up to {target.max_tokens}"
    )


def _unfit_parts(call: Call) -> Refusal | None:
    """A GEMV sums one row of weights, or two that lie half of all rows apart, for each output."""
    if call.epilogue is None or call.epilogue.parts <= 2:
        return None
    return Refusal(f"its epilogue combines {call.epilogue.parts} ranges of columns, and a GEMV at most 2")


def _token_slots(target: Target) -> int:
    """Rows of activations that a GEMV keeps: one, or all 8 columns of an mma."""
    return 1 if target.max_tokens == 1 else GEMV_TOKENS


def _staged_bytes(call: Call, target: Target) -> int:
    """Shared memory for the activations; 0 where they travel with the weights."""
    rows = _token_slots(target)
    needed = rows * call.operands["weight"].width * 2
    return needed + rows * 64 if needed <= STAGED_LIMIT else 0


def _ring_bytes(call: Call, target: Target, values: Mapping[str, int]) -> int:
    panel = 2048 if _staged_bytes(call, target) else 3072
    return values["THREADS"] // 32 * values["DEPTH"] * panel


def _does_not_fit(call: Call, target: Target, values: Mapping[str, int]) -> Refusal | None:
    """Why a block has no room on an SM of the architecture."""
    gpu = GPUS[target.arch]
    sums = values["THREADS"] // 32 * (2 * _token_slots(target) * 16 + 1) * 4
    needed = _ring_bytes(call, target, values) + _staged_bytes(call, target) + sums
    most = gpu.shared_per_sm - gpu.shared_reserved
    if needed <= most:
        return None
    return Refusal(f"{needed} bytes of shared memory a block are more than the {most} there are")


def _mma_default(call: Call, target: Target) -> dict[str, int]:
    """The first that fits of what was fastest on an H200, by the panels of a block: of a warp, where 8 share a row.

    For one token, a block of few panels has a ring for one more than those, and so leaves room for the next kernel
    beside it; for no less, since an SM that had room for two blocks of it would leave another without. One of twice
    as many has a ring of 64 KiB, which fits beside that of the product before it and is filled while that one ends.
    Where rows are long, and with more tokens, more warps with shallower rings.
    """
    weight = call.operands["weight"]
    rows = -(-int(weight.shape[0]) // GPUS[target.arch].sms)
    panels = -(-rows // 16) * -(-weight.width // _PANEL // 8)
    preferred = [(256, 4, 1), (256, 2, 1)]  # threads, panels in a ring, those left empty ahead of the wait
    if target.max_tokens > 1:
        preferred = [(256, 6, 2), (256, 3, 1), (256, 2, 1)]
        if panels > 4 and 1024 <= weight.width < 8192:
            preferred.insert(0, (512, 2, 1) if panels <= 8 else (512, 3, 2) if panels <= 128 else (512, 4, 2))
    elif weight.width >= 8192:
        preferred.insert(0, (512, 4, 1))
    elif panels <= 4:
        preferred.insert(0, (256, panels + 1, 0))
    elif panels <= 8:
        preferred.insert(0, (512, 2, 0) if weight.width >= 1024 else (256, 4, 0))
    else:
        preferred.insert(0, (256, 8, 0) if weight.width <= 2048 else (256, 8, 2))
    layouts: list[dict[str, int]] = [{"THREADS": t, "DEPTH": d, "EMPTY": e} for t, d, e in preferred]
    return next((each for each in layouts if _does_not_fit(call, target, each) is None), layouts[-1])


def _mma_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Threads of a block, panels in a warp's ring, and how many of them are left empty ahead of the wait."""
    weight = call.operands["weight"]
    if weight.dtype.bytes != 2:
        yield Refusal(f"tensor cores multiply bf16 and f16 here, not {weight.dtype}")
        return
    if weight.width % _PANEL:
        yield Refusal(f"rows of {weight.width} are not whole panels of {_PANEL} columns")
        return
    rows, staged = _token_slots(target), _staged_bytes(call, target)
    if call.prologues and not staged:
        needed = rows * weight.width * 2 // 1024
        yield Refusal(
            f"{rows} normalised rows of {weight.width} need {needed} KiB of shared memory, over "
            f"{STAGED_LIMIT // 1024} KiB: room for {STAGED_LIMIT // (weight.width * 2)}"
        )
        return
    default = _mma_default(call, target)
    refusal = _too_many_tokens(target) or _unfit_parts(call) or _does_not_fit(call, target, default)
    if refusal:
        yield refusal
        return
    for values in (default, *alternatives(THREADS=(512, 256), DEPTH=(2, 3, 4, 5, 6, 7, 8), EMPTY=(0, 1, 2))):
        if values["EMPTY"] >= values["DEPTH"]:
            yield Refusal(f"{values['EMPTY']} of {values['DEPTH']} panels empty leave nothing to begin with")
            continue
        constants = {
            "WIDTH": weight.width,
            "COLUMNS": call.columns,
            "VECTOR": 8,
            "TOKENS": rows,
            "STAGED": bool(staged),
            "PREFILL": values["DEPTH"] - values["EMPTY"],
            "SHARED": _ring_bytes(call, target, values) + staged,
        }
        yield _does_not_fit(call, target, values) or Layout(constants, values)


def _gemv_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """One token: all threads of an SM in one block, and two tiles of four 16-byte loads in flight in each.

    Measured on an H200 against 1 to 8 blocks of 128 to 512 threads and 2 to 16 loads; more tokens need registers for
    their sums.
    """
    weight = call.operands["weight"]
    staged = target.max_tokens * weight.width * weight.dtype.bytes
    refusal = _too_many_tokens(target) or _unfit_parts(call)
    if call.prologues and staged > STAGED_LIMIT:
        refusal = Refusal(
            f"{target.max_tokens} normalised rows of {weight.width} need {staged // 1024} KiB of shared memory, over "
            f"{STAGED_LIMIT // 1024} KiB: room for {STAGED_LIMIT // (weight.width * weight.dtype.bytes)}"
        )
    if refusal:
        yield refusal
        return
    if target.max_tokens == 1:
        every = alternatives(THREADS=(512, 384, 256), LOADS=(4, 8), BLOCKS_PER_SM=(1, 2))
    else:
        every = alternatives(THREADS=(256, 512, 128), LOADS=(4, 2), BLOCKS_PER_SM=(2, 1))
    constants = {
        "WIDTH": weight.width,
        "COLUMNS": call.columns,
        "VECTOR": next(v for v in (16 // weight.dtype.bytes, 4, 2, 1) if weight.width % v == 0),
        "TOKENS": target.max_tokens,
        "SHARED": staged if staged <= STAGED_LIMIT else 0,
    }
    for values in every:
        if values["THREADS"] * values["BLOCKS_PER_SM"] > 512:
            yield Refusal(
                f"{values['BLOCKS_PER_SM']} blocks of {values['THREADS']} threads have too few registers"
            )
            continue
        yield Layout({**constants, "WARPS": values["THREADS"] // 32}, values)


def _product(x: np.ndarray, weight: np.ndarray, *, out: str = "") -> np.ndarray:
    """x · weightᵀ in one BLAS call, which reads the weights once for all rows."""
    del out
    return x @ weight.T


@op(
    infer=_type,
    batched=_product,
    kernels=[
        Template(
            "gemv_mma",
            grid=("min(ceildiv(COLUMNS, 8), sms)", 1, 1),
            threads="THREADS",
            shared_bytes="SHARED",
            layouts=_mma_layouts,
            includes=(
                "numeric.cuh",
                "reduce.cuh",
                "programmatic.cuh",
                "mma.cuh",
                "copy_groups.cuh",
                "weight_stream.cuh",
            ),
            row_ops={"x": ("norm",)},
            epilogue=True,
        ),
        Template(
            "gemv",
            grid=("min(ceildiv(COLUMNS, WARPS), BLOCKS_PER_SM * sms)", 1, 1),
            threads="THREADS",
            shared_bytes="SHARED",
            layouts=_gemv_layouts,
            includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh", "dot.cuh"),
            row_ops={"x": ("norm",)},
            epilogue=True,
        ),
        PRODUCT_WGMMA,
        Library(),
    ],
    flops=lambda call: (
        f"{2 * call.operands['weight'].width * int(call.operands['weight'].shape[0])} * tokens"
    ),
)
def linear(x: np.ndarray, weight: np.ndarray, *, out: str = "") -> np.ndarray:
    """x · weightᵀ, accumulated in float32.

    x [tokens, k], weight [n, k] -> [tokens, n]; `out` names another dtype for the result than that of x.

    Row-invariant: the bits of a row's result depend on that row of x alone. BLAS gets one row of x and the same range
    of the weights in every call, because the order of its sums depends on the number of rows.
    """
    del out
    tokens, k = x.shape
    step = max(1, _BLAS_PANEL // k)
    products = np.empty((tokens, 1, len(weight)), np.float32)
    for first in range(0, len(weight), step):
        panel = slice(first, first + step)
        np.matmul(x[:, None], weight[panel].T, out=products[:, :, panel])
    return products[:, 0]


def dense(
    x: Tensor,
    w: Weights,
    name: str,
    rows: int,
    *,
    bias: bool = False,
    shard: Shard | None = None,
    heads: int = 0,
) -> Tensor:
    """A linear layer as checkpoints name it: `{name}.weight` [rows, k], and `{name}.bias` [rows] where there is one.

    shard  "rows": each rank computes its part of the results; they are `heads` heads, where these must not be cut.
           "columns": x is the rank's part of the operands, and the ranks' sums are added up; the result is whole.
           None: each rank computes the whole product
    """
    width = x.shape[-1]
    assert isinstance(width, int), "a linear layer contracts a static dim"
    if shard != "columns" or w.ranks == 1:
        product = linear(x, w.tensor(f"{name}.weight", rows, width, shard=shard, heads=heads))
        return add(product, w.tensor(f"{name}.bias", rows, shard=shard, heads=heads)) if bias else product
    weight = w.tensor(f"{name}.weight", rows, width * w.ranks, shard=shard)
    total = sum_ranks(linear(x, weight, out="f32"), ranks=w.ranks, out=x.dtype.name)
    return add(total, w.tensor(f"{name}.bias", rows)) if bias else total
