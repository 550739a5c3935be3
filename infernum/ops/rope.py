"""Rotary position embedding, and what is done to keys right after it: storing them in the paged KV cache.

The cache of a layer is kv [pages, 2, kv_heads, 64, dim]: in a page of 64 positions, all keys and then all values.
The batch is ragged: see `infernum.step.Batch` for positions, sequence and page_table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.block import PAGE
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Prologue, Refusal, Target, Template, alternatives
from infernum.ir.op import Signature, elements, op
from infernum.rope import Rope

_SIGNATURE = "tokens heads dim, i32 tokens -> tokens heads dim"


def _rope_types(x: TensorType, positions: TensorType, *, rope: Rope) -> tuple[TensorType, ...]:
    types = Signature.parse(_SIGNATURE).infer("rope", ("x", "positions"), (x, positions))
    dim = x.shape[-1]
    if not isinstance(dim, int) or dim % 2:
        raise ShapeError(f"rope: x is {x}; it turns pairs of elements, so the last dim must be even")
    rope.rotary(dim)
    return types


def _pairs(x: TensorType) -> tuple[int, int]:
    """Pairs of a head that a thread turns in one access, and threads that share a head."""
    half = int(x.shape[-1]) // 2
    vector = next(v for v in (4, 2, 1) if half % v == 0)
    return vector, half // vector


def _head_lanes(x: TensorType, heads: int) -> tuple[int, ...]:
    """Heads that a block works on at a time, the default first: more threads leave too few registers for each."""
    _, pair_lanes = _pairs(x)
    return tuple(dict.fromkeys(max(1, min(heads, most // pair_lanes)) for most in (512, 256, 128)))


def _thread_constants(x: TensorType, head_lanes: int, rope: Rope) -> dict[str, Any]:
    """How a block's threads share one token: PAIR_LANES side by side in a head, HEAD_LANES heads at a time."""
    dim = x.shape[-1]
    assert isinstance(dim, int)
    vector, pair_lanes = _pairs(x)
    return {
        "HEAD_DIM": dim,
        "VECTOR": vector,
        "PAIR_LANES": pair_lanes,
        "HEAD_LANES": head_lanes,
        "THREADS": pair_lanes * head_lanes,
        "INV_FREQ": [f"{f}f" for f in rope.inv_freq(dim)],
    }


def _unlike_llama(rope: Rope) -> Refusal | None:
    """Why kernels cannot turn heads so: theirs have pairs (i, i + dim / 2), and no factors."""
    if (rope.partial, rope.interleaved, rope.attention_factor, rope.temperature) == (1, False, 1, 0):
        return None
    return Refusal(f"{rope} is not implemented in kernels")


def _rope_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    x, rope = call.operands["x"], call.attrs["rope"]
    if refusal := _unlike_llama(rope):
        yield refusal
        return
    heads = x.width // int(x.shape[-1])
    for values in alternatives(HEAD_LANES=_head_lanes(x, heads)):
        yield Layout({"HEADS": heads, **_thread_constants(x, values["HEAD_LANES"], rope)}, values)


@op(
    _SIGNATURE,
    infer=_rope_types,
    kernels=[
        Template(
            "rope",
            grid=("tokens", 1, 1),
            threads="THREADS",
            layouts=_rope_layouts,
            includes=("numeric.cuh", "programmatic.cuh", "rope.cuh"),
            symbols=(),
        )
    ],
    prologue=Prologue("Rotation", "rope.cuh", "rotation"),
    flops=lambda call: f"3 * {elements(call.operands['x'])}",
)
def rope(x: np.ndarray, positions: np.ndarray, *, rope: Rope) -> np.ndarray:
    """Turn each pair of a head's elements by an angle that grows with the position (Su et al. 2021, arXiv:2104.09864).

    x [tokens, heads, dim], positions int32 [tokens] -> [tokens, heads, dim]. `rope` says which elements pair up and how
    fast they turn; the angle is the float32 product of position and frequency, as in transformers.
    """
    return _turned(x, positions, rope, rope.inv_freq(x.shape[-1]))


def _turned(x: np.ndarray, positions: np.ndarray, rope: Rope, inv_freq: np.ndarray) -> np.ndarray:
    """x [tokens, heads, dim] and frequencies [rotary / 2] or [tokens, rotary / 2] -> x turned, like x."""
    rotary = rope.rotary(x.shape[-1])
    if rope.interleaved:
        firsts, seconds = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        firsts, seconds = slice(rotary // 2), slice(rotary // 2, rotary)
    angle = (positions[:, None].astype(np.float32) * inv_freq)[:, None]
    cos, sin = (f(angle.astype(np.float64)).astype(np.float32) for f in (np.cos, np.sin))
    cos, sin = cos * np.float32(rope.attention_factor), sin * np.float32(rope.attention_factor)
    first, second, out = x[..., firsts], x[..., seconds], x.copy()
    out[..., firsts], out[..., seconds] = first * cos - second * sin, second * cos + first * sin
    return out * rope.temperatures(positions)[:, None, None] if rope.temperature else out


def _append_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    k = call.operands["k"]
    kv_heads, dim = int(k.shape[1]), int(k.shape[2])
    vector = next(v for v in (8, 4, 2, 1) if v * k.dtype.bytes <= 16 and dim % v == 0)
    threads = min(256, -(-kv_heads * dim // vector // 32) * 32)
    yield Layout({"KV_HEADS": kv_heads, "HEAD_DIM": dim, "VECTOR": vector, "THREADS": threads})


@op(
    "pages 2 kv_heads 64 dim, tokens kv_heads dim, tokens kv_heads dim, i32 tokens, i32 tokens, i32 seqs max_pages"
    " -> pages 2 kv_heads 64 dim",
    kernels=[
        Template(
            "append",
            grid=("tokens", 1, 1),
            threads="THREADS",
            layouts=_append_layouts,
            includes=("numeric.cuh", "programmatic.cuh", "copy.cuh", "kv_cache.cuh"),
            symbols=("max_pages",),
        )
    ],
    in_place={0: 0},
    moved_bytes=lambda call: {
        "kv": f"{2 * call.operands['k'].width * call.operands['k'].dtype.bytes} * tokens"
    },
)
def append(
    kv: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    positions: np.ndarray,
    sequence: np.ndarray,
    page_table: np.ndarray,
) -> np.ndarray:
    """Store the keys and values of new tokens in the paged cache (Kwon et al. 2023, arXiv:2309.06180).

    kv [pages, 2, kv_heads, 64, dim], k and v [tokens, kv_heads, dim], positions and sequence int32 [tokens],
    page_table int32 [seqs, max_pages] -> kv, changed in place. Token t goes to row positions[t] % 64 of page
    page_table[sequence[t], positions[t] // 64].
    """
    page, row = page_table[sequence, positions // PAGE], positions % PAGE
    kv[page, 0, :, row] = k
    kv[page, 1, :, row] = v
    return kv


def head_slots_refusal(call: Call, turned_by: int) -> Refusal | None:
    """Why a kernel cannot compute what it should on the heads of queries and keys while it reads them."""
    rows = [row for slot in call.prologues.values() for row in slot]
    rotations = [row for row in rows if row.prologue.kind == "rotation"]
    for row in rotations:
        if row.operands["positions"] != "positions":
            return Refusal(f"{row.op} turns by other positions than those of the kernel's tokens")
        if refusal := _unlike_llama(row.attrs["rope"]):
            return refusal
        if row.attrs != rotations[0].attrs:
            return Refusal(
                "queries and keys are turned by different frequencies, and the kernel has one table"
            )
    norms = [row for row in rows if row.prologue.kind == "norm"]
    if norms and 32 % turned_by:
        return Refusal(f"a head is held by {turned_by} threads, which cannot sum it within one warp")
    if any(row.prologue != norms[0].prologue for row in norms):
        return Refusal("queries and keys are normalised by different ops, and the kernel has one")
    return None


def inv_freq(call: Call, dim: int) -> list[str]:
    """The frequencies that queries or keys are turned by, as C literals; none where nothing is turned."""
    for slot in call.prologues.values():
        for row in slot:
            if row.prologue.kind == "rotation":
                rope: Rope = row.attrs["rope"]
                return [f"{f}f" for f in rope.inv_freq(dim)]
    return []


def _rope_append_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    q, k = call.operands["q"], call.operands["k"]
    if q.shape[-1] != k.shape[-1]:
        yield Refusal(f"q is {q} and k {k}: one kernel has one head size")
        return
    heads, kv_heads = q.width // int(q.shape[-1]), k.width // int(k.shape[-1])
    _, pair_lanes = _pairs(q)
    if refusal := _unlike_llama(call.attrs["rope"]) or head_slots_refusal(call, pair_lanes):
        yield refusal
        return
    for values in alternatives(HEAD_LANES=_head_lanes(q, heads + 2 * kv_heads)):
        shared = _thread_constants(q, values["HEAD_LANES"], call.attrs["rope"])
        yield Layout({"HEADS": heads, "KV_HEADS": kv_heads, **shared}, values)


ROPE_APPEND = Template(
    "rope_append",
    layouts=_rope_append_layouts,
    grid=("tokens", 1, 1),
    threads="THREADS",
    includes=("numeric.cuh", "programmatic.cuh", "rope.cuh", "heads.cuh", "kv_cache.cuh"),
    row_ops={"q": ("norm",), "k": ("norm",)},
    symbols=("max_pages",),
)
"""Queries and keys turned, keys and values stored in the cache, in one launch.

Operands q [tokens, heads, dim], k and v [tokens, kv_heads, dim], positions, kv, sequence and page_table as for
`append`; results q_out, like q, and kv in place. The attribute `rope` is that of both turns. Queries and keys may be
normalised on the way.
"""
