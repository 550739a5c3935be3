"""The kernels of attention over prompts: tiles of queries on tensor cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infernum.ir.block import PAGE
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, alternatives
from infernum.ops.attention_split import SINGLES, heads_of
from infernum.roofline import GPUS


def _prefill_refusal(call: Call, target: Target) -> Refusal | None:
    heads, kv_heads, dim = heads_of(call)
    dtype = call.operands["q"].dtype
    if target.decodes:
        return Refusal("every sequence has one token, and would fill a tile of queries alone")
    if target.max_tokens <= 64:
        return Refusal(
            f"with at most {target.max_tokens} tokens, splitting the context keeps more of the GPU busy"
        )
    if dtype.bytes != 2:
        return Refusal(f"tensor cores multiply bf16 and f16 here, not {dtype}")
    if dim % 16 or dim > 256:
        return Refusal(f"head size {dim} is not a multiple of 16 up to 256")
    group, rows = heads // kv_heads, _prefill_rows(dim, target)
    if group > rows:
        return Refusal(f"{group} query heads to a key head are more than the {rows} rows of a tile")
    return None


def _prefill_rows(dim: int, target: Target) -> int:
    """Rows of queries to a block of four warps. 32 to a warp, where registers allow, read shared memory half as often.

    At head sizes above 96 only the compiler for Hopper fits them in 255 registers.
    """
    return 128 if dim <= 96 or (dim <= 128 and target.arch == 90) else 64


def _prefill_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    if refusal := _prefill_refusal(call, target):
        yield refusal
        return
    if target.deterministic:
        yield Refusal("decodes alone and beside prompts would have other sums")
        return
    heads, kv_heads, dim = heads_of(call)
    rows, group, padded = _prefill_rows(dim, target), heads // kv_heads, dim + 8
    yield Layout(
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "HEAD_DIM": dim,
            "ROWS": rows,
            "QUERIES": rows // group,
            "SHARED_BYTES": (rows + 2 * PAGE) * padded * 2,
        }
    )


def _wgmma_refusal(call: Call, target: Target) -> Refusal | None:
    heads, kv_heads, dim = heads_of(call)
    if refused := _prefill_refusal(call, target):
        return refused
    if target.arch != 90:
        return Refusal("wgmma is an instruction of Hopper (sm_90a) only")
    if dim not in (64, 128, 256):
        return Refusal(f"head size {dim} is not that of one, two or four tiles of 64 columns")
    if heads // kv_heads > 64:
        return Refusal(
            f"{heads // kv_heads} query heads to a key head are more than the 64 rows of a warpgroup"
        )
    return None


def _wgmma_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """Warpgroups that multiply, keys of a block, blocks held at once, and whether warpgroups multiply in turn.

    The warpgroup that loads gives up registers, in eights, to those that multiply. Three of these leave none for what
    windows and capped scores need.
    """
    if refusal := _wgmma_refusal(call, target):
        yield refusal
        return
    heads, kv_heads, dim = heads_of(call)
    group, gpu = heads // kv_heads, GPUS[target.arch]
    most = gpu.shared_per_sm - gpu.shared_reserved
    plain = not (call.attrs["window"] or call.attrs["softcap"])
    if dim == 64:
        every = alternatives(
            MULTIPLYING=(3, 2) if plain else (2,), KEYS=(128, 64), SLOTS=(3, 2, 4), TAKE_TURNS=(1, 0)
        )
    elif dim == 128:
        every = alternatives(MULTIPLYING=(2, 3), KEYS=(128, 64), SLOTS=(2, 3), TAKE_TURNS=(1, 0))
    else:
        every = alternatives(MULTIPLYING=(2,), KEYS=(64,), SLOTS=(2,), TAKE_TURNS=(1, 0))
    for values in every:
        multiplying, needed = values["MULTIPLYING"], _wgmma_bytes(dim, values)
        if dim == 128 and multiplying == 3 and values["KEYS"] == 128:
            yield Refusal(
                "a thread of three warpgroups has 160 registers, which scores, weights and sums take up"
            )
        elif needed > most:
            yield Refusal(f"a block has {most} bytes of shared memory, not {needed}")
        else:
            constants = {
                "KV_HEADS": kv_heads,
                "GROUP": group,
                "HEAD_DIM": dim,
                "QUERIES": multiplying * 64 // group,
                "THREADS": 128 * (multiplying + 1),
                "LOADING_REGISTERS": 40 if multiplying == 2 else 32,
                "MULTIPLYING_REGISTERS": 232 if multiplying == 2 else 160,
                "SHARED_BYTES": needed,
            }
            yield Layout(constants, values)


def _wgmma_bytes(dim: int, values: Mapping[str, int]) -> int:
    """Shared memory of a block: its queries, the ring of keys, the ring of values, and two barriers for each slot."""
    rows, slots = values["MULTIPLYING"] * 64, values["SLOTS"]
    return (rows + 2 * slots * values["KEYS"]) * dim * 2 + 2 * slots * 2 * 8


PREFILL_WGMMA = Template(
    "attention_prefill_wgmma",
    grid=("KV_HEADS", "tokens // QUERIES + seqs", 1),
    threads="THREADS",
    shared_bytes="SHARED_BYTES",
    layouts=_wgmma_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "softmax.cuh",
        "scores.cuh",
        "mma.cuh",
        "query_tiles.cuh",
        "mbarrier.cuh",
        "wgmma.cuh",
        "ring.cuh",
        "attention_prefill_wgmma.cuh",
    ),
    symbols=("seqs", "max_pages"),
    next_kernel=SINGLES,
)
"""Hopper: one warpgroup loads keys and values, the others multiply (wgmma). Single tokens have their own kernel."""

PREFILL = Template(
    "attention_prefill",
    grid=("KV_HEADS", "tokens // QUERIES + seqs", 1),
    threads=128,
    shared_bytes="SHARED_BYTES",
    layouts=_prefill_layouts,
    includes=(
        "numeric.cuh",
        "programmatic.cuh",
        "kv_cache.cuh",
        "softmax.cuh",
        "scores.cuh",
        "mma.cuh",
        "query_tiles.cuh",
        "attention_prefill.cuh",
    ),
    symbols=("seqs", "max_pages"),
)
"""Any GPU: four warps share a tile (mma.sync)."""
