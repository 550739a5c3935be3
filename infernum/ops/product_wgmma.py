"""The kernel of matrix products of tens of tokens on Hopper: whole rows of tokens by warpgroups (wgmma)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infernum.dims import ceildiv
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, alternatives
from infernum.roofline import GPUS

_PANEL = 64
"""Columns of activations and weights that are loaded at once: rows of 128 bytes in shared memory."""

_MOST_ROWS = 256
"""Most rows of weights to a block: the columns of a wgmma."""

_ROWS = 64
"""Tokens of a warpgroup: the rows of a wgmma."""

_MOST_TOKENS = 128
"""Tokens of two warpgroups, whose sums leave room in the registers of an SM."""

_FOREIGN = 3
"""A byte of another block's sums takes about as long to read as so many of weights."""


def _refusal(call: Call, target: Target) -> Refusal | None:
    weight = call.operands["weight"]
    if target.arch != 90:
        return Refusal("wgmma is an instruction of Hopper (sm_90a) only")
    if weight.dtype.bytes != 2:
        return Refusal(f"tensor cores multiply bf16 and f16 here, not {weight.dtype}")
    if target.max_tokens > _MOST_TOKENS and not target.deterministic:
        most = target.max_tokens
        return Refusal(f"a block serves {_MOST_TOKENS} tokens, the variant {target.variant} up to {most}")
    if weight.width % _PANEL:
        return Refusal(f"rows of {weight.width} are not whole panels of {_PANEL} columns")
    if call.columns % 8:
        return Refusal(f"{call.columns} columns are not whole octets, of which a wgmma has several")
    return None


def _parts(call: Call) -> int:
    """Rows of weights that an output column combines: the ranges of the product that the epilogue reads."""
    return call.epilogue.parts if call.epilogue else 1


def _tile(call: Call, target: Target, split: int) -> int:
    """Output columns of a cluster of `split` blocks; 0: a block would have more rows of weights than it multiplies."""
    clusters = _clusters(target, split)
    for rounds in range(1, 17 if target.deterministic else 3):
        tile = min(8 * ceildiv(call.columns, 8 * clusters * rounds), call.columns)
        if tile * _parts(call) <= _MOST_ROWS:
            return tile
    return 0


def _clusters(target: Target, split: int) -> int:
    """Clusters of `split` blocks that the GPU has room for, one block to an SM.

    A cluster lies within a GPC, so that clusters of more than two leave some SMs over.
    """
    sms = GPUS[target.arch].sms
    return sms // split if split <= 2 else sms * 10 // 11 // split


def _tokens(target: Target) -> int:
    """Tokens of a block: whole warpgroups."""
    return min(_ROWS * ceildiv(target.max_tokens, _ROWS), _MOST_TOKENS)


def _slot_bytes(target: Target, rows: int) -> int:
    return (_tokens(target) + rows) * _PANEL * 2


def _cost(call: Call, target: Target, split: int) -> float:
    """What an SM loads, in bytes of weights, with what it reads of the sums of other blocks."""
    tile = _tile(call, target, split)
    rows = tile * _parts(call)
    panels = ceildiv(call.operands["weight"].width // _PANEL, split)
    rounds = ceildiv(ceildiv(call.columns, tile), _clusters(target, split))
    sums = _tokens(target) * rows * 4 * (split - 1) // split
    return rounds * (_slot_bytes(target, rows) * panels + _FOREIGN * sums)


def _layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Blocks of a cluster, which share the width; panels in the ring; and threads, most of which finish outputs only.

    The fewer columns there are to an SM, the more of what it loads are activations, which each block loads for itself.
    Blocks that share the width have more columns.
    """
    if refusal := _refusal(call, target):
        yield refusal
        return
    panels = call.operands["weight"].width // _PANEL
    splits = [s for s in (1, 2, 4, 8) if s <= panels and _tile(call, target, s)]
    if not splits:
        yield Refusal(f"{call.columns} columns are more than two blocks to an SM multiply")
        return
    splits.sort(key=lambda split: _cost(call, target, split))
    threads = (384, 320, 224) if _tokens(target) == _ROWS else (384, 416)
    for values in alternatives(SPLIT=splits, SLOTS=(0, 8, 7, 6, 5, 4, 3, 2), THREADS=threads):
        values["SLOTS"] = values["SLOTS"] or _most_slots(call, target, values["SPLIT"])
        constants = _constants(call, target, values)
        most = _most_shared(target)
        if constants["SHARED"] > most:
            yield Refusal(f"a block has {most} bytes of shared memory, not {constants['SHARED']}")
        else:
            yield Layout(constants, values)


def _most_shared(target: Target) -> int:
    gpu = GPUS[target.arch]
    return gpu.shared_per_sm - gpu.shared_reserved


def _most_slots(call: Call, target: Target, split: int) -> int:
    """As many panels as fit, up to 8."""
    counts = (8, 7, 6, 5, 4, 3)
    needed = {n: _constants(call, target, {"SPLIT": split, "SLOTS": n})["SHARED"] for n in counts}
    return next((n for n in counts if needed[n] <= _most_shared(target)), 2)


def _constants(call: Call, target: Target, values: Mapping[str, int]) -> dict[str, Any]:
    split, slots = values["SPLIT"], values["SLOTS"]
    tile, parts = _tile(call, target, split), _parts(call)
    tokens = _tokens(target)
    ring = slots * _slot_bytes(target, tile * parts)
    sums = tokens * (tile * parts + 32) * 4
    return {
        "TOKENS": tokens,
        "TILES": f"ceildiv(tokens, {tokens})" if target.max_tokens > tokens else 1,
        "WIDTH": call.operands["weight"].width,
        "COLUMNS": call.columns,
        "VECTOR": 8,
        "TILE": tile,
        "BLOCKS": ceildiv(call.columns, tile),
        "SHARED": max(ring, sums) + 16 * slots,
    }


PRODUCT_WGMMA = Template(
    "product_wgmma",
    grid=("BLOCKS", "TILES", "SPLIT"),
    threads="THREADS",
    shared_bytes="SHARED",
    cluster="SPLIT",
    layouts=_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "mma.cuh",
        "mbarrier.cuh",
        "cluster.cuh",
        "wgmma.cuh",
        "ring.cuh",
        "product_wgmma.cuh",
    ),
    row_ops={"x": ()},
    epilogue=True,
)
"""Tokens are the rows of a wgmma, weights its columns. The bits of a row do not depend on the number of tokens."""
