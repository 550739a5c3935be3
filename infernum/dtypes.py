"""The table of element types: their NumPy and CUDA names, sizes and tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from infernum.errors import DTypeError


@dataclass(frozen=True)
class DType:
    """An element type.

    `tolerance` is the largest `‖out − ref‖ / ‖ref‖` at which the result of a single kernel counts as right.
    """

    name: str
    numpy: np.dtype
    cuda: str
    tolerance: float
    long_name: str

    @property
    def bytes(self) -> int:
        """Size of one element in bytes."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """True for the types that activations and weights may have."""
        return self.tolerance > 0

    def __str__(self) -> str:
        return self.name


F32 = DType("f32", np.dtype(np.float32), "float", 1e-5, "float32")
F16 = DType("f16", np.dtype(np.float16), "half_t", 2e-3, "float16")
BF16 = DType("bf16", np.dtype(ml_dtypes.bfloat16), "bf16_t", 1e-2, "bfloat16")
I32 = DType("i32", np.dtype(np.int32), "int", 0.0, "int32")
U32 = DType("u32", np.dtype(np.uint32), "unsigned", 0.0, "uint32")
U64 = DType("u64", np.dtype(np.uint64), "unsigned long long", 0.0, "uint64")

DTYPES: dict[str, DType] = {t.name: t for t in (F32, F16, BF16, I32, U32, U64)}
_BY_ANY_NAME = DTYPES | {t.long_name: t for t in DTYPES.values()}


def dtype(name: str) -> DType:
    """The element type called `name`, short (`bf16`) or long (`bfloat16`). Raises DTypeError."""
    element_type = _BY_ANY_NAME.get(name.removeprefix("torch."))
    if element_type is None:
        raise DTypeError(f"unknown dtype {name!r}; use one of {', '.join(sorted(_BY_ANY_NAME))}")
    return element_type


def round_to(values: np.ndarray, to: DType) -> np.ndarray:
    """`values` rounded to the type `to` and returned in float32; for an integer type, cast to it.

    The interpreter represents a bf16 array as a float32 array of values that bf16 can store. Rounds to nearest, ties to
    even, as the GPU does.
    """
    if not to.is_float:
        return values.astype(to.numpy, copy=False)
    values = values.astype(np.float32, copy=False)
    if to is F32:
        return values
    if to is F16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    out = rounded.view(np.float32)
    nan = np.isnan(values)
    return np.where(nan, values, out) if nan.any() else out


def relative_error(out: np.ndarray, ref: np.ndarray) -> float:
    """`‖out − ref‖ / ‖ref‖` in float64, the only measure of numeric difference; NaN when an operand holds NaN."""
    out64, ref64 = out.astype(np.float64), ref.astype(np.float64)
    return float(np.linalg.norm(out64 - ref64) / max(np.linalg.norm(ref64), 1e-30))
