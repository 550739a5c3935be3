"""What the ranks of a model exchange: sums of partial products, and the parts of logits.

The meaning of these ops takes the operand of every rank, stacked in the order of ranks, and all ranks get one result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from infernum.dtypes import F32
from infernum.dtypes import dtype as dtype_named
from infernum.errors import DTypeError, ShapeError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, alternatives
from infernum.ir.op import elements, op

if TYPE_CHECKING:
    from infernum.ir.block import Tensor


def _exchange_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Threads of a block, each of which sends two elements at a time."""
    del target
    width = call.operands["x"].width
    if width % 2:
        yield Refusal(f"ranks exchange two elements at a time, and rows of {width} have an odd one")
        return
    if call.epilogue and call.epilogue.parts > 1:
        yield Refusal("a sum over ranks writes whole rows, and these are ranges of columns")
        return
    for values in alternatives(THREADS=(256, 128, 512)):
        yield Layout({"WIDTH": width, "VECTOR": 2}, values)


def _exchange(name: str, *, epilogue: bool) -> Template:
    """A kernel that exchanges words. Its blocks must all be resident at once, so it has no more than there are SMs."""
    return Template(
        name,
        layouts=_exchange_layouts,
        grid=("min(ceildiv(tokens * WIDTH, 2 * THREADS), sms)", 1, 1),
        threads="THREADS",
        includes=("numeric.cuh", "programmatic.cuh", "exchange.cuh"),
        epilogue=epilogue,
        exchanged="tokens * WIDTH",
    )


def _sum_type(x: TensorType, *, ranks: int, out: str) -> tuple[TensorType, ...]:
    del ranks
    if x.dtype is not F32:
        raise DTypeError(
            f'sum_ranks: x is {x}; partial sums are float32, as `linear(…, out="f32")` gives them'
        )
    return (TensorType(x.shape, dtype_named(out)),)


@op(
    infer=_sum_type,
    collective=True,
    kernels=[_exchange("sum_ranks", epilogue=True)],
    flops=lambda call: f"{call.attrs['ranks'] - 1} * {elements(call.operands['x'])}",
)
def sum_ranks(x: np.ndarray, *, ranks: int, out: str) -> np.ndarray:
    """The sum of all ranks' partial products, added in the order of ranks, in the dtype that `out` names.

    x float32 [ranks, tokens, width] -> [tokens, width]; rounded once, behind the whole sum.
    """
    del ranks, out
    total = x[0]
    for part in x[1:]:
        total = total + part
    return total


def _gather_type(x: TensorType, *, ranks: int) -> tuple[TensorType, ...]:
    if len(x.shape) != 2:
        raise ShapeError(f"gather_ranks: x is {x}, expected [rows, width]")
    return (TensorType((x.shape[0], x.width * ranks), x.dtype),)


@op(infer=_gather_type, collective=True, kernels=[_exchange("gather_ranks", epilogue=False)])
def gather_ranks(x: np.ndarray, *, ranks: int) -> np.ndarray:
    """The columns of all ranks side by side: x [ranks, rows, width] -> [rows, ranks · width]."""
    del ranks
    return np.concatenate(list(x), axis=1)


def gathered(x: Tensor, width: int) -> Tensor:
    """x [rows, width] whole on every rank; x itself, without an op, where it is whole already."""
    ranks, remainder = divmod(width, x.type.width)
    if remainder:
        raise ShapeError(f"gathered: {x.type.width} columns of a rank do not make {width}")
    return x if ranks == 1 else gather_ranks(x, ranks=ranks)
