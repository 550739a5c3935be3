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
from infernum.ir.kernel import Call, Target, Template, Workspace, chosen
from infernum.ir.op import Signature, op
from infernum.roofline import GPUS

FEW_TOKENS = 8
"""Up to so many tokens, one kernel turns, stores and attends: new keys come from the step and not from the cache."""

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


def _wgmma_refusal(call: Call, target: Target) -> str | None:
    heads, kv_heads, dim = _heads(call)
    if refused := _prefill_refusal(call, target):
        return refused
    if target.arch != 90:
        return "wgmma is an instruction of Hopper (sm_90a) only"
    if dim not in (64, 128):
        return f"head size {dim} is not that of one or two tiles of 64 columns"
    if heads // kv_heads > 64:
        return f"{heads // kv_heads} query heads to a key head are more than the 64 rows of a warpgroup"
    return None


def _wgmma_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """Warpgroups that multiply, keys of a block, blocks held at once, and whether warpgroups multiply in turn."""
    del target
    *_, dim = _heads(call)
    if dim == 64:
        return {"MULTIPLYING": (3, 2), "KEYS": (128, 64), "SLOTS": (3, 2, 4), "TAKE_TURNS": (1, 0)}
    return {"MULTIPLYING": (2, 3), "KEYS": (128, 64), "SLOTS": (2, 3), "TAKE_TURNS": (1, 0)}


def _wgmma_bytes(call: Call, target: Target) -> int:
    """Shared memory of a block: its queries, the ring of keys, the ring of values, and two barriers for each slot."""
    *_, dim = _heads(call)
    values = chosen(_wgmma_choices, call, target)
    rows, slots = values["MULTIPLYING"] * 64, values["SLOTS"]
    return (rows + 2 * slots * values["KEYS"]) * dim * 2 + 2 * slots * 2 * 8


def _wgmma_feasible(call: Call, target: Target) -> str | None:
    *_, dim = _heads(call)
    values = chosen(_wgmma_choices, call, target)
    if dim == 128 and values["MULTIPLYING"] == 3 and values["KEYS"] == 128:
        return "a thread of three warpgroups has 160 registers, which scores, weights and sums take up"
    gpu = GPUS[target.arch]
    needed, most = _wgmma_bytes(call, target), gpu.shared_per_sm - gpu.shared_reserved
    return None if needed <= most else f"a block has {most} bytes of shared memory, not {needed}"


def _wgmma_constants(call: Call, target: Target) -> Mapping[str, Any]:
    """The warpgroup that loads gives up registers, in eights, to those that multiply."""
    heads, kv_heads, dim = _heads(call)
    values = chosen(_wgmma_choices, call, target)
    multiplying, group = values["MULTIPLYING"], heads // kv_heads
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": dim,
        **values,
        "QUERIES": multiplying * 64 // group,
        "THREADS": 128 * (multiplying + 1),
        "LOADING_REGISTERS": 40 if multiplying == 2 else 32,
        "MULTIPLYING_REGISTERS": 232 if multiplying == 2 else 160,
        "SHARED_BYTES": _wgmma_bytes(call, target),
    }


def _split_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """Warps of a block, splits of a context, and positions that a split has at least.

    A few tokens: as was fastest on an H200. More: as many splits as give every SM of the architecture a block.
    """
    heads, kv_heads, dim = _heads(call)
    warps = (8, 4) if dim <= 128 else (4,)
    if target.max_tokens > 64:
        return {"WARPS": warps, "SPLITS": (1,)}
    if target.max_tokens <= FEW_TOKENS:
        narrow = dim <= 64
        first = (32 if narrow else 64) * (1 if target.max_tokens == 1 else 2)
        least = (first, *(each for each in (32, 64, 128) if each != first))
        return {"WARPS": (4, 8) if narrow else warps, "SPLITS": (64, 32, 16), "LEAST": least}
    blocks = kv_heads * -(-heads // kv_heads // 8) * target.min_tokens
    return {"WARPS": warps, "SPLITS": (max(4, min(32, GPUS[target.arch].sms // blocks)), 4, 8, 16, 24, 32)}


def _split_constants(call: Call, target: Target) -> Mapping[str, Any]:
    """How a block of the split kernel is laid out; each lane holds at most 8 elements of a row of keys."""
    heads, kv_heads, dim = _heads(call)
    group = heads // kv_heads
    head_tiles = -(-group // 8)
    widest = 16 // call.operands["q"].dtype.bytes
    vector = next(v for v in (8, 4, 2) if v <= widest and dim % v == 0)
    lanes = next((n for n in (1, 2, 4, 8, 16) if n * vector >= dim), 32)
    values = chosen(_split_choices, call, target)
    warps = values["WARPS"]
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
        "SPLITS": values["SPLITS"],
        "SPLIT_MIN": values.get("LEAST", warps * (32 // lanes)),
        "COMBINE_WARPS": -(-dim // 32),
        "COMBINE_GROUPS": min(4, values["SPLITS"]),
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


def _attend_constants(call: Call, target: Target) -> Mapping[str, Any]:
    *_, dim = _heads(call)
    return {**_split_constants(call, target), "INV_FREQ": [f"{f}f" for f in call.attrs["rope"].inv_freq(dim)]}


def attend_refusal(call: Call, target: Target) -> str | None:
    """Why one kernel cannot turn, store and attend; None when it can."""
    if target.max_tokens > FEW_TOKENS:
        return f"new keys of up to {FEW_TOKENS} tokens fit into a block, and a step has up to {target.max_tokens}"
    *_, dim = _heads(call)
    threads = _split_constants(call, target)["THREADS"]
    if threads % (dim // 2):
        return f"{threads} threads do not share out the {dim // 2} pairs of a head of {dim} evenly"
    return _split_refusal(call, target)


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

ATTEND = Template(
    "attend",
    grid=_SPLIT_GRID,
    block="THREADS",
    when=attend_refusal,
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


@op(
    _SIGNATURE,
    infer=_attention_types,
    kernels=[
        Template(
            "attention_prefill_wgmma",
            grid=("KV_HEADS", "tokens // QUERIES + seqs", 1),
            block="THREADS",
            shared_bytes="SHARED_BYTES",
            when=_wgmma_refusal,
            constants=_wgmma_constants,
            choices=_wgmma_choices,
            feasible=_wgmma_feasible,
            includes=(
                "numeric.cuh",
                "programmatic.cuh",
                "kv_cache.cuh",
                "softmax.cuh",
                "mma.cuh",
                "attention_prefill.cuh",
                "wgmma.cuh",
                "attention_prefill_wgmma.cuh",
            ),
            symbols=("seqs", "max_pages"),
        ),
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
