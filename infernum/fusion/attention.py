"""Rules around attention."""

from __future__ import annotations

from infernum import ops
from infernum.ir.block import Tensor
from infernum.ir.rewrite import Site, fusion
from infernum.ops.attention_cluster import ATTEND_CLUSTER
from infernum.ops.attention_split import ATTEND, attend_limits
from infernum.ops.rope import ROPE_APPEND
from infernum.rope import Rope


def _one_head_size(site: Site) -> str | None:
    q, k = site.type("q"), site.type("k")
    return None if q.shape[-1] == k.shape[-1] else f"q is {q} and k {k}: one kernel has one head size"


def _few_tokens(site: Site) -> str | None:
    refusal = _one_head_size(site)
    if refusal:
        return refusal
    k = site.type("k")
    refusal = attend_limits(int(k.shape[-1]), site.target.max_tokens)
    return f"k is {k}: {refusal}" if refusal else None


@fusion(
    why="A few tokens are turned, stored and attended to by one kernel, which reads the cache before q is known.",
    kernels=[ATTEND_CLUSTER, ATTEND],
    results=["out", "kv_out"],
    when=_few_tokens,
)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    positions: Tensor,
    sequence: Tensor,
    query_start: Tensor,
    page_table: Tensor,
    *,
    rope: Rope,
    scale: float,
) -> tuple[Tensor, Tensor]:
    rotated = ops.rope(k, positions, rope=rope)
    cache = ops.append(kv, rotated, v, positions, sequence, page_table)
    turned = ops.rope(q, positions, rope=rope)
    return ops.attention(turned, cache, positions, sequence, query_start, page_table, scale=scale), cache


@fusion(
    why="Queries and keys are rotated, and keys and values put into the cache, in one pass over them.",
    kernels=[ROPE_APPEND],
    results=["q_out", "kv_out"],
    when=_one_head_size,
)
def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    positions: Tensor,
    sequence: Tensor,
    page_table: Tensor,
    *,
    rope: Rope,
) -> tuple[Tensor, Tensor]:
    rotated = ops.rope(k, positions, rope=rope)
    return ops.rope(q, positions, rope=rope), ops.append(kv, rotated, v, positions, sequence, page_table)
