"""Attention of a few tokens by clusters of blocks, which put the context together among themselves (from sm_90 on)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infernum.dims import evaluate
from infernum.ir.block import PAGE
from infernum.ir.kernel import Call, Formula, Target, Template, chosen
from infernum.ops.attention_split import FEW_TOKENS, MOST_HEADS, attend_limits, head_constants, heads_of
from infernum.roofline import GPUS

_UNIT = 16
"""Positions that a warp attends to at once: the rows of an mma."""

_LONG = 4096
"""Positions beyond which a context is long."""

_MOST_SPLITS = 16
"""Clusters among which a context is split at most."""


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
    """Warps of a block, units in the ring of each, most blocks of a cluster, and blocks of one of several splits.

    Rings take what the kernel before leaves room for beside them on an SM, 64 KiB. Several tokens have fewer SMs
    each, of which small clusters use more.
    """
    *_, dim = heads_of(call)
    warps = 8 if dim <= 128 else 4
    depth = max(1, 1024 // (warps * dim))
    return {
        "WARPS": (warps, 12 - warps),
        "DEPTH": (depth, *(d for d in (1, 2, 4, 8) if d != depth)),
        "CLUSTER": (8, 4),
        "SPLIT": (4, 2) if target.max_tokens == 1 else (2, 4),
    }


def _ring_bytes(call: Call, values: Mapping[str, int]) -> int:
    *_, dim = heads_of(call)
    return values["WARPS"] * values["DEPTH"] * 2 * _UNIT * (dim + 8) * 2


def _feasible(call: Call, target: Target) -> str | None:
    *_, dim = heads_of(call)
    gpu, values = GPUS[target.arch], chosen(_choices, call, target)
    rows = (MOST_HEADS + 2 * FEW_TOKENS) * (dim + 8) * 2  # queries, new keys and values
    sums = (MOST_HEADS * dim + 4 * values["CLUSTER"]) * 4
    statistics = (values["WARPS"] + values["CLUSTER"]) * MOST_HEADS * 8
    needed = _ring_bytes(call, values) + rows + sums + statistics + 8
    most = gpu.shared_per_sm - gpu.shared_reserved
    return None if needed <= most else f"a block has {most} bytes of shared memory, not {needed}"


def _constants(call: Call, target: Target) -> Mapping[str, Any]:
    values, of_heads = chosen(_choices, call, target), head_constants(call)
    clusters = of_heads["KV_HEADS"] * of_heads["HEAD_TILES"]
    short, long, splits = _sizes(values, clusters, of_heads["HEAD_DIM"], target)
    steps = [{"tokens": tokens} for tokens in range(target.min_tokens, target.max_tokens + 1)]
    counts = [evaluate(splits, step) for step in steps]
    left = [(count - 1) * clusters * step["tokens"] for count, step in zip(counts, steps, strict=True)]
    is_long = f"min(context_pages // {_LONG // PAGE + 1}, sms // {_sms_of_splits(target)}) > 0"
    return {
        **of_heads,
        "VECTOR": 8,
        **values,
        "THREADS": 32 * values["WARPS"],
        "BLOCKS": f"{long} if {is_long} else {short}",
        "Z": f"({long} * {splits} if {is_long} else {short})",
        "LEFT": max(1, *left),
        "SHARED": _ring_bytes(call, values),
        "INV_FREQ": [f"{f}f" for f in call.attrs["rope"].inv_freq(of_heads["HEAD_DIM"])],
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
        "splits.cuh",
    ),
    symbols=("max_pages",),
)
"""Rope, append and attention of a few tokens in one kernel; operands, results and attributes as for `ATTEND`."""
