"""The values on which kernels are tried, by kind, and the bits that store them."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from infernum.dtypes import BF16, F16, DType, round_to

Array = np.ndarray[Any, Any]
Kind = Literal["normal", "large", "denormal", "negative zero", "equal rows"]

KINDS: tuple[Kind, ...] = ("normal", "large", "denormal", "negative zero", "equal rows")
"""normal         standard normal numbers
large          normal times a power of two, the largest for which the reference is finite
denormal       from below the smallest normal number of the storage type to eight times it
negative zero  normal, a quarter of them 0 and a quarter −0; every third row −0 altogether
equal rows     one number everywhere: ties, no variance
"""

LARGE: dict[str, tuple[int, ...]] = {
    "f16": (12, 6, 3, 1),
    "bf16": (100, 50, 25, 12),
    "f32": (100, 50, 25, 12),
}
"""Exponents of two for "large", the largest first. A product of two values, or a square, fits half the exponent."""

_POOL = 1_048_573
"""Random numbers drawn for one tensor at most; a larger one repeats them, a prime number, so that no rows are equal."""

_CONSTANT = 1.375


def smallest_normal(dtype: DType) -> float:
    """The smallest positive number that a float type stores with all its digits."""
    return 2.0**-14 if dtype is F16 else 2.0**-126


def largest_number(dtype: DType) -> float:
    """The largest number that a float type stores, to a few digits."""
    return 65504.0 if dtype is F16 else 3.38e38


def draw(
    kind: Kind, sizes: tuple[int, ...], dtype: DType, rng: np.random.Generator, factor: float = 1.0
) -> Array:
    """Float32 values of a kind, times `factor`, that `dtype` can store."""
    count = math.prod(sizes)
    pool = rng.standard_normal(min(count, _POOL), np.float32)
    match kind:
        case "normal" | "large":
            pool *= np.float32(factor)
        case "denormal":
            pool = np.ldexp(pool * np.float32(smallest_normal(dtype)), rng.integers(0, 4, len(pool)))
        case "negative zero":
            dice = rng.integers(0, 4, len(pool))
            pool = np.select([dice == 0, dice == 1], [np.float32(0.0), np.float32(-0.0)], pool)
        case "equal rows":
            return np.full(sizes, _CONSTANT, np.float32)
    values = np.resize(round_to(pool, dtype), sizes)
    if kind == "negative zero" and len(sizes) > 1:
        values[1::3] = -0.0
    return values


def to_bits(values: Array, dtype: DType) -> Array:
    """Float32 (or integer) values that `dtype` can store, as the bits that it stores: uint16 or uint32."""
    if dtype is BF16:
        halves = np.ascontiguousarray(values, np.float32).view(np.uint16)
        return halves.reshape(*values.shape, 2)[..., 1]  # the upper half of each, on a little-endian machine
    return np.ascontiguousarray(values).astype(dtype.numpy, copy=False).view(bits_of(dtype))


def from_bits(bits: Array, dtype: DType) -> Array:
    """The inverse of `to_bits`: float32, or integers as they are."""
    if dtype is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = np.ascontiguousarray(bits).view(dtype.numpy)
    return values.astype(np.float32) if dtype.is_float else values


def bits_of(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of an element's bits."""
    return np.dtype(f"u{dtype.bytes}")
