"""The kernels of attention of single tokens: the context split among blocks, whose sums a second kernel adds up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infernum.ir.kernel import Call, Target, Template, Workspace, chosen
from infernum.roofline import GPUS

FEW_TOKENS = 8
"""Up to so many tokens, one kernel turns, stores and attends: new keys come from the step and not from the cache."""


MOST_HEADS = 8
"""Query heads of one key head that a block attends for at most: on tensor cores, the columns of an mma."""

_LEAST_THREADS = 128
"""Threads of the smallest block: four warps."""


def heads_of(call: Call) -> tuple[int, int, int]:
    """(heads, kv_heads, dim) of an attention call."""
    q, kv = call.operands["q"], call.operands["kv"]
    return int(q.shape[1]), int(kv.shape[2]), int(q.shape[2])


def head_constants(call: Call) -> dict[str, int]:
    """The heads of an attention call for a kernel whose blocks attend for up to 8 query heads of one key head."""
    heads, kv_heads, dim = heads_of(call)
    group = heads // kv_heads
    tiles = -(-group // MOST_HEADS)
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_TILE": -(-group // tiles),
        "HEAD_TILES": tiles,
        "HEAD_DIM": dim,
    }


def _split_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """Warps of a block, splits of a context, and positions that a split has at least.

    A few tokens: as was fastest on an H200. More: as many splits as give every SM of the architecture a block.
    """
    heads, kv_heads, dim = heads_of(call)
    warps = (8, 4) if dim <= 128 else (4,)
    if target.max_tokens > 64:
        return {"WARPS": warps, "SPLITS": (1,)}
    if target.max_tokens <= FEW_TOKENS:
        narrow = dim <= 64
        first = (32 if narrow else 64) * (1 if target.max_tokens == 1 else 2)
        least = (first, *(each for each in (32, 64, 128) if each != first))
        return {"WARPS": (4, 8) if narrow else warps, "SPLITS": (64, 32, 16), "LEAST": least}
    blocks = kv_heads * -(-heads // kv_heads // MOST_HEADS) * target.min_tokens
    return {"WARPS": warps, "SPLITS": (max(4, min(32, GPUS[target.arch].sms // blocks)), 4, 8, 16, 24, 32)}


def _split_constants(call: Call, target: Target) -> Mapping[str, Any]:
    """How a block of the split kernel is laid out; each lane holds at most 8 elements of a row of keys."""
    *_, dim = heads_of(call)
    widest = 16 // call.operands["q"].dtype.bytes
    vector = next(v for v in (8, 4, 2) if v <= widest and dim % v == 0)
    lanes = next((n for n in (1, 2, 4, 8, 16) if n * vector >= dim), 32)
    values = chosen(_split_choices, call, target)
    warps = values["WARPS"]
    return {
        **head_constants(call),
        "VECTOR": vector,
        "LANES": lanes,
        "CHUNKS": -(-dim // (lanes * vector)),
        "WARPS": warps,
        "THREADS": 32 * warps,
        "SPLITS": values["SPLITS"],
        "SPLIT_MIN": values.get("LEAST", warps * (32 // lanes)),
        "COMBINE_WARPS": -(-dim // 32),
        "COMBINE_GROUPS": min(4, values["SPLITS"]),
    }


def _split_refusal(call: Call, target: Target) -> str | None:
    del target
    *_, dim = heads_of(call)
    return None if dim % 2 == 0 and dim <= 256 else f"head size {dim} is not an even number up to 256"


def _attend_constants(call: Call, target: Target) -> Mapping[str, Any]:
    *_, dim = heads_of(call)
    return {**_split_constants(call, target), "INV_FREQ": [f"{f}f" for f in call.attrs["rope"].inv_freq(dim)]}


def attend_limits(dim: int, most: int) -> str | None:
    """Why one kernel cannot turn, store and attend for heads of `dim` and `most` tokens; None when it can."""
    if most > FEW_TOKENS:
        return f"a block holds the new keys of up to {FEW_TOKENS} tokens, and a step has up to {most}"
    half = dim // 2
    return f"threads do not share out the {half} pairs of a head evenly" if _LEAST_THREADS % half else None


def _attend_refusal(call: Call, target: Target) -> str | None:
    *_, dim = heads_of(call)
    return attend_limits(dim, target.max_tokens) or _split_refusal(call, target)


_WORKSPACES = (
    Workspace("partial_out", ("tokens", "HEADS", "SPLITS", "HEAD_DIM")),
    Workspace("partial_stats", ("tokens", "HEADS", "SPLITS", 2)),
)

_SPLIT_GRID = ("tokens", "KV_HEADS * HEAD_TILES", "min(SPLITS, ceildiv(max_pages * 64, SPLIT_MIN))")

_COMBINE = Template(
    "attention_combine",
    grid=("tokens", "HEADS", 1),
    block="32 * COMBINE_WARPS * COMBINE_GROUPS",
    constants=_split_constants,
    includes=("numeric.cuh", "programmatic.cuh", "softmax.cuh", "attention_split.cuh"),
    takes=("positions", "out", "partial_out", "partial_stats"),
    symbols=(),
)

SPLIT = Template(
    "attention_split",
    grid=_SPLIT_GRID,
    block="THREADS",
    when=_split_refusal,
    constants=_split_constants,
    choices=_split_choices,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "softmax.cuh",
        "attention_split.cuh",
    ),
    workspaces=_WORKSPACES,
    takes=(
        "q",
        "kv",
        "positions",
        "sequence",
        "page_table",
        "partial_out",
        "partial_stats",
    ),
    symbols=("max_pages",),
    then=_COMBINE,
)
"""Queries that are turned already, over a cache that holds all keys."""

ATTEND = Template(
    "attend",
    grid=_SPLIT_GRID,
    block="THREADS",
    when=_attend_refusal,
    constants=_attend_constants,
    choices=_split_choices,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "rope.cuh",
        "softmax.cuh",
        "attention_split.cuh",
    ),
    workspaces=_WORKSPACES,
    takes=(
        "q",
        "k",
        "v",
        "kv",
        "positions",
        "sequence",
        "query_start",
        "page_table",
        "partial_out",
        "partial_stats",
    ),
    symbols=("max_pages",),
    then=_COMBINE,
)
"""Rope, append and attention of a few tokens: one kernel, and one that sums the splits of the context.

Operands q [tokens, heads, dim], k and v [tokens, kv_heads, dim], positions, kv, sequence, query_start and page_table as
for `attention`; results out, like q, and kv in place. The attributes are `rope`, that of both turns, and `scale`.
"""
