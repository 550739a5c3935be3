"""Picking rows: of the embedding table by token, of the residual stream by wanted output."""

from __future__ import annotations

import numpy as np

from infernum.ir.graph import TensorType
from infernum.ir.kernel import Layout, Template
from infernum.ir.op import op


def _copy_layout(row: TensorType) -> Layout:
    """A block copies one row in accesses of at most 16 bytes."""
    vector = next(v for v in (8, 4, 2, 1) if v * row.dtype.bytes <= 16 and row.width % v == 0)
    threads = min(512, -(-row.width // vector // 32) * 32)
    return Layout({"WIDTH": row.width, "VECTOR": vector, "THREADS": threads})


def _row_bytes(tensor: TensorType) -> int:
    return tensor.width * tensor.dtype.bytes


@op(
    "i32 tokens, vocab width -> tokens width",
    kernels=[
        Template(
            "embedding",
            grid=("tokens", 1, 1),
            threads="THREADS",
            layouts=lambda call, target: iter([_copy_layout(call.operands["weight"])]),
            includes=("numeric.cuh", "programmatic.cuh", "copy.cuh"),
            symbols=(),
        )
    ],
    moved_bytes=lambda call: {"weight": f"{_row_bytes(call.operands['weight'])} * tokens"},
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
            threads="THREADS",
            layouts=lambda call, target: iter([_copy_layout(call.operands["x"])]),
            includes=("numeric.cuh", "programmatic.cuh", "copy.cuh"),
            symbols=(),
        )
    ],
    moved_bytes=lambda call: {"x": f"{_row_bytes(call.operands['x'])} * rows"},
)
def select_rows(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows of x, in the given order.

    x [tokens, width], rows int32 [rows], each in 0 … tokens − 1 -> [rows, width].
    """
    return x[rows]
