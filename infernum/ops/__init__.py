"""Every op of the package, registered by import."""

from infernum.ops.attention import attention
from infernum.ops.embedding import embedding, select_rows
from infernum.ops.linear import dense, linear
from infernum.ops.norm import rms_norm
from infernum.ops.pointwise import (
    add,
    cast,
    clip,
    gelu,
    gelu_tanh,
    hardswish,
    laplace,
    mul,
    relu,
    scale,
    sigmoid,
    silu,
    softcap,
    softplus,
    sqrt_softplus,
    tanh,
)
from infernum.ops.ranks import gather_ranks, gathered, sum_ranks
from infernum.ops.rope import append, rope, rope_by_length, turn
from infernum.ops.sampling import advance, argmax, count_tokens, logprobs, sample
from infernum.ops.shape import columns, flatten, heads, stack_rows

__all__ = [
    "add",
    "advance",
    "append",
    "argmax",
    "attention",
    "cast",
    "clip",
    "columns",
    "count_tokens",
    "dense",
    "embedding",
    "flatten",
    "gather_ranks",
    "gathered",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "heads",
    "laplace",
    "linear",
    "logprobs",
    "mul",
    "relu",
    "rms_norm",
    "rope",
    "rope_by_length",
    "sample",
    "scale",
    "select_rows",
    "sigmoid",
    "silu",
    "softcap",
    "softplus",
    "sqrt_softplus",
    "stack_rows",
    "sum_ranks",
    "tanh",
    "turn",
]
