"""Causal attention over the paged KV cache.

The batch is ragged: see `infernum.step.Batch` for positions, sequence, query_start and page_table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.block import PAGE
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call
from infernum.ir.op import Signature, op
from infernum.ops.attention_prefill import PREFILL, PREFILL_WGMMA
from infernum.ops.attention_split import SPLIT, heads_of

_SCORES = 1 << 22
"""Attention scores that the NumPy meaning holds at once, which bounds its memory on long prompts."""

_PARAMS = ("q", "kv", "positions", "sequence", "query_start", "page_table")
_SIGNATURE = (
    "tokens heads dim, pages 2 kv_heads 64 dim, i32 tokens, i32 tokens, i32 starts, i32 seqs max_pages"
    " -> tokens heads dim"
)


def _attention_types(
    *types: TensorType, scale: float, window: int = 0, softcap: float = 0.0
) -> tuple[TensorType, ...]:
    del scale
    if window < 0 or softcap < 0:
        raise ShapeError(
            f"attention: window = {window} and softcap = {softcap} must not be negative; 0 is none"
        )
    result = Signature.parse(_SIGNATURE).infer("attention", _PARAMS, types)
    heads, kv_heads = types[0].shape[1], types[1].shape[2]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads == 0):
        raise ShapeError(
            f"attention: q has {heads} heads, which do not divide among the {kv_heads} heads of kv"
        )
    return result


def _attention_flops(call: Call) -> str:
    """A product with the keys and one with the values, for every query head and attended position."""
    heads, _, dim = heads_of(call)
    window = call.attrs["window"]
    return f"{4 * heads * dim} * {f'min(attended, {window} * tokens)' if window else 'attended'}"


def _attention_moved_bytes(call: Call) -> Mapping[str, str]:
    _, kv_heads, dim = heads_of(call)
    window = call.attrs["window"]
    cached = f"min(cached, (tokens + {window - 1} * seqs))" if window else "cached"
    return {"kv": f"{2 * kv_heads * dim * call.operands['kv'].dtype.bytes} * {cached}"}


@op(
    _SIGNATURE,
    infer=_attention_types,
    kernels=[PREFILL_WGMMA, PREFILL, SPLIT],
    flops=_attention_flops,
    moved_bytes=_attention_moved_bytes,
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
    window: int = 0,
    softcap: float = 0.0,
) -> np.ndarray:
    """Causal softmax attention over the paged cache, heads in groups (Ainslie et al. 2023, arXiv:2305.13245).

    q [tokens, heads, dim], kv [pages, 2, kv_heads, 64, dim] with the new tokens already in it, positions and sequence
    int32 [tokens], query_start int32 [seqs + 1], page_table int32 [seqs, max_pages] -> [tokens, heads, dim].

    The token at position p attends to positions 0 … p of its sequence, with a `window` only to the last `window` of
    them; query head h reads head h // (heads / kv_heads) of the cache. Scores are multiplied by `scale`; then, with a
    `softcap`, they become softcap · tanh(score / softcap). The softmax is in float32.
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
                since = max(0, int(positions[first]) + 1 - window) if window else 0
                scores = _scores(q[rows, grouped], keys[since:], scale, softcap)
                weights = _causal_softmax(scores, positions[rows] - since, group, window)
                out[rows, grouped] = (weights @ values[since:]).reshape(-1, group, dim)
    return out


def _scores(q: np.ndarray, keys: np.ndarray, scale: float, softcap: float) -> np.ndarray:
    """q [tokens, group, dim], keys [context, dim] -> [tokens * group, context]."""
    scores = (q.reshape(-1, q.shape[-1]) @ keys.T) * np.float32(scale)
    return np.float32(softcap) * np.tanh(scores / np.float32(softcap)) if softcap else scores


def _causal_softmax(scores: np.ndarray, positions: np.ndarray, group: int, window: int) -> np.ndarray:
    """Scores [tokens * group, context] and positions [tokens] within the context -> weights like the scores."""
    context = scores.shape[1]
    if len(positions) > 1 or positions[0] + 1 < context:
        ahead = np.arange(context, dtype=np.int32) - np.repeat(positions, group)[:, None]
        scores[(ahead > 0) | (ahead <= -window) if window else ahead > 0] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
