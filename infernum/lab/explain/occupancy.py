"""How many blocks of a kernel a multiprocessor holds at once, and what keeps it from holding more.

The rules are those of the CUDA programming guide ("Multiprocessor Level", and the table of technical specifications
per compute capability) and of `cuda_occupancy.h`, which has the units of allocation of registers and shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infernum.dims import ceildiv
from infernum.roofline import Gpu

WARP = 32
REGISTER_UNIT = 256
"""Registers are allocated to a warp in multiples of this."""
SHARED_UNIT = 128
"""Bytes of shared memory are allocated to a block in multiples of this (compute capability 8.0 and later)."""
PARTITIONS = 4
"""A multiprocessor is four schedulers, each with a quarter of the registers; a warp belongs to one of them."""

Limit = Literal["threads", "blocks", "registers", "shared memory"]


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps of one kernel on a multiprocessor, `fraction` of the warps it can hold, and what limits them.

    Where several limits meet, `limit` is one that no change of registers or shared memory would lift.
    """

    blocks_per_sm: int
    warps: int
    fraction: float
    limit: Limit


def occupancy(gpu: Gpu, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Occupancy of blocks of `threads` threads, each with `registers` registers.

    `shared_bytes` is the shared memory of a block, static and dynamic. `blocks_per_sm` is 0 where one block is more
    than a multiprocessor has. The multiprocessor is assumed to use all the memory it can as shared memory.
    """
    warps = ceildiv(threads, WARP)
    most_warps = gpu.threads_per_sm // WARP
    registers_per_warp = _rounded(max(registers, 1) * WARP, REGISTER_UNIT)
    warps_by_registers = gpu.registers_per_sm // PARTITIONS // registers_per_warp * PARTITIONS
    limits: dict[Limit, int] = {
        "threads": most_warps // warps,
        "blocks": gpu.blocks_per_sm,
        "registers": warps_by_registers // warps,
        "shared memory": gpu.shared_per_sm // _rounded(shared_bytes + gpu.shared_reserved, SHARED_UNIT),
    }
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / most_warps, limit)


def _rounded(count: int, unit: int) -> int:
    return ceildiv(count, unit) * unit
