"""Picking rows: of the embedding table by token, of the residual stream by wanted output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Target, Template
from infernum.ir.op import op


def _copy_constants(row: TensorType) -> Mapping[str, Any]:
    """A block copies one row in accesses of at most 16 bytes."""
    vector = next(v for v in (8, 4, 2, 1) if v * row.dtype.bytes <= 16 and row.width % v == 0)
    threads = min(512, -(-row.width // vector // 32) * 32)
    return {"WIDTH": row.width, "VECTOR": vector, "THREADS": threads}


def _embedding_constants(call: Call, target: Target) -> Mapping[str, Any]:
    del target
    return _copy_constants(call.operands["weight"])


def _row_bytes(tensor: TensorType) -> int:
    return tensor.width * tensor.dtype.bytes


def _select_rows_constants(call: Call, target: Target) -> Mapping[str, Any]:
    del target
    return _copy_constants(call.operands["x"])


@op(
    "i32 tokens, vocab width -> tokens width",
    kernels=[
        Template(
            "embedding",
            grid=("tokens", 1, 1),
            block="THREADS",
            constants=_embedding_constants,
            includes=("numeric.cuh", "programmatic.cuh", "copy.cuh"),
            symbols=(),
        )
    ],
    touched=lambda call: {"weight": f"{_row_bytes(call.operands['weight'])} * tokens"},
)
def embedding(token_ids: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The row of the embedding table that belongs to each token.

    token_ids int32 [tokens], each in 0 … vocab − 1 (the host checks), weight [vocab, width] -> [tokens, width].
    """
    return weight[token_ids]


@op(
    "tokens width, i32 rows -> rows width",
    kernels=[
        Template(
            "select_rows",
            grid=("rows", 1, 1),
            block="THREADS",
            constants=_select_rows_constants,
            includes=("numeric.cuh", "programmatic.cuh", "copy.cuh"),
            symbols=(),
        )
    ],
    touched=lambda call: {"x": f"{_row_bytes(call.operands['x'])} * rows"},
)
def select_rows(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows of x, in the given order.

    x [tokens, width], rows int32 [rows], each in 0 … tokens − 1 -> [rows, width].
    """
    return x[rows]
