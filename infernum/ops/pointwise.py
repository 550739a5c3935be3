"""Ops that work element by element. Each gives one CUDA expression; none has a template of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
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


@pointwise("__fdividef({x}, 1.0f + expf(-{x}))", flops=4)
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


@pointwise("0.5f * {x} * erfcf(-0.70710678f * {x})", flops=4)
def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x), with the normal distribution's Φ (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return 0.5 * x * _each(lambda value: math.erfc(-math.sqrt(0.5) * value), x)


@pointwise("__fdividef({x}, 1.0f + expf(-1.59576912f * {x} * (1.0f + 0.044715f * {x} * {x})))", flops=8)
def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """gelu with Φ(x) as ½ (1 + tanh(√(2/π) (x + 0.044715 x³))), which is written as a sigmoid."""
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


@pointwise("fmaxf({x}, 0.0f)")
def relu(x: np.ndarray) -> np.ndarray:
    """x where it is positive, 0 elsewhere."""
    return np.maximum(x, 0)


@pointwise("__fdividef(1.0f, 1.0f + expf(-{x}))", flops=3)
def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), the logistic function."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


@pointwise("tanhf({x})")
def tanh(x: np.ndarray) -> np.ndarray:
    """The hyperbolic tangent of x."""
    return np.tanh(x)


@pointwise("(fmaxf({x}, 0.0f) + log1pf(expf(-fabsf({x}))))", flops=4)
def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@pointwise("fminf(fmaxf({x}, {low}), {high})", flops=2)
def clip(x: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """x held within low … high."""
    return np.clip(x, np.float32(low), np.float32(high))


@pointwise("{cap} * tanhf({x} / {cap})", flops=3)
def softcap(x: np.ndarray, *, cap: float) -> np.ndarray:
    """cap · tanh(x / cap), which is within -cap … cap (Gemma 2, arXiv:2408.00118)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap))


@pointwise("{x} * fminf(fmaxf({x} + 3.0f, 0.0f), 6.0f) / 6.0f", flops=5)
def hardswish(x: np.ndarray) -> np.ndarray:
    """x · relu6(x + 3) / 6 (Howard et al. 2019, arXiv:1905.02244)."""
    return x * np.clip(x + 3, 0, 6) / 6


@pointwise("0.5f * erfcf((0.707107f - {x}) * 2.50662697f)", flops=4)
def laplace(x: np.ndarray) -> np.ndarray:
    """The normal distribution of mean 0.707107 and deviation 0.282095 (Ma et al. 2022, arXiv:2209.10655)."""
    return 0.5 * _each(lambda value: math.erfc((0.707107 - value) / (0.282095 * math.sqrt(2))), x)


@pointwise("sqrtf(fmaxf({x}, 0.0f) + log1pf(expf(-fabsf({x}))))", flops=5)
def sqrt_softplus(x: np.ndarray) -> np.ndarray:
    """The square root of softplus(x)."""
    return np.sqrt(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _each(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    """A function of the math module, which NumPy lacks, of each element; float32 like x."""
    return np.fromiter(map(function, x.ravel().tolist()), np.float32, x.size).reshape(x.shape)
