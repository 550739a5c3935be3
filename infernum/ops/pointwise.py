"""Ops that work element by element. Each gives one CUDA expression; none has a template of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infernum.dtypes import dtype as dtype_named
from infernum.ir.graph import TensorType
from infernum.ir.op import pointwise


@pointwise("{x} + {y}", commutative=True)
def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y; one of them may be a vector added to each row."""
    return x + y


@pointwise("{x} * {y}", commutative=True)
def mul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x · y; one of them may be a vector that scales each row."""
    return x * y


@pointwise("{x} * {by}")
def scale(x: np.ndarray, *, by: float) -> np.ndarray:
    """x times a constant, which is rounded to float32."""
    return x * np.float32(by)


@pointwise("{x} / (1.0f + expf(-{x}))", flops=4)
def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-x))


def _cast_type(x: TensorType, *, to: str) -> tuple[TensorType, ...]:
    return (replace(x, dtype=dtype_named(to)),)


@pointwise("{x}", flops=0, infer=_cast_type)
def cast(x: np.ndarray, *, to: str) -> np.ndarray:
    """x rounded to another floating type, given by name."""
    del to
    return x
