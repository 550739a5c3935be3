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
from infernum.ops.attention_split import SPLIT, UNITS, heads_of

_SCORES = 1 << 17
"""Attention scores that the NumPy meaning holds at once: 512 KiB, which stay in cache on long prompts."""

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
    kernels=[PREFILL_WGMMA, PREFILL, UNITS, SPLIT],
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

    Row-invariant: the bits of a token's result depend on its query and the positions that it attends to, not on what
    else is in the batch. Every product is of one token and one page, and pages are added in order.
    """
    del sequence
    heads, dim = q.shape[1:]
    kv_heads = kv.shape[2]
    grouped = q.reshape(-1, 1, kv_heads, heads // kv_heads, dim)
    out = np.zeros(q.shape, np.float32)
    for pages_of_sequence, begin, end in zip(page_table, query_start[:-1], query_start[1:], strict=True):
        if begin == end:
            continue
        context = int(positions[end - 1]) + 1
        oldest = _first_page(int(positions[begin]), window)
        cached = kv[pages_of_sequence[oldest : -(-context // PAGE)]]
        # What was never written may be NaN, and 0 · NaN is NaN.
        cached[-1, 1, :, (context - 1) % PAGE + 1 :] = 0
        chunk = max(1, _SCORES // (len(cached) * heads * PAGE))
        for first in range(begin, end, chunk):
            rows = slice(first, min(first + chunk, end))
            since = _first_page(int(positions[first]), window)
            until = int(positions[rows.stop - 1]) // PAGE + 1
            keys, values = cached[since - oldest : until - oldest].swapaxes(0, 1)
            scores = _scores(grouped[rows], keys, scale, softcap)
            _mask(scores, positions[rows] - since * PAGE, window)
            out[rows] = _weighted(scores, values).reshape(-1, heads, dim)
    return out


def _first_page(position: int, window: int) -> int:
    """The first page that a token attends to, by its number within the sequence."""
    return max(0, position + 1 - window) // PAGE if window else 0


def _scores(q: np.ndarray, keys: np.ndarray, scale: float, softcap: float) -> np.ndarray:
    """q [tokens, 1, kv_heads, group, dim], keys [pages, kv_heads, 64, dim] -> [tokens, pages, kv_heads, group, 64]."""
    scores = (q @ keys.swapaxes(-1, -2)) * np.float32(scale)
    return np.float32(softcap) * np.tanh(scores / np.float32(softcap)) if softcap else scores


def _mask(scores: np.ndarray, positions: np.ndarray, window: int) -> None:
    """Set to -inf what tokens at `positions`, counted from the first page, do not attend to."""
    slots = np.arange(scores.shape[1] * PAGE, dtype=np.int32)
    ahead = slots.reshape(-1, 1, 1, PAGE) - positions.reshape(-1, 1, 1, 1, 1)
    np.copyto(scores, -np.inf, where=(ahead > 0) | (ahead <= -window) if window else ahead > 0)


def _weighted(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values, [pages, kv_heads, 64, dim], weighted by the softmax of the scores -> [tokens, kv_heads, group, dim].

    Sums run over the positions of a page, then over the pages in order. Masked positions and pages add zeros.
    """
    scores -= scores.max(axis=(1, 4), keepdims=True)
    weights = np.exp(scores, out=scores)
    total = weights.sum(axis=4).cumsum(axis=1)[:, -1]  # cumsum adds in order also where there is one head
    return (weights @ values).sum(axis=1) / total[..., None]
