"""The matrix product: a GEMV of our own for a few tokens, cuBLASLt for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from infernum.dtypes import dtype as dtype_named
from infernum.errors import DTypeError, ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Library, Target, Template
from infernum.ir.op import op
from infernum.ops.pointwise import add

if TYPE_CHECKING:
    from infernum.ir.block import Tensor, Weights

GEMV_TOKENS = 8
"""Largest number of tokens the GEMV template holds accumulators for."""

STAGED_LIMIT = 96 * 1024
"""Bytes of activations that a GEMV keeps in shared memory, so that two blocks fit on an SM; more are read in place."""


def _type(x: TensorType, weight: TensorType, *, out: str) -> tuple[TensorType, ...]:
    if len(x.shape) != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1]:
        raise ShapeError(f"linear: x is {x} and weight {weight}; the last dims must agree")
    if x.dtype is not weight.dtype or not x.dtype.is_float:
        raise DTypeError(f"linear: x is {x} and weight {weight}; the dtypes must agree, use cast")
    return (TensorType((x.shape[0], weight.shape[0]), dtype_named(out) if out else x.dtype),)


def _gemv_serves(call: Call, target: Target) -> str | None:
    if target.max_tokens > GEMV_TOKENS:
        return f"a GEMV serves at most {GEMV_TOKENS} tokens, the variant {target.variant} up to {target.max_tokens}"
    return None


def _gemv_constants(call: Call, target: Target) -> Mapping[str, Any]:
    weight = call.operands["weight"]
    width = weight.width
    vector = next(v for v in (16 // weight.dtype.bytes, 4, 2, 1) if width % v == 0)
    staged = target.max_tokens * width * weight.dtype.bytes
    # One token: all threads of an SM in one block, and two tiles of four 16-byte loads in flight in each. Measured on
    # an H200 against 1 to 8 blocks of 128 to 512 threads and 2 to 16 loads; more tokens need registers for their sums.
    threads, loads, blocks = (512, 4, 1) if target.max_tokens == 1 else (256, 4, 2)
    return {
        "WIDTH": width,
        "VECTOR": vector,
        "TOKENS": target.max_tokens,
        "THREADS": threads,
        "WARPS": threads // 32,
        "LOADS": loads,
        "BLOCKS_PER_SM": blocks,
        "SHARED": staged if staged <= STAGED_LIMIT else 0,
    }


@op(
    infer=_type,
    kernels=[
        Template(
            "gemv",
            grid=("min(ceildiv(COLUMNS, WARPS), BLOCKS_PER_SM * sms)", 1, 1),
            block="THREADS",
            shared_bytes="SHARED",
            when=_gemv_serves,
            constants=_gemv_constants,
            includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh", "dot.cuh"),
            prologue="x",
            epilogue=True,
        ),
        Library(),
    ],
    flops=lambda call: (
        f"{2 * call.operands['weight'].width * int(call.operands['weight'].shape[0])} * tokens"
    ),
)
def linear(x: np.ndarray, weight: np.ndarray, *, out: str = "") -> np.ndarray:
    """x · weightᵀ, accumulated in float32.

    x [tokens, k], weight [n, k] -> [tokens, n]; `out` names another dtype for the result than that of x.
    """
    del out
    return x @ weight.T


def dense(x: Tensor, w: Weights, name: str, rows: int, *, bias: bool = False) -> Tensor:
    """A linear layer as checkpoints name it: `{name}.weight` [rows, k], and `{name}.bias` [rows] where there is one."""
    width = x.shape[-1]
    assert isinstance(width, int), "a linear layer contracts a static dim"
    product = linear(x, w.tensor(f"{name}.weight", rows, width))
    return add(product, w.tensor(f"{name}.bias", rows)) if bias else product
