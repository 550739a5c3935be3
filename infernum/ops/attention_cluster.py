"""Attention of a few tokens by clusters of blocks, which put the context together among themselves (from sm_90 on)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infernum.dims import evaluate
from infernum.ir.block import PAGE
from infernum.ir.kernel import Call, Formula, Layout, Refusal, Target, Template, alternatives
from infernum.ops.attention_split import (
    FEW_TOKENS,
    HEAD_SLOTS,
    MOST_HEADS,
    UNIT,
    attend_refusal,
    head_constants,
    heads_of,
)
from infernum.ops.rope import most_pairs, rotation_constants, rotation_of
from infernum.roofline import GPUS

_LONG = 4096
"""Positions beyond which a context is long."""

_MOST_SPLITS = 16
"""Clusters among which a context is split at most."""


def _refusal(call: Call, target: Target) -> Refusal | None:
    *_, dim = heads_of(call)
    dtype = call.operands["q"].dtype
    if target.arch < 90:
        return Refusal("clusters of blocks exist from sm_90 on")
    if dtype.bytes != 2:
        return Refusal(f"tensor cores multiply bf16 and f16 here, not {dtype}")
    if dim % 16 or dim > 256:
        return Refusal(f"head size {dim} is not a multiple of 16 up to 256")
    return attend_refusal(call, target, turned_by=dim // 2 // _pairs(call))


def _pairs(call: Call) -> int:
    """Neighbouring pairs that a thread turns: as few as let the threads of a warp hold a head."""
    *_, dim = heads_of(call)
    return most_pairs(rotation_of(call), dim, 4 if dim > 128 else 2)


def _layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Warps of a block, units in the ring of each, most blocks of a cluster, and blocks of one of several splits.

    Rings take what the kernel before leaves room for beside them on an SM, 64 KiB. Several tokens have fewer SMs
    each, of which small clusters use more.
    """
    if refusal := _refusal(call, target):
        yield refusal
        return
    *_, dim = heads_of(call)
    warps = 8 if dim <= 128 else 4
    depth = max(1, 1024 // (warps * dim))
    every = alternatives(
        WARPS=(warps, 12 - warps),
        DEPTH=(depth, *(d for d in (1, 2, 4, 8) if d != depth)),
        CLUSTER=(8, 4),
        SPLIT=(4, 2) if target.max_tokens == 1 else (2, 4),
    )
    for values in every:
        yield _does_not_fit(dim, target, values) or Layout(_constants(call, target, values), values)


def _ring_bytes(dim: int, values: Mapping[str, int]) -> int:
    return values["WARPS"] * values["DEPTH"] * 2 * UNIT * (dim + 8) * 2


def _does_not_fit(dim: int, target: Target, values: Mapping[str, int]) -> Refusal | None:
    gpu = GPUS[target.arch]
    rows = (MOST_HEADS + 2 * FEW_TOKENS) * (dim + 8) * 2  # queries, new keys and values
    sums = (MOST_HEADS * dim + 4 * values["CLUSTER"]) * 4
    statistics = (values["WARPS"] + values["CLUSTER"]) * MOST_HEADS * 8
    needed = _ring_bytes(dim, values) + rows + sums + statistics + 8
    most = gpu.shared_per_sm - gpu.shared_reserved
    return None if needed <= most else Refusal(f"a block has {most} bytes of shared memory, not {needed}")


def _constants(call: Call, target: Target, values: Mapping[str, int]) -> dict[str, Any]:
    of_heads = head_constants(call)
    clusters, dim = of_heads["KV_HEADS"] * of_heads["HEAD_TILES"], of_heads["HEAD_DIM"]
    short, long, splits = _sizes(values, clusters, dim, target)
    steps = [{"tokens": tokens} for tokens in range(target.min_tokens, target.max_tokens + 1)]
    counts = [evaluate(splits, step) for step in steps]
    handed_over = [(count - 1) * clusters * step["tokens"] for count, step in zip(counts, steps, strict=True)]
    window = call.attrs["window"]
    may_be_long = not window or window > _LONG
    is_long = f"min(context_pages // {_LONG // PAGE + 1}, sms // {_sms_of_splits(target)}) > 0"
    return {
        **of_heads,
        "VECTOR": 8,
        "THREADS": 32 * values["WARPS"],
        "BLOCKS": f"{long} if {is_long} else {short}" if may_be_long else short,
        "Z": f"({long} * {splits} if {is_long} else {short})" if may_be_long else short,
        "LEFT": max(1, *handed_over) if may_be_long else 1,
        "SHARED": _ring_bytes(dim, values),
        "PAIRS": _pairs(call),
        **rotation_constants(rotation_of(call), dim),
    }


def _sms_of_splits(target: Target) -> int:
    """SMs that read long contexts: three quarters, which are enough for the memory, and which clusters find.

    A cluster lies within a GPC, so that some SMs are left over. A GPU with fewer SMs, such as a slice of one, splits
    nothing: blocks that wait might keep out those that they wait for.
    """
    return GPUS[target.arch].sms * 3 // 4


def _sizes(
    values: Mapping[str, int], clusters: int, dim: int, target: Target
) -> tuple[Formula, Formula, Formula]:
    """Blocks of a cluster at short contexts and at long ones, and clusters among which a long context is split.

    Without splits there are `clusters` for each token. They have two blocks at least: a block alone is launched without
    a cluster, and may then send nothing, not even to itself (an illegal instruction on an H200). An SM gets one
    block at most, unless clusters of two are too many for that.
    """
    most, split = min(values["CLUSTER"], dim // 4), values["SPLIT"]
    short, long = GPUS[target.arch].sms // clusters, _sms_of_splits(target) // clusters
    split_up_to = long // (2 * split)  # tokens: more leave no room for a second split
    alone = f"max(2, min({most}, {long} // tokens))"
    formulas = (
        f"max(2, min({most}, {short} // tokens))",
        f"({split} if tokens <= {split_up_to} else {alone})" if split_up_to >= target.min_tokens else alone,
        f"max(1, min({_MOST_SPLITS}, {long} // ({split} * tokens)))",
    )
    if target.min_tokens < target.max_tokens:
        return formulas
    of_short, of_long, splits = (evaluate(formula, {"tokens": target.min_tokens}) for formula in formulas)
    return of_short, of_long, splits


ATTEND_CLUSTER = Template(
    "attend_cluster",
    grid=("tokens", "KV_HEADS * HEAD_TILES", "Z"),
    threads="THREADS",
    shared_bytes="SHARED",
    cluster="BLOCKS",
    layouts=_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "rope.cuh",
        "heads.cuh",
        "softmax.cuh",
        "scores.cuh",
        "mma.cuh",
        "copy_groups.cuh",
        "mbarrier.cuh",
        "cluster.cuh",
        "attend_cluster.cuh",
        "splits.cuh",
    ),
    row_ops=HEAD_SLOTS,
    reads_before_wait=("kv", "positions", "sequence", "query_start", "page_table", "lengths"),
    symbols=("max_pages",),
)
"""Append and attention of a few tokens in one kernel; operands, results and slots as for `ATTEND`."""
