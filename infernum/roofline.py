"""What work must take on a GPU: bytes over its bandwidth or FLOPs over its rate, for a step of some size."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.dims import ceildiv, round_pages

CONTEXT = 1024
"""Positions behind each sequence, the new ones included, that costs are given for unless something else is asked."""

MAX_DECODES = 64
"""Steps of up to so many tokens are taken for decodes, one token of each sequence; larger ones for one prompt."""

MOST_DECODES = 1024
"""Most sequences that decode in one step."""

MAX_ROWS = 256
"""Most rows of logits that are computed at once. More rows are computed in several parts."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of an architecture: its speeds, and what its multiprocessors hold at once.

    Speeds are dense bf16 with float32 sums, and reading. Limits are those of the CUDA programming guide's table of
    technical specifications per compute capability.
    """

    name: str
    bytes_per_second: float
    flops_per_second: float
    sms: int
    threads_per_sm: int
    blocks_per_sm: int
    shared_per_sm: int
    registers_per_sm: int = 65536
    shared_reserved: int = 1024
    """Bytes of shared memory that the system takes for itself in each block."""


GPUS: dict[int, Gpu] = {
    80: Gpu("A100 80GB", 2.0e12, 312e12, 108, 2048, 32, 164 * 1024),
    86: Gpu("RTX A6000", 0.77e12, 155e12, 84, 1536, 16, 100 * 1024),
    89: Gpu("L40S", 0.86e12, 362e12, 142, 1536, 24, 100 * 1024),
    90: Gpu("H200", 4.71e12, 804e12, 132, 2048, 32, 228 * 1024),
    100: Gpu("B200", 7.7e12, 2250e12, 148, 2048, 32, 228 * 1024),
}
"""By compute capability. Vendors' figures; the H200's speeds are measured: a read-only stream, and an 8192³ product by
cuBLAS."""


def gpu_of(arch: str) -> Gpu:
    """The GPU that stands for an architecture such as "sm_90a"."""
    return GPUS[int(arch.removeprefix("sm_").rstrip("af"))]


def step_symbols(
    tokens: int, *, context: int = CONTEXT, sms: int = 1, decodes: bool = False
) -> dict[str, int]:
    """Values of all symbols, those of costs too, in a step of `tokens` tokens.

    With `decodes`, and up to MAX_DECODES tokens: one of each sequence, which has `context` positions with it.
    Otherwise: a chunk of one prompt that ends at position `context`, or at its own length where that is longer.
    """
    decodes = decodes or tokens <= MAX_DECODES
    sequences = tokens if decodes else 1
    behind = max(context - 1, 0) if decodes else max(context - tokens, 0)
    each = behind + (1 if decodes else tokens)
    pages = ceildiv(each, 64)
    attended = sequences * each if decodes else tokens * behind + tokens * (tokens + 1) // 2
    return {
        "tokens": tokens,
        "seqs": sequences,
        "rows": min(sequences, MAX_ROWS),
        "max_pages": pages,
        "context_pages": round_pages(pages),
        "pages": sequences * pages,
        "sms": sms,
        "cached": sequences * each,
        "attended": attended,
    }


def floor_seconds(arch: str, nbytes: float, flops: float) -> float:
    """The least time for so many bytes and FLOPs: neither memory nor arithmetic can be faster."""
    gpu = gpu_of(arch)
    return max(nbytes / gpu.bytes_per_second, flops / gpu.flops_per_second)
