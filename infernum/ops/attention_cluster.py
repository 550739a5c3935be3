"""Attention of a few tokens by clusters of blocks, which put the context together among themselves (from sm_90 on)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infernum.ir.block import PAGE
from infernum.ir.kernel import Call, Formula, Target, Template, chosen
from infernum.ops.attention_split import FEW_TOKENS, MOST_HEADS, attend_limits, head_constants, heads_of
from infernum.roofline import GPUS

_UNIT = 16
"""Positions that a warp attends to at once: the rows of an mma."""

_LONG = 4096
"""Positions beyond which a context is long."""

_IS_LONG = f"context_pages // {_LONG // PAGE + 1}"
"""1 or more where the longest context of a step is long, else 0."""


def _refusal(call: Call, target: Target) -> str | None:
    *_, dim = heads_of(call)
    dtype = call.operands["q"].dtype
    if target.arch < 90:
        return "clusters of blocks exist from sm_90 on"
    if dtype.bytes != 2:
        return f"tensor cores multiply bf16 and f16 here, not {dtype}"
    if dim % 16 or dim > 256:
        return f"head size {dim} is not a multiple of 16 up to 256"
    return attend_limits(dim, target.max_tokens)


def _choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """Warps of a block, units in a warp's ring, how many times as many for long contexts, and most blocks of a cluster.

    Rings take what the kernel before leaves room for beside them on an SM, 64 KiB. More than 8 blocks, which keep more
    of the memory busy, pay where heads are small and contexts long (measured on an H200).
    """
    *_, dim = heads_of(call)
    depth = max(1, min(8, 256 // dim))
    depths = (depth, *(d for d in (2, 3, 4, 8) if d != depth))
    most = 16 if dim <= 64 else 8
    return {
        "WARPS": (4, 8),
        "DEPTH": depths,
        "LONG": (1, 2),
        "CLUSTER": (most, *(c for c in (4, 8, 16) if c != most)),
    }


def _ring_bytes(call: Call, values: Mapping[str, int]) -> int:
    *_, dim = heads_of(call)
    return values["WARPS"] * values["DEPTH"] * 2 * _UNIT * (dim + 8) * 2


def _shared_bytes(call: Call, values: Mapping[str, int]) -> Formula:
    """The rings of a block, which are LONG times as deep at long contexts."""
    ring, longer = _ring_bytes(call, values), values["LONG"] - 1
    return f"{ring} * (1 + {longer} * min(1, {_IS_LONG}))" if longer else ring


def _feasible(call: Call, target: Target) -> str | None:
    *_, dim = heads_of(call)
    gpu, values = GPUS[target.arch], chosen(_choices, call, target)
    rows = (MOST_HEADS + 2 * FEW_TOKENS) * (dim + 8) * 2  # queries, new keys and values
    sums, statistics = MOST_HEADS * dim * 4, (values["WARPS"] + values["CLUSTER"]) * MOST_HEADS * 8
    needed = values["LONG"] * _ring_bytes(call, values) + rows + sums + statistics + 8
    most = gpu.shared_per_sm - gpu.shared_reserved
    return None if needed <= most else f"a block has {most} bytes of shared memory, not {needed}"


def _constants(call: Call, target: Target) -> Mapping[str, Any]:
    values, of_heads = chosen(_choices, call, target), head_constants(call)
    clusters, dim = of_heads["KV_HEADS"] * of_heads["HEAD_TILES"], of_heads["HEAD_DIM"]
    return {
        **of_heads,
        "VECTOR": 8,
        **values,
        "THREADS": 32 * values["WARPS"],
        "BLOCKS": _blocks(min(values["CLUSTER"], dim // 4), clusters, target),
        "SHARED": _shared_bytes(call, values),
        "INV_FREQ": [f"{f}f" for f in call.attrs["rope"].inv_freq(dim)],
    }


def _blocks(most: int, clusters: int, target: Target) -> Formula:
    """Blocks of a cluster, of which there are `clusters` for each token: as many as give every SM at most one.

    It is a power of two up to `most`, and more than 8 only where a sequence is long. At least two: a block alone is
    launched without a cluster, and may then send nothing, not even to itself (an illegal instruction on an H200). As a
    formula: a factor of two for each size up to which they fit.
    """
    always, factors = 2, list[str]()
    blocks, sms = 2, GPUS[target.arch].sms
    while 2 * blocks <= most and (tokens := sms // (clusters * 2 * blocks)) >= target.min_tokens:
        blocks *= 2
        limits = [f"{tokens} // tokens"] if tokens < target.max_tokens else []
        limits += [_IS_LONG] if blocks > 8 else []
        if limits:
            factors.append(f"(1 + min({', '.join(['1', *limits])}))")
        else:
            always *= 2
    return " * ".join([str(always), *factors]) if factors else always


ATTEND_CLUSTER = Template(
    "attend_cluster",
    grid=("tokens", "KV_HEADS * HEAD_TILES", "BLOCKS"),
    block="THREADS",
    shared_bytes="SHARED",
    cluster="BLOCKS",
    when=_refusal,
    constants=_constants,
    choices=_choices,
    feasible=_feasible,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "rope.cuh",
        "softmax.cuh",
        "mma.cuh",
        "copy_groups.cuh",
        "mbarrier.cuh",
        "cluster.cuh",
        "attend_cluster.cuh",
    ),
    symbols=("max_pages",),
)
"""Rope, append and attention of a few tokens in one kernel; operands, results and attributes as for `ATTEND`."""
