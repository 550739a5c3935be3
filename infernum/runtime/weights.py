"""Fills the weights of a bundle on the GPU, from a checkpoint or with random numbers.

The checkpoint is read in pieces of its memory-mapped tensors. They pass through two pinned chunks: the host fills one
while the other is copied to the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle

import numpy as np

from infernum import dtypes
from infernum.dtypes import DType
from infernum.recipes import Rank, Recipe, size_of
from infernum.runtime.device import Device, PinnedMemory
from infernum.runtime.stream import CudaEvent, Stream
from infernum.weights.dummy import Normal, distribution_of, pool_of, pool_runs, settle
from infernum.weights.plan import StoredWeight, WeightPlan
from infernum.weights.source import Array, Progress, TensorSource
from infernum.weights.values import pieces, run_of, sections

CHUNK_BYTES = 8 * 2**20
_CAST_ELEMENTS = 2**20
"""Elements cast at a time, so that the float32 values in between stay in the processor's cache."""


def fill_weights(
    plan: WeightPlan,
    source: TensorSource | None,
    base: int,
    device: Device,
    stream: Stream,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill every weight of the plan at `base` on the GPU, cast to its dtype. Returns when all copies are done.

    Without a checkpoint the weights are the random weights of `infernum.weights.dummy`: a run of one tensor is copied
    from pools on the GPU, any other recipe is computed on the host. Raises CheckpointError, before the first copy,
    when a tensor is missing or misshapen.
    """
    chosen, tensors = settle(plan, source, seed)
    done, total = 0, sum(weight.nbytes for weight in chosen.stored)
    report: Progress = progress or (lambda done, total: None)
    with ExitStack() as stack:
        staging = Staging(device, stream, stack)
        pools = _Pools(device, stream, staging, seed, stack) if source is None else None
        for weight in chosen.stored:
            dtype = dtypes.dtype(weight.dtype)
            for section, offset in placed_sections(weight, chosen.rank.count):
                if pools is not None and pools.copy(section, chosen.rank, dtype, weight.added, base + offset):
                    continue
                for piece in pieces(section, tensors, chosen.rank):
                    staging.send(piece, dtype, base + offset)
                    offset += piece.size * dtype.bytes
                    report(done + offset - weight.offset, total)
            done += weight.nbytes
            report(done, total)
        stream.synchronize()


class Staging:
    """Two pinned chunks through which tensors reach the GPU; one is filled while the other is copied."""

    def __init__(self, device: Device, stream: Stream, stack: ExitStack) -> None:
        self._stream = stream
        chunks: list[tuple[PinnedMemory, CudaEvent]] = []
        for _ in range(2):
            chunk = device.alloc_pinned(CHUNK_BYTES)
            stack.callback(chunk.free)
            sent = device.event()
            stack.callback(sent.close)
            chunks.append((chunk, sent))
        self._chunks = cycle(chunks)
        stack.callback(stream.synchronize)

    def send(self, values: Array, dtype: DType, to: int) -> None:
        """Queue the copy of flat `values`, cast to `dtype`, to the GPU. `values` may change once this returns."""
        at_once = CHUNK_BYTES // dtype.bytes
        for start in range(0, values.size, at_once):
            part = values[start : start + at_once]
            chunk, sent = next(self._chunks)
            sent.wait()
            cast_into(chunk.array(dtype.numpy, part.size), part)
            self._stream.upload(to + start * dtype.bytes, chunk.address, part.size * dtype.bytes)
            self._stream.record(sent)


def cast_into(out: Array, values: Array) -> None:
    """Write flat `values` to flat `out`, rounding through float32 when their element types differ."""
    if out.dtype == values.dtype:
        out.view(np.uint8)[:] = np.ascontiguousarray(values).view(np.uint8)  # bf16 has no fast copy loop
        return
    for start in range(0, values.size, _CAST_ELEMENTS):
        piece = slice(start, start + _CAST_ELEMENTS)
        with np.errstate(over="ignore"):
            out[piece] = values[piece].astype(np.float32).astype(out.dtype)


def placed_sections(weight: StoredWeight, ranks: int = 1) -> Iterator[tuple[Recipe, int]]:
    """The consecutive sections of a weight, each with its offset in bytes from the start of all weights."""
    offset = weight.offset
    for section in sections(weight.recipe):
        yield section, offset
        offset += size_of(section, ranks) * dtypes.dtype(weight.dtype).bytes


class _Pools:
    """The pools of random numbers on the GPU, each uploaded when it is first used."""

    def __init__(self, device: Device, stream: Stream, staging: Staging, seed: int, stack: ExitStack) -> None:
        self._device, self._stream, self._staging = device, stream, staging
        self._seed, self._stack = seed, stack
        self._addresses: dict[tuple[str, Normal], int] = {}

    def copy(self, section: Recipe, rank: Rank, dtype: DType, added: float, to: int) -> bool:
        """Queue the copy of a section that is a run of one tensor stored in `dtype`; False for other sections."""
        run = run_of(section, rank)
        if run is None:
            return False
        tensor, first = run
        (name,) = tensor.names
        is_stored_so = tensor.dtype == dtype.name if tensor.dtype else dtype.is_float
        if not is_stored_so:
            return False
        pool = self._address(dtype, distribution_of(name, tensor.shape, added))
        for start, count in pool_runs(name, first, size_of(section, rank.count)):
            self._stream.copy(to, pool + start * dtype.bytes, count * dtype.bytes)
            to += count * dtype.bytes
        return True

    def _address(self, dtype: DType, distribution: Normal) -> int:
        key = (dtype.name, distribution)
        if key not in self._addresses:
            pool = pool_of(self._seed, dtype, distribution)
            memory = self._device.alloc(pool.nbytes, "random weights")
            self._stack.callback(memory.free)
            self._stack.callback(self._stream.synchronize)
            self._staging.send(pool, dtype, memory.address)
            self._addresses[key] = memory.address
        return self._addresses[key]
