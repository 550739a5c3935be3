"""The rewrite of wrong.py, put right: gate and up stay in their places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infernum.fusion import add_rule
from infernum.ir.block import Tensor
from infernum.ir.op import pointwise
from infernum.ir.rewrite import rewrite
from infernum.ops import mul, silu


@pointwise("{gate} / (1.0f + expf(-{gate})) * {up}", flops=5)
def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate · sigmoid(gate) · up (Shazeer 2020, arXiv:2002.05202)."""
    with np.errstate(over="ignore"):
        return gate / (1.0 + np.exp(-gate)) * up


@rewrite(why="SwiGLU as one op is rounded once, and not between its two ops.")
def one_swiglu(gate: Tensor, up: Tensor) -> Iterator[Tensor]:
    yield mul(silu(gate), up)
    yield swiglu(gate, up)


add_rule(one_swiglu, before="into_epilogue")
