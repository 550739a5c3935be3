"""Fills the weights of a bundle on the GPU, from a checkpoint or with random numbers.

A checkpoint is never whole in host memory: its memory-mapped tensors pass through two pinned chunks, one
being filled while the other is on its way to the GPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from infernum import dtypes
from infernum.dtypes import DType
from infernum.errors import CheckpointError
from infernum.runtime.device import Device, PinnedMemory
from infernum.runtime.stream import Event, Stream
from infernum.runtime.weight_plan import Part, StoredWeight, WeightPlan

CHUNK_BYTES = 64 * 2**20
_CAST_ELEMENTS = 2**20
"""Elements cast at a time, so that the float32 values in between stay in the processor's cache."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class TensorSource(Protocol):
    """What is needed of a checkpoint: names, shapes, and arrays in their stored dtype."""

    @property
    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> np.ndarray: ...


def check_tensors(plan: WeightPlan, source: TensorSource) -> None:
    """Raises CheckpointError naming the first tensor that `source` lacks or has in another shape."""
    for weight in plan.stored:
        for part in weight.parts:
            if part.name not in source.names:
                raise CheckpointError(
                    f"{part.name}: the checkpoint has no such tensor; was the bundle compiled for it?"
                )
            if source.shape(part.name) != part.shape:
                raise CheckpointError(
                    f"{part.name}: the checkpoint has shape {list(source.shape(part.name))},"
                    f" the bundle was compiled for {list(part.shape)}"
                )


def fill_from_checkpoint(
    plan: WeightPlan,
    source: TensorSource,
    base: int,
    device: Device,
    stream: Stream,
    progress: Progress | None = None,
) -> None:
    """Copy every planned tensor to `base` on the GPU, cast to its storage dtype. Returns when all are there.

    Raises CheckpointError before anything is copied when a tensor is missing or misshapen.
    """
    check_tensors(plan, source)
    done, total = 0, sum(weight.nbytes for weight in plan.stored)
    with ExitStack() as stack:
        staging = Staging(device, stream, stack)
        for weight in plan.stored:
            dtype = dtypes.dtype(weight.dtype)
            for part in weight.parts:
                values = source.read(part.name).reshape(-1)
                for start in range(0, part.size, CHUNK_BYTES // dtype.bytes):
                    chunk = values[start : start + CHUNK_BYTES // dtype.bytes]
                    staging.send(chunk, dtype, base + part.offset + start * dtype.bytes)
                    done += chunk.size * dtype.bytes
                    if progress is not None:
                        progress(done, total)
        stream.synchronize()


class Staging:
    """Two pinned chunks through which tensors reach the GPU; one is filled while the other travels."""

    def __init__(self, device: Device, stream: Stream, stack: ExitStack) -> None:
        self._stream = stream
        self._turn = 0
        self._chunks: list[PinnedMemory] = []
        self._sent: list[Event] = []
        for _ in range(2):
            self._chunks.append(device.alloc_pinned(CHUNK_BYTES))
            stack.callback(self._chunks[-1].free)
            self._sent.append(device.event())
            stack.callback(self._sent[-1].close)
        stack.callback(stream.synchronize)

    def send(self, values: np.ndarray, dtype: DType, to: int) -> None:
        """Queue the copy of at most `CHUNK_BYTES` of flat `values`, cast to `dtype`, to the GPU."""
        self._turn = 1 - self._turn
        chunk, sent = self._chunks[self._turn], self._sent[self._turn]
        sent.wait()
        cast_into(chunk.array(dtype.numpy, values.size), values)
        self._stream.upload(to, chunk.address, values.size * dtype.bytes)
        self._stream.record(sent)


def cast_into(out: np.ndarray, values: np.ndarray) -> None:
    """Write flat `values` to flat `out`, rounding through float32 when their element types differ."""
    if out.dtype == values.dtype:
        out.view(np.uint8)[:] = np.ascontiguousarray(values).view(
            np.uint8
        )  # bytes: bf16 has no fast copy loop
        return
    for start in range(0, values.size, _CAST_ELEMENTS):
        piece = slice(start, start + _CAST_ELEMENTS)
        with np.errstate(over="ignore"):
            out[piece] = values[piece].astype(np.float32).astype(out.dtype)


def fill_with_random(
    plan: WeightPlan,
    base: int,
    device: Device,
    stream: Stream,
    *,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Fill every planned tensor with random numbers; no checkpoint is needed.

    They depend on the tensor's name and `seed` alone, so that every bundle of a model gets the same weights. Matrices
    and biases are normal with standard deviation 0.02, norm weights with mean 1 and deviation 0.1. The numbers repeat:
    all are copies, at shifting offsets, of one pool of 64 MiB.
    """
    done, total = 0, sum(weight.nbytes for weight in plan.stored)
    with ExitStack() as stack:
        staging = Staging(device, stream, stack)
        pools: dict[tuple[str, bool], int] = {}
        for weight in plan.stored:
            for part in weight.parts:
                kind = (weight.dtype, is_norm(part))
                if kind not in pools:
                    memory = device.alloc(CHUNK_BYTES, "random weights")
                    stack.callback(memory.free)
                    stack.callback(stream.synchronize)
                    staging.send(*_random_chunk(np.random.default_rng([seed, kind[1]]), kind), memory.address)
                    pools[kind] = memory.address
                _spread(
                    stream,
                    pools[kind],
                    base + part.offset,
                    _nbytes(part, weight),
                    zlib.crc32(part.name.encode()),
                )
            done += weight.nbytes
            if progress is not None:
                progress(done, total)
        stream.synchronize()


def is_norm(part: Part) -> bool:
    """True for the scale of a norm: a vector that is no bias."""
    return len(part.shape) == 1 and not part.name.endswith("bias")


def _nbytes(part: Part, weight: StoredWeight) -> int:
    return part.size * dtypes.dtype(weight.dtype).bytes


def _random_chunk(rng: np.random.Generator, kind: tuple[str, bool]) -> tuple[np.ndarray[Any, Any], DType]:
    name, norm = kind
    dtype = dtypes.dtype(name)
    values = rng.standard_normal(CHUNK_BYTES // dtype.bytes, dtype=np.float32)
    values *= np.float32(0.1 if norm else 0.02)
    values += np.float32(1.0 if norm else 0.0)
    return values, dtype


def _spread(stream: Stream, pool: int, to: int, nbytes: int, first: int) -> None:
    """Fill `nbytes` at `to` from the pool in pieces that start all over it, so that rows do not repeat in step.

    `first` decides where the first piece starts.
    """
    piece = first
    while nbytes > 0:
        start = (2 * piece + 1) * 16 * 26_339 % CHUNK_BYTES  # an odd multiple of 16 bytes: never a whole row
        size = min(nbytes, CHUNK_BYTES - start)
        stream.copy(to, pool + start, size)
        to, nbytes, piece = to + size, nbytes - size, piece + 1
