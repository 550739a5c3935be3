"""Normalisation over the last dim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infernum.ir.kernel import Call, Target, Template
from infernum.ir.op import elements, op


def _row_constants(call: Call, target: Target) -> Mapping[str, Any]:
    del target
    width = call.operands["x"].width
    vector = next(v for v in (8, 4, 2, 1) if width % v == 0)
    threads = min(1024, max(32, -(-width // vector // 32) * 32))
    return {"WIDTH": width, "VECTOR": vector, "THREADS": threads}


@op(
    "tokens width, width -> tokens width",
    kernels=[
        Template(
            "rms_norm",
            grid=("tokens", 1, 1),
            block="THREADS",
            constants=_row_constants,
            includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh"),
            prologue="x",
        )
    ],
    flops=lambda call: f"4 * {elements(call.operands['x'])}",
)
def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """Scale each row of x to unit root-mean-square, then by weight (Zhang & Sennrich 2019, arXiv:1910.07467).

    x [tokens, width], weight [width] -> [tokens, width].
    """
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * weight
