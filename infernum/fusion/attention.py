"""Rules around attention."""

from __future__ import annotations

from infernum import ops
from infernum.ir.block import Tensor
from infernum.ir.rewrite import Site, fusion
from infernum.ops.rope import ROPE_APPEND
from infernum.rope import Rope


def _one_head_size(site: Site) -> str | None:
    q, k = site.type("q"), site.type("k")
    return None if q.shape[-1] == k.shape[-1] else f"q is {q} and k {k}: one kernel has one head size"


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
