"""The arrays of a step on the GPU: what the host uploads, and what a sampler leaves for the next step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infernum import dtypes
from infernum.dtypes import I32, DType
from infernum.manifest import TensorSpec
from infernum.runtime.device import Device, PinnedMemory
from infernum.runtime.kv_cache import POISON
from infernum.runtime.layout import Limits, pack
from infernum.runtime.sampled import TURNS
from infernum.runtime.stream import CudaEvent, Stream
from infernum.step import INPUTS, SEEN, Batch, Sampling, StepInput, check_input

_BYTES = 4
"""Every array here holds 32-bit integers or floats."""

_PACKED = tuple(item for item in INPUTS if len(item.dims) == 1)
"""The inputs that are uploaded in one copy, each at its largest size. Those of two dims are uploaded by themselves."""


@dataclass(frozen=True)
class _Array:
    """A small array, part of the one copy that a step uploads."""

    dtype: DType
    offset: int
    count: int


@dataclass(frozen=True)
class _UploadBuffers:
    """Pinned memory of one upload, free again once `sent` has passed."""

    packed: PinnedMemory
    page_table: PinnedMemory
    arrays: dict[str, np.ndarray[Any, Any]]
    sent: CudaEvent


class Inputs:
    """Batch arrays at their largest sizes and fixed addresses: a captured graph never needs patching."""

    def __init__(self, device: Device, stream: Stream, limits: Limits, stack: ExitStack) -> None:
        """Allocate on `device`; `stack` gives everything back. Raises DeviceError when it does not fit."""
        self._stream = stream
        self._limits = limits
        self._arrays, packed_bytes = _pack_arrays(limits)
        others = {item.name: _nbytes(item, limits) for item in INPUTS if item not in _PACKED}
        others |= {f"next_tokens.{turn}": limits.rows * _BYTES for turn in range(TURNS)}
        offsets, self.nbytes = pack([packed_bytes, *others.values()], at=0)
        memory = device.alloc(self.nbytes, "the arrays of a step")
        stack.callback(memory.free)
        stream.fill(memory.address, POISON, self.nbytes)
        self._base = memory.address
        self._packed_bytes = packed_bytes
        self.addresses = {name: memory.address + array.offset for name, array in self._arrays.items()}
        self.addresses |= {name: memory.address + at for name, at in zip(others, offsets[1:], strict=True)}
        self._buffers = [self._allocate_buffers(device, stack) for _ in range(2)]
        self._turn = 0

    def _allocate_buffers(self, device: Device, stack: ExitStack) -> _UploadBuffers:
        packed = device.alloc_pinned(self._packed_bytes)
        stack.callback(packed.free)
        page_table = device.alloc_pinned(self._limits.seqs * self._limits.max_pages * _BYTES)
        stack.callback(page_table.free)
        sent = device.event()
        stack.callback(sent.close)
        packed.array(I32.numpy, packed.nbytes // _BYTES)[:] = 0
        arrays = {name: packed.array(a.dtype.numpy, a.count, a.offset) for name, a in self._arrays.items()}
        return _UploadBuffers(packed, page_table, arrays, sent)

    def next_tokens(self, turn: int) -> int:
        """Where the sampler of a step leaves its tokens; steps take turns."""
        return self.addresses[f"next_tokens.{turn}"]

    def check(self, specs: Iterable[TensorSpec], block: str) -> None:
        """Raises BundleError when a block reads an input that no step has, or reads it as another kind of number."""
        for spec in specs:
            check_input(spec.name, dtypes.dtype(spec.dtype), block)

    def upload(self, batch: Batch, sampling: Sampling | None) -> None:
        """Queue the copy of a step's arrays to the GPU; the caller may change them once this returns."""
        self._turn = 1 - self._turn
        buffers = self._buffers[self._turn]
        buffers.sent.wait()
        values = batch.arrays()
        if sampling is not None and not sampling.greedy:
            values |= sampling.parameters
        for name, array in buffers.arrays.items():
            if name in values:
                _put(array, values[name])
        self._stream.upload(self._base, buffers.packed.address, self._packed_bytes)
        self._upload_page_table(batch, buffers)
        self._stream.record(buffers.sent)
        if sampling is not None and sampling.seen is not None:
            seen = np.ascontiguousarray(sampling.seen, np.int32)
            self._stream.upload(
                self.addresses[SEEN.name], seen.ctypes.data, seen.nbytes
            )  # pageable: copied before it returns

    def _upload_page_table(self, batch: Batch, buffers: _UploadBuffers) -> None:
        seqs, columns = batch.page_table.shape
        if seqs * columns == 0:
            return
        buffers.page_table.array(I32.numpy, seqs * columns).reshape(seqs, columns)[:] = batch.page_table
        width, pitch = columns * _BYTES, self._limits.max_pages * _BYTES
        self._stream.upload_rows(
            self.addresses["page_table"], pitch, buffers.page_table.address, width, width, seqs
        )


def _put(to: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    to[: len(values)] = values


def _pack_arrays(limits: Limits) -> tuple[dict[str, _Array], int]:
    """Where each small array lies within the packed upload, and the bytes of the whole."""
    sizes = [_nbytes(item, limits) for item in _PACKED]
    offsets, end = pack(sizes, at=0)
    arrays = {
        item.name: _Array(item.dtype, offset, nbytes // _BYTES)
        for item, offset, nbytes in zip(_PACKED, offsets, sizes, strict=True)
    }
    return arrays, end


def _nbytes(item: StepInput, limits: Limits) -> int:
    """Bytes of an input of the largest step."""
    return math.prod(item.shape(asdict(limits))) * _BYTES
