"""Rotary position embedding, and what is done to keys right after it: storing them in the paged KV cache.

The cache of a layer is kv [pages, 2, kv_heads, 64, dim]: in a page of 64 positions, all keys and then all values.
The batch is ragged: see `infernum.step.Batch` for positions, sequence and page_table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from infernum.errors import ShapeError
from infernum.ir.block import PAGE, BatchInputs, Tensor
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Prologue, Refusal, Target, Template, alternatives
from infernum.ir.op import Signature, elements, op
from infernum.rope import Rope

_SIGNATURE = "tokens heads dim, i32 tokens -> tokens heads dim"
_BY_LENGTH = "tokens heads dim, i32 tokens, i32 tokens -> tokens heads dim"


def _rope_types(x: TensorType, positions: TensorType, *, rope: Rope) -> tuple[TensorType, ...]:
    types = Signature.parse(_SIGNATURE).infer("rope", ("x", "positions"), (x, positions))
    _check_rope("rope", x, rope)
    if rope.kind == "longrope":
        raise ShapeError(
            "rope: longrope's frequencies depend on the lengths of sequences; use rope_by_length"
        )
    return types


def _rope_by_length_types(
    x: TensorType, positions: TensorType, lengths: TensorType, *, rope: Rope
) -> tuple[TensorType, ...]:
    params = ("x", "positions", "lengths")
    types = Signature.parse(_BY_LENGTH).infer("rope_by_length", params, (x, positions, lengths))
    _check_rope("rope_by_length", x, rope)
    if rope.kind != "longrope":
        raise ShapeError(f"rope_by_length: the frequencies of {rope} do not depend on lengths; use rope")
    return types


def _check_rope(op: str, x: TensorType, rope: Rope) -> None:
    dim = x.shape[-1]
    if not isinstance(dim, int) or dim % 2:
        raise ShapeError(f"{op}: x is {x}; it turns pairs of elements, so the last dim must be even")
    rope.rotary(dim)


def most_pairs(rope: Rope | None, dim: int, most: int) -> int:
    """Neighbouring pairs, at most `most`, that a thread may hold so that all of them are turned, or none."""
    turned = rope.rotary(dim) // 2 if rope else dim // 2
    return next(n for n in (4, 2, 1) if n <= most and turned % n == 0 and dim // 2 % n == 0)


def rotation_constants(rope: Rope | None, dim: int) -> dict[str, Any]:
    """The elements of a head that are turned, and the frequency of each pair of the head as a C literal.

    LongRoPE's frequencies for long sequences stand behind those for short ones; without a rotation there are none.
    """
    if rope is None:
        return {"ROTARY": dim, "INV_FREQ": []}
    tables = [
        rope.inv_freq(dim, long=long) for long in ((False, True) if rope.kind == "longrope" else (False,))
    ]
    padded = (np.pad(table, (0, dim // 2 - len(table))) for table in tables)
    return {"ROTARY": rope.rotary(dim), "INV_FREQ": [f"{f}f" for table in padded for f in table]}


def _lanes(rope: Rope, dim: int) -> tuple[int, int]:
    """Neighbouring pairs of a head that a thread turns, and threads that share a head."""
    pairs = most_pairs(rope, dim, 4)
    return pairs, dim // 2 // pairs


def _head_lanes(pair_lanes: int, heads: int) -> tuple[int, ...]:
    """Heads that a block works on at a time, the default first: more threads leave too few registers for each."""
    return tuple(dict.fromkeys(max(1, min(heads, most // pair_lanes)) for most in (512, 256, 128)))


def _thread_constants(rope: Rope, dim: int, head_lanes: int) -> dict[str, Any]:
    """How a block's threads share one token: PAIR_LANES side by side in a head, HEAD_LANES heads at a time."""
    pairs, pair_lanes = _lanes(rope, dim)
    return {
        "HEAD_DIM": dim,
        "VECTOR": 2 * pairs if rope.interleaved else pairs,
        "PAIRS": pairs,
        "PAIR_LANES": pair_lanes,
        "HEAD_LANES": head_lanes,
        "THREADS": pair_lanes * head_lanes,
        **rotation_constants(rope, dim),
    }


def _rope_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    x, rope = call.operands["x"], call.attrs["rope"]
    dim = int(x.shape[-1])
    heads = x.width // dim
    for values in alternatives(HEAD_LANES=_head_lanes(_lanes(rope, dim)[1], heads)):
        yield Layout({"HEADS": heads, **_thread_constants(rope, dim, values["HEAD_LANES"])}, values)


ROPE = Template(
    "rope",
    grid=("tokens", 1, 1),
    threads="THREADS",
    layouts=_rope_layouts,
    includes=("numeric.cuh", "programmatic.cuh", "rope.cuh"),
    reads_before_wait=("lengths",),
    symbols=(),
)
"""Heads of one tensor turned; operands and result as for `rope` and `rope_by_length`."""


@op(
    _SIGNATURE,
    infer=_rope_types,
    kernels=[ROPE],
    prologue=Prologue("Rotation", "rope.cuh", "rotation"),
    flops=lambda call: f"3 * {elements(call.operands['x'])}",
)
def rope(x: np.ndarray, positions: np.ndarray, *, rope: Rope) -> np.ndarray:
    """Turn each pair of a head's elements by an angle that grows with the position (Su et al. 2021, arXiv:2104.09864).

    x [tokens, heads, dim], positions int32 [tokens] -> [tokens, heads, dim]. `rope` says which elements pair up and how
    fast they turn; the angle is the float32 product of position and frequency, as in transformers.
    """
    return _turned(x, positions, rope, rope.inv_freq(x.shape[-1]))


@op(
    _BY_LENGTH,
    infer=_rope_by_length_types,
    kernels=[ROPE],
    prologue=Prologue("Rotation", "rope.cuh", "rotation"),
    flops=lambda call: f"3 * {elements(call.operands['x'])}",
)
def rope_by_length(x: np.ndarray, positions: np.ndarray, lengths: np.ndarray, *, rope: Rope) -> np.ndarray:
    """Turn heads as `rope` does, but long sequences by other frequencies (Ding et al. 2024, arXiv:2402.13753).

    x [tokens, heads, dim], positions and lengths int32 [tokens] -> [tokens, heads, dim]. A sequence longer than the
    original context is turned by the frequencies for long sequences.
    """
    is_long = lengths[:, None] > rope.original_max_position
    short, long = (rope.inv_freq(x.shape[-1], long=long) for long in (False, True))
    return _turned(x, positions, rope, np.where(is_long, long, short))


def turn(x: Tensor, batch: BatchInputs, by: Rope) -> Tensor:
    """The heads x turned by the positions of a step, and by the lengths of its sequences where they matter."""
    if by.kind == "longrope":
        return rope_by_length(x, batch.positions, batch.lengths, rope=by)
    return rope(x, batch.positions, rope=by)


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
    return out * rope.head_factors(positions)[:, None, None] if rope.beta else out


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
        if row.attrs["rope"].of_keys != rotations[0].attrs["rope"].of_keys:
            return Refusal(
                "queries and keys are turned by different frequencies, and the kernel has one table"
            )
        if row.operands.get("lengths") != rotations[0].operands.get("lengths"):
            return Refusal("queries and keys are turned by the lengths of different sequences")
    if any(row.attrs["rope"].beta for row in call.prologues.get("k", ()) if row in rotations):
        return Refusal("keys are scaled by position, and the kernel scales queries only")
    norms = [row for row in rows if row.prologue.kind == "norm"]
    if norms and 32 % turned_by:
        return Refusal(f"a head is held by {turned_by} threads, which cannot sum it within one warp")
    if any(row.prologue != norms[0].prologue for row in norms):
        return Refusal("queries and keys are normalised by different ops, and the kernel has one")
    return None


def rotation_of(call: Call) -> Rope | None:
    """How queries or keys are turned; None where neither are."""
    rows = (row for slot in call.prologues.values() for row in slot)
    return next((row.attrs["rope"] for row in rows if row.prologue.kind == "rotation"), None)


def _rope_append_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    q, k, rope = call.operands["q"], call.operands["k"], call.attrs["rope"]
    if q.shape[-1] != k.shape[-1]:
        yield Refusal(f"q is {q} and k {k}: one kernel has one head size")
        return
    if call.attrs["key_rope"] != rope.of_keys:
        yield Refusal("queries and keys are turned by different frequencies, and the kernel has one table")
        return
    dim = int(q.shape[-1])
    heads, kv_heads = q.width // dim, k.width // dim
    _, pair_lanes = _lanes(rope, dim)
    if refusal := head_slots_refusal(call, pair_lanes):
        yield refusal
        return
    for values in alternatives(HEAD_LANES=_head_lanes(pair_lanes, heads + 2 * kv_heads)):
        shared = _thread_constants(rope, dim, values["HEAD_LANES"])
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
`append`; results q_out, like q, and kv in place. Queries and keys may be normalised on the way. The attribute
`key_rope` is how keys are turned: as queries are by `rope`, but without `beta`.
"""
