"""Normalisation over the last dim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infernum.ir.kernel import Call, Target, Template, chosen
from infernum.ir.op import elements, op


def _row_vector(call: Call) -> int:
    return next(v for v in (8, 4, 2, 1) if call.operands["x"].width % v == 0)


def _row_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """Threads that share a row, by default one for each access, as far as a block goes."""
    del target
    threads = min(1024, max(32, -(-call.operands["x"].width // _row_vector(call) // 32) * 32))
    return {"THREADS": (threads, *(n for n in (128, 256, 512) if n < threads))}


def _row_constants(call: Call, target: Target) -> Mapping[str, Any]:
    width = call.operands["x"].width
    return {"WIDTH": width, "VECTOR": _row_vector(call), **chosen(_row_choices, call, target)}


@op(
    "tokens width, width -> tokens width",
    kernels=[
        Template(
            "rms_norm",
            grid=("tokens", 1, 1),
            block="THREADS",
            constants=_row_constants,
            choices=_row_choices,
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
