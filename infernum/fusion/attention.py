"""Rules around attention, where kernels of their own do what several ops say."""

from __future__ import annotations

from infernum import ops
from infernum.ir.block import Tensor
from infernum.ir.rewrite import fusion
from infernum.ops.attention_cluster import ATTEND_CLUSTER
from infernum.ops.attention_split import ATTEND
from infernum.ops.rope import ROPE_APPEND
from infernum.rope import Rope


@fusion(
    why="A few tokens are stored and attended to by one kernel, which reads the cache before q is known.",
    kernels=[ATTEND_CLUSTER, ATTEND],
    results=["out", "kv_out"],
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
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    cache = ops.append(kv, k, v, positions, sequence, page_table)
    facts = positions, sequence, query_start, page_table
    return ops.attention(q, cache, *facts, scale=scale, window=window, softcap=softcap), cache


@fusion(
    why="Queries and keys are rotated, and keys and values put into the cache, in one pass over them.",
    kernels=[ROPE_APPEND],
    results=["q_out", "kv_out"],
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
    key_rope: Rope,
) -> tuple[Tensor, Tensor]:
    rotated = ops.rope(k, positions, rope=key_rope)
    return ops.rope(q, positions, rope=rope), ops.append(kv, rotated, v, positions, sequence, page_table)
