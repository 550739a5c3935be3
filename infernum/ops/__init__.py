"""Every op of the package, registered by import."""

from infernum.ops.attention import attention
from infernum.ops.embedding import embedding, select_rows
from infernum.ops.linear import dense, linear
from infernum.ops.norm import rms_norm
from infernum.ops.pointwise import add, cast, mul, scale, silu
from infernum.ops.rope import append, rope
from infernum.ops.sampling import advance, argmax, mark_seen, sample
from infernum.ops.shape import columns, flatten, heads, stack_rows

__all__ = [
    "add",
    "advance",
    "append",
    "argmax",
    "attention",
    "cast",
    "columns",
    "dense",
    "embedding",
    "flatten",
    "heads",
    "linear",
    "mark_seen",
    "mul",
    "rms_norm",
    "rope",
    "sample",
    "scale",
    "select_rows",
    "silu",
    "stack_rows",
]
