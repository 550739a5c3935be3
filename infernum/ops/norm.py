"""Normalisation over the last dim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Prologue, Refusal, Target, Template, alternatives
from infernum.ir.op import Signature, elements, op


def _norm_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Threads that share a row, by default one for each access, as far as a block goes."""
    del target
    if call.epilogue and call.epilogue.parts > 1:
        yield Refusal("a norm writes whole rows, and these are ranges of columns")
        return
    x = call.operands["x"]
    width = int(x.shape[-1])
    vector = next(v for v in (8, 4, 2, 1) if width % v == 0)
    threads = min(1024, max(32, -(-width // vector // 32) * 32))
    constants = {"WIDTH": width, "VECTOR": vector, "ROWS": x.width // width}
    for values in alternatives(THREADS=(threads, *(n for n in (128, 256, 512) if n < threads))):
        yield Layout(constants, values)


def norm_types(x: TensorType, weight: TensorType, **attrs: object) -> tuple[TensorType, ...]:
    """The type of x, whose last dim must be that of the vector `weight`. Raises ShapeError or DTypeError."""
    del attrs
    dims = ("tokens", "width") if len(x.shape) == 2 else ("tokens", "heads", "width")
    if len(x.shape) != len(dims):
        raise ShapeError(f"norm: x is {x}, expected [tokens, width] or [tokens, heads, width]")
    signature = Signature.parse(f"{' '.join(dims)}, width -> {' '.join(dims)}")
    return signature.infer("norm", ("x", "weight"), (x, weight))


NORM = Template(
    "norm",
    layouts=_norm_layouts,
    grid=("tokens", "ROWS", 1),
    threads="THREADS",
    includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh"),
    pointwise_operand="x",
    epilogue=True,
)
"""The kernel of any norm: it computes by the struct of the op's prologue, which the op must have."""


@op(
    infer=norm_types,
    kernels=[NORM],
    prologue=Prologue("RmsNorm", "rms_norm.cuh"),
    flops=lambda call: f"4 * {elements(call.operands['x'])}",
)
def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float, offset: float = 0.0) -> np.ndarray:
    """Scale each row of x to unit root-mean-square, then by offset + weight (Zhang & Sennrich 2019, arXiv:1910.07467).

    x [tokens, width] or [tokens, heads, width], weight [width] -> like x. All of it is in float32.
    """
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * (weight + np.float32(offset))
