"""Causal attention over the paged KV cache.

The batch is ragged: see `infernum.runtime.batch.Batch` for positions, sequence, query_start and page_table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.block import PAGE
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Target, Template, Workspace
from infernum.ir.op import Signature, op

_SCORES = 1 << 22
"""Attention scores that the NumPy meaning holds at once, which bounds its memory on long prompts."""

_PARAMS = ("q", "kv", "positions", "sequence", "query_start", "page_table")
_SIGNATURE = (
    "tokens heads dim, pages 2 kv_heads 64 dim, i32 tokens, i32 tokens, i32 starts, i32 seqs max_pages"
    " -> tokens heads dim"
)


def _attention_types(*types: TensorType, scale: float) -> tuple[TensorType, ...]:
    del scale
    result = Signature.parse(_SIGNATURE).infer("attention", _PARAMS, types)
    heads, kv_heads = types[0].shape[1], types[1].shape[2]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads == 0):
        raise ShapeError(
            f"attention: q has {heads} heads, which do not divide among the {kv_heads} heads of kv"
        )
    return result


def _heads(call: Call) -> tuple[int, int, int]:
    """(heads, kv_heads, dim) of an attention call."""
    q, kv = call.operands["q"], call.operands["kv"]
    return int(q.shape[1]), int(kv.shape[2]), int(q.shape[2])


def _prefill_refusal(call: Call, target: Target) -> str | None:
    heads, kv_heads, dim = _heads(call)
    dtype = call.operands["q"].dtype
    if target.max_tokens <= 64:
        return f"with at most {target.max_tokens} tokens, splitting the context keeps more of the GPU busy"
    if dtype.bytes != 2:
        return f"tensor cores multiply bf16 and f16 here, not {dtype}"
    if dim % 16 or dim > 256:
        return f"head size {dim} is not a multiple of 16 up to 256"
    group, rows = heads // kv_heads, _prefill_rows(dim, target)
    if group > rows:
        return f"{group} query heads to a key head are more than the {rows} rows of a tile"
    return None


def _prefill_rows(dim: int, target: Target) -> int:
    """Rows of queries to a block of four warps. 32 to a warp, where registers allow, read shared memory half as often.

    At head sizes above 96 only the compiler for Hopper fits them in 255 registers.
    """
    return 128 if dim <= 96 or (dim <= 128 and target.arch == 90) else 64


def _prefill_constants(call: Call, target: Target) -> Mapping[str, Any]:
    heads, kv_heads, dim = _heads(call)
    rows, group, padded = _prefill_rows(dim, target), heads // kv_heads, dim + 8
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": dim,
        "ROWS": rows,
        "QUERIES": rows // group,
        "SHARED_BYTES": (rows + 2 * PAGE) * padded * 2,
    }


def _split_constants(call: Call, target: Target) -> Mapping[str, Any]:
    """How a block of the split kernel is laid out; each lane holds at most 8 elements of a row of keys."""
    heads, kv_heads, dim = _heads(call)
    group = heads // kv_heads
    head_tiles = -(-group // 8)
    widest = 16 // call.operands["q"].dtype.bytes
    vector = next(v for v in (8, 4, 2) if v <= widest and dim % v == 0)
    lanes = next((n for n in (1, 2, 4, 8, 16) if n * vector >= dim), 32)
    warps = 8 if dim <= 128 else 4
    if target.max_tokens <= 64:
        blocks = kv_heads * head_tiles * target.min_tokens
        splits = max(4, min(32, 132 // blocks))
    else:
        splits = 1
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_TILE": -(-group // head_tiles),
        "HEAD_TILES": head_tiles,
        "HEAD_DIM": dim,
        "VECTOR": vector,
        "LANES": lanes,
        "CHUNKS": -(-dim // (lanes * vector)),
        "WARPS": warps,
        "THREADS": 32 * warps,
        "SPLITS": splits,
        "SPLIT_MIN": warps * (32 // lanes),
        "COMBINE_THREADS": -(-dim // 32) * 32,
    }


def _split_refusal(call: Call, target: Target) -> str | None:
    del target
    *_, dim = _heads(call)
    return None if dim % 2 == 0 and dim <= 256 else f"head size {dim} is not an even number up to 256"


def _attention_flops(call: Call) -> str:
    """A product with the keys and one with the values, for every query head and attended position."""
    heads, _, dim = _heads(call)
    return f"{4 * heads * dim} * attended"


def _attention_touched(call: Call) -> Mapping[str, str]:
    _, kv_heads, dim = _heads(call)
    return {"kv": f"{2 * kv_heads * dim * call.operands['kv'].dtype.bytes} * cached"}


_WORKSPACES = (
    Workspace("partial_out", ("tokens", "HEADS", "SPLITS", "HEAD_DIM")),
    Workspace("partial_stats", ("tokens", "HEADS", "SPLITS", 2)),
)


@op(
    _SIGNATURE,
    infer=_attention_types,
    kernels=[
        Template(
            "attention_prefill",
            grid=("KV_HEADS", "tokens // QUERIES + seqs", 1),
            block=128,
            shared_bytes="SHARED_BYTES",
            when=_prefill_refusal,
            constants=_prefill_constants,
            includes=(
                "numeric.cuh",
                "programmatic.cuh",
                "kv_cache.cuh",
                "softmax.cuh",
                "mma.cuh",
                "attention_prefill.cuh",
            ),
            symbols=("seqs", "max_pages"),
        ),
        Template(
            "attention_split",
            grid=("tokens", "KV_HEADS * HEAD_TILES", "SPLITS"),
            block="THREADS",
            when=_split_refusal,
            constants=_split_constants,
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
            then=Template(
                "attention_combine",
                grid=("tokens", "HEADS", 1),
                block="COMBINE_THREADS",
                constants=_split_constants,
                includes=("numeric.cuh", "programmatic.cuh", "softmax.cuh", "attention_split.cuh"),
                takes=("positions", "out", "partial_out", "partial_stats"),
                symbols=(),
            ),
        ),
    ],
    flops=_attention_flops,
    touched=_attention_touched,
)
def attention(
    q: np.ndarray,
    kv: np.ndarray,
    positions: np.ndarray,
    sequence: np.ndarray,
    query_start: np.ndarray,
    page_table: np.ndarray,
    *,
    scale: float,
) -> np.ndarray:
    """Causal softmax attention over the paged cache, heads in groups (Ainslie et al. 2023, arXiv:2305.13245).

    q [tokens, heads, dim], kv [pages, 2, kv_heads, 64, dim] with the new tokens already in it, positions and sequence
    int32 [tokens], query_start int32 [seqs + 1], page_table int32 [seqs, max_pages] -> [tokens, heads, dim].

    The token at position p attends to positions 0 … p of its sequence; query head h reads head
    h // (heads / kv_heads) of the cache. Scores are multiplied by `scale`; the softmax is in float32.
    """
    del sequence
    tokens, heads, dim = q.shape
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    out = np.zeros((tokens, heads, dim), np.float32)
    for pages_of_sequence, begin, end in zip(page_table, query_start[:-1], query_start[1:], strict=True):
        if begin == end:
            continue
        context = int(positions[end - 1]) + 1
        pages = pages_of_sequence[: -(-context // PAGE)]
        for head in range(kv_heads):
            grouped = slice(head * group, (head + 1) * group)
            keys = kv[pages, 0, head].reshape(-1, dim)[:context]
            values = kv[pages, 1, head].reshape(-1, dim)[:context]
            chunk = max(1, _SCORES // (context * group))
            for first in range(begin, end, chunk):
                rows = slice(first, min(first + chunk, end))
                weights = _causal_softmax(q[rows, grouped], keys, positions[rows], scale)
                out[rows, grouped] = (weights @ values).reshape(-1, group, dim)
    return out


def _causal_softmax(q: np.ndarray, keys: np.ndarray, positions: np.ndarray, scale: float) -> np.ndarray:
    """q [tokens, group, dim], keys [context, dim], positions [tokens] -> weights [tokens * group, context]."""
    tokens, group, dim = q.shape
    scores = (q.reshape(-1, dim) @ keys.T) * np.float32(scale)
    if tokens > 1 or positions[0] + 1 < len(keys):
        future = np.arange(len(keys)) > np.repeat(positions, group)[:, None]
        scores[future] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
