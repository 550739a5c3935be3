"""The kernels of attention of single tokens: the context split among blocks, whose sums a second kernel adds up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from infernum.ir.block import PAGE
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, Workspace, alternatives
from infernum.ops.rope import head_slots_refusal, rotation_constants, rotation_of
from infernum.roofline import GPUS

FEW_TOKENS = 8
"""Up to so many tokens, one kernel turns, stores and attends: new keys come from the step and not from the cache."""


MOST_HEADS = 8
"""Query heads of one key head that a block attends for at most: on tensor cores, the columns of an mma."""

HEAD_SLOTS = {"q": ("norm", "rotation"), "k": ("norm", "rotation")}
"""What a kernel that stores keys and attends computes while it reads queries and keys."""

_WHOLE = 4096
"""Positions of a context that one block attends to, where there are two such blocks for each SM."""

UNIT = 16
"""Positions that a warp attends to at once on tensor cores: the rows of an mma."""

_BLOCKS_PER_SM = 2
"""Blocks for each SM that splits are to give. Four took longer: 4 µs at 16 sequences of 640 positions (8B, H200)."""

_LEAST_THREADS = 128
"""Threads of the smallest block: four warps."""


def heads_of(call: Call) -> tuple[int, int, int]:
    """(heads, kv_heads, dim) of an attention call."""
    q, kv = call.operands["q"], call.operands["kv"]
    return int(q.shape[1]), int(kv.shape[2]), int(q.shape[2])


def head_constants(call: Call) -> dict[str, int]:
    """The heads of an attention call for a kernel whose blocks attend for up to 8 query heads of one key head."""
    heads, kv_heads, dim = heads_of(call)
    group = heads // kv_heads
    tiles = -(-group // MOST_HEADS)
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_TILE": -(-group // tiles),
        "HEAD_TILES": tiles,
        "HEAD_DIM": dim,
    }


def _split_parameters(call: Call, target: Target) -> Iterator[dict[str, int]]:
    """Warps of a block, splits of a context, and positions that a split has at least.

    A few tokens: as was fastest on an H200. More: as many splits as give every SM of the architecture a block.
    Decodes of hundreds: a context is split only beyond so many positions that its blocks would outlast the others.
    """
    heads, kv_heads, dim = heads_of(call)
    warps = (8, 4) if dim <= 128 else (4,)
    if target.decodes:
        blocks = kv_heads * -(-heads // kv_heads // MOST_HEADS) * target.min_tokens
        least = max(256, _WHOLE // -(-2 * GPUS[target.arch].sms // blocks))
        others = (each for each in (256, 1024, 4096) if each != least)
        return alternatives(WARPS=warps, SPLITS=(8,), LEAST=(least, *others))
    if target.max_tokens > 64:
        return alternatives(WARPS=warps, SPLITS=(1,))
    if target.max_tokens <= FEW_TOKENS:
        narrow = dim <= 64
        first = (32 if narrow else 64) * (1 if target.max_tokens == 1 else 2)
        least = (first, *(each for each in (32, 64, 128) if each != first))
        return alternatives(WARPS=(4, 8) if narrow else warps, SPLITS=(64, 32, 16), LEAST=least)
    blocks = kv_heads * -(-heads // kv_heads // MOST_HEADS) * target.min_tokens
    most = max(4, min(32, GPUS[target.arch].sms // blocks))
    return alternatives(WARPS=warps, SPLITS=(most, 4, 8, 16, 24, 32))


def _split_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """How a block of the split kernel is laid out; each lane holds at most 8 elements of a row of keys."""
    *_, dim = heads_of(call)
    if dim % 2 or dim > 256:
        yield Refusal(f"head size {dim} is not an even number up to 256")
        return
    if target.deterministic:
        yield Refusal("decodes alone and beside prompts would have other sums")
        return
    widest = 16 // call.operands["q"].dtype.bytes
    vector = next(v for v in (8, 4, 2) if v <= widest and dim % v == 0)
    lanes = next((n for n in (1, 2, 4, 8, 16) if n * vector >= dim), 32)
    constants = {
        **head_constants(call),
        "VECTOR": vector,
        "LANES": lanes,
        "CHUNKS": -(-dim // (lanes * vector)),
        "COMBINE_WARPS": -(-dim // 32),
    }
    context = _context(target)
    for values in _split_parameters(call, target):
        warps, splits = values["WARPS"], values["SPLITS"]
        least = values.get("LEAST", warps * (32 // lanes))
        of_values = {
            "THREADS": 32 * warps,
            "SPLIT_MIN": least,
            "SPLIT_COUNT": "SPLITS",
            "COMBINED": constants["HEADS"],
            "COMBINE_GROUPS": 1 if target.decodes else min(4, splits),
            "BY_SEQUENCE": 0,
            "Z": f"min({splits}, ceildiv({context}, {least}))",
        }
        yield Layout(constants | of_values, values)


def _context(target: Target) -> str:
    """Positions of the longest context, as a formula."""
    return f"{'context_pages' if target.decodes else 'max_pages'} * {PAGE}"


def _unit_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Warps of a block, and units of 16 positions in the ring of each: what lets two blocks or more share an SM."""
    if target.max_tokens <= FEW_TOKENS or (target.max_tokens > 64 and not target.decodes):
        yield Refusal("it serves decodes of ten to hundreds of sequences")
        return
    yield from _layouts_of_units(call, target)


def _single_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """As in a step of nothing but decodes, so that a token has the same sums in both."""
    for layout in _layouts_of_units(call, replace(target, decodes=True)):
        if isinstance(layout, Layout):
            layout = replace(layout, constants={**layout.constants, "BY_SEQUENCE": 1})
        yield layout


def _layouts_of_units(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    *_, dim = heads_of(call)
    gpu = GPUS[target.arch]
    if call.operands["q"].dtype.bytes != 2:
        yield Refusal(f"tensor cores multiply bf16 and f16 here, not {call.operands['q'].dtype}")
        return
    if dim % 16 or dim > 256:
        yield Refusal(f"head size {dim} is not a multiple of 16 up to 256")
        return
    depth = max(2, min(4, 384 // dim))
    split = next(_split_parameters(call, target))
    of_heads = head_constants(call)
    if target.decodes:
        splits, least, count, most = split["SPLITS"], split["LEAST"], "SPLITS", f"{split['SPLITS']}"
    else:  # as many splits as give every SM some blocks; a kernel sees the number of tokens in its grid
        splits, least = 8, 128
        blocks = _BLOCKS_PER_SM * gpu.sms // (of_heads["KV_HEADS"] * of_heads["HEAD_TILES"])
        count = f"max(1, min(SPLITS, {blocks} / int(gridDim.x)))"
        most = f"max(1, min({splits}, {blocks} // tokens))"
    z = f"min({most}, ceildiv({_context(target)}, {least}))"
    for values in alternatives(WARPS=(4, 8, 2), DEPTH=(depth, *(d for d in (2, 3, 4, 6) if d != depth))):
        shared = values["WARPS"] * values["DEPTH"] * 2 * UNIT * (dim + 8) * 2
        most = gpu.shared_per_sm - gpu.shared_reserved - 16 * 1024
        if shared > most:
            yield Refusal(f"a block has {most} bytes of shared memory for its rings, not {shared}")
            continue
        constants = {
            **of_heads,
            "THREADS": 32 * values["WARPS"],
            "SHARED": shared,
            "SPLITS": splits,
            "SPLIT_MIN": least,
            "SPLIT_COUNT": count,
            "COMBINE_WARPS": -(-dim // 32),
            "COMBINE_GROUPS": 1 if target.decodes else 4,
            "COMBINED": f"{of_heads['HEADS']} * min(1, {z} - 1)",
            "Z": z,
            "BY_SEQUENCE": 0,
        }
        yield Layout(constants, values)


def attend_refusal(call: Call, target: Target, turned_by: int) -> Refusal | None:
    """Why one kernel cannot store and attend, and turn and normalise on the way.

    `turned_by`: threads side by side that hold a head between them when it is turned.
    """
    *_, dim = heads_of(call)
    if target.max_tokens > FEW_TOKENS:
        return Refusal(
            f"a block holds the new keys of up to {FEW_TOKENS} tokens, and a step has up to {target.max_tokens}"
        )
    if dim % 2 or dim // 2 > _LEAST_THREADS:
        return Refusal(f"head size {dim} is not an even number up to {2 * _LEAST_THREADS}")
    return head_slots_refusal(call, turned_by)


def _attend_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    *_, dim = heads_of(call)
    if refusal := attend_refusal(call, target, dim // 2):
        yield refusal
        return
    frequencies = rotation_constants(rotation_of(call), dim)
    for layout in _split_layouts(call, target):
        if isinstance(layout, Refusal):
            yield layout
            continue
        warps, lanes = layout.parameters["WARPS"], layout.constants["LANES"]
        at_once = warps * 32 // lanes
        yield (
            Refusal(
                f"{warps} warps read {at_once} new keys of {dim} at once, and a step may have {FEW_TOKENS}"
            )
            if at_once < FEW_TOKENS
            else Layout({**layout.constants, **frequencies}, layout.parameters)
        )


_WORKSPACES = (
    Workspace("partial_out", ("tokens", "HEADS", "SPLITS", "HEAD_DIM")),
    Workspace("partial_stats", ("tokens", "HEADS", "SPLITS", 2)),
)

_SEVERAL = "seqs if seqs > 1 else 0"
"""The sequences of a step of more than 64 tokens, where any of them may have a single one."""

_SPLIT_GRID = ("tokens", "KV_HEADS * HEAD_TILES", "Z")

_COMBINE = Template(
    "attention_combine",
    grid=("tokens", "COMBINED", 1),
    threads="32 * COMBINE_WARPS * COMBINE_GROUPS",
    includes=("numeric.cuh", "programmatic.cuh", "softmax.cuh", "scores.cuh", "attention_split.cuh"),
    reads_before_wait=("positions",),
    arguments=("positions", "out", "partial_out", "partial_stats"),
    symbols=(),
)

SPLIT = Template(
    "attention_split",
    grid=_SPLIT_GRID,
    threads="THREADS",
    layouts=_split_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "softmax.cuh",
        "scores.cuh",
        "attention_split.cuh",
    ),
    workspaces=_WORKSPACES,
    arguments=(
        "q",
        "kv",
        "positions",
        "sequence",
        "page_table",
        "partial_out",
        "partial_stats",
    ),
    symbols=("max_pages",),
    next_kernel=_COMBINE,
)
"""Queries that are turned already, over a cache that holds all keys."""

UNITS = Template(
    "attention_units",
    grid=_SPLIT_GRID,
    threads="THREADS",
    shared_bytes="SHARED",
    layouts=_unit_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "softmax.cuh",
        "scores.cuh",
        "mma.cuh",
        "copy_groups.cuh",
        "attend_cluster.cuh",
        "attention_split.cuh",
    ),
    reads_before_wait=("kv", "positions", "sequence", "query_start", "page_table"),
    reads_cached=("kv",),
    workspaces=_WORKSPACES,
    arguments=(*SPLIT.arguments, "query_start", "out"),
    symbols=("max_pages",),
    next_kernel=_COMBINE,
)
"""As `SPLIT`, on tensor cores. Where no context is split, it writes the results itself."""

SINGLES = replace(
    UNITS,
    grid=(_SEVERAL, *_SPLIT_GRID[1:]),
    layouts=_single_layouts,
    reads_before_wait=(),
    reads_cached=(),
    joins_previous=True,
    workspaces=tuple(replace(w, shape=("seqs", *w.shape[1:])) for w in _WORKSPACES),
    symbols=("max_pages",),
    next_kernel=replace(
        _COMBINE,
        grid=(_SEVERAL, "COMBINED", 1),
        reads_before_wait=(*_COMBINE.reads_before_wait, "query_start"),
        arguments=(*_COMBINE.arguments, "query_start"),
    ),
)
"""As `UNITS`, for the sequences that have one token in a step with others that have more."""

ATTEND = Template(
    "attend",
    grid=_SPLIT_GRID,
    threads="THREADS",
    layouts=_attend_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "rope.cuh",
        "heads.cuh",
        "softmax.cuh",
        "scores.cuh",
        "attention_split.cuh",
    ),
    row_ops=HEAD_SLOTS,
    reads_before_wait=("kv", "positions", "sequence", "query_start", "page_table", "lengths"),
    workspaces=_WORKSPACES,
    arguments=(
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
    next_kernel=_COMBINE,
)
"""Append and attention of a few tokens: one kernel, and one that sums the splits of the context.

Operands q [tokens, heads, dim], k and v [tokens, kv_heads, dim], positions, kv, sequence, query_start and page_table as
for `attention`; results out, like q, and kv in place. Queries and keys may be normalised and turned on the way.
"""
