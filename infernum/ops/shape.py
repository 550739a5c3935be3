"""Ops that look at memory otherwise, or stack weights when a checkpoint is loaded: none of them is a kernel."""

from __future__ import annotations

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, View
from infernum.ir.op import op


def _heads_type(x: TensorType, *, dim: int) -> tuple[TensorType, ...]:
    if len(x.shape) != 2 or x.width % dim:
        raise ShapeError(f"heads: x is {x}, whose rows do not divide into heads of {dim}")
    return (TensorType((x.shape[0], x.width // dim, dim), x.dtype),)


@op(view=View(), infer=_heads_type)
def heads(x: np.ndarray, *, dim: int) -> np.ndarray:
    """Rows seen as heads: [tokens, heads · dim] -> [tokens, heads, dim]."""
    return x.reshape(x.shape[0], x.shape[1] // dim, dim)


def _flatten_type(x: TensorType) -> tuple[TensorType, ...]:
    return (TensorType((x.shape[0], x.width), x.dtype),)


@op(view=View(), infer=_flatten_type)
def flatten(x: np.ndarray) -> np.ndarray:
    """Heads seen as rows: [tokens, heads, dim] -> [tokens, heads · dim]."""
    return x.reshape(x.shape[0], -1)


def _columns_type(x: TensorType, *, start: int, stop: int) -> tuple[TensorType, ...]:
    if len(x.shape) != 2 or not 0 <= start < stop <= x.width:
        raise ShapeError(f"columns: x is {x}, which has no columns {start} to {stop}")
    return (TensorType((x.shape[0], stop - start), x.dtype),)


def _column_range(call: Call) -> tuple[int, int]:
    return call.attrs["start"], call.attrs["stop"]


@op(view=View(_column_range), infer=_columns_type)
def columns(x: np.ndarray, *, start: int, stop: int) -> np.ndarray:
    """Columns start … stop − 1 of each row."""
    return x[:, start:stop]


def _stack_type(*parts: TensorType) -> tuple[TensorType, ...]:
    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:] or part.dtype is not first.dtype:
            raise ShapeError(f"stack_rows: {part} does not stack with {first}")
    rows = sum(p.shape[0] for p in parts if isinstance(p.shape[0], int))
    return (TensorType((rows, *first.shape[1:]), first.dtype),)


@op(load_time=True, infer=_stack_type)
def stack_rows(*parts: np.ndarray) -> np.ndarray:
    """Weights stacked along axis 0, once, when a checkpoint is loaded."""
    return np.concatenate(parts, axis=0)
