"""The input arrays of a step on the GPU: uploaded by the host, or written by the sampler of the step before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from infernum import dtypes
from infernum.dtypes import I32, DType
from infernum.manifest import TensorSpec
from infernum.runtime.device import Device, PinnedMemory
from infernum.runtime.kv_cache import POISON
from infernum.runtime.layout import Limits, pack
from infernum.runtime.sampled import COLUMNS, TURNS
from infernum.runtime.stream import CudaEvent, Stream
from infernum.runtime.tables import Tables
from infernum.step import INPUTS, TABLES, Batch, Sampling, StepInput, TableRow, check_input

_BYTES = 4
"""Bytes of an element: every input is an array of 32-bit integers or floats."""

_BY_ROW = tuple(item for item in INPUTS if item.dims == ("rows",))
"""Inputs with an element for each row of logits. They lie together."""

_PACKED = (*(item for item in INPUTS if len(item.dims) == 1 and item not in _BY_ROW), *_BY_ROW)
"""Inputs of one dim, which are uploaded together in one copy. Each input of two dims has a copy of its own."""


_PADDING: dict[str, float] = {"token_ids": 0, "positions": 0, "lengths": 1} | {
    item.name: item.default for item in _PACKED if item.default is not None
}
"""What a sequence that pads a decode has: token 0 at position 0, and parameters that are off."""

_PAGE_TABLE = "page_table"

_SAMPLED = "sampled"
"""The tokens that the last step has sampled, while the input of the next is uploaded."""


@dataclass(frozen=True)
class _Array:
    """Place of an input within the packed upload: offset in bytes, count in elements."""

    dtype: DType
    offset: int
    count: int


@dataclass(frozen=True)
class _UploadBuffers:
    """Pinned memory of one upload. It may be written again once the GPU has passed `sent`."""

    packed: PinnedMemory
    page_tables: list[PinnedMemory]
    arrays: dict[str, np.ndarray[Any, Any]]
    sent: CudaEvent


@dataclass(frozen=True)
class Padding:
    """Sequences that fill a decode up to `sequences`: they begin, and all their positions lie in one page.

    `pages` has that page for each cache group.
    """

    sequences: int
    pages: tuple[int, ...]

    def fill(self, array: np.ndarray[Any, Any], name: str, used: int) -> None:
        """Write what the input of that name has behind its first `used` elements."""
        counted = name in ("sequence", "output_rows", "query_start")
        end = self.sequences + (name == "query_start")
        array[used:end] = np.arange(used, end, dtype=np.int32) if counted else _PADDING[name]


class Inputs:
    """Input arrays at their largest sizes and fixed addresses, so that captured CUDA graphs stay valid."""

    def __init__(
        self, device: Device, stream: Stream, limits: Limits, stack: ExitStack, *, groups: int = 1
    ) -> None:
        """Allocate the arrays on `device`, with a page table for each of `groups` cache groups; `stack` frees them.

        Raises DeviceError when they do not fit.
        """
        self._stream = stream
        self._limits = limits
        self._groups = groups
        self._arrays, packed_bytes = _pack_arrays(limits)
        alone = [item for item in INPUTS if item not in _PACKED and item not in TABLES]
        others = {item.name: _nbytes(item, limits) for item in alone}
        others |= {_table_name(group): others[_PAGE_TABLE] for group in range(1, groups)}
        others |= {f"next_tokens.{turn}": limits.rows * _BYTES for turn in range(TURNS)}
        others |= {f"all_tokens.{turn}": limits.rows * _BYTES for turn in range(TURNS)}
        for turn in range(TURNS):
            names = (*_logprobs_names(turn), *_logprobs_names(turn, "all_"))
            others |= dict.fromkeys(names, limits.rows * COLUMNS * _BYTES)
        others[_SAMPLED] = limits.rows * _BYTES
        offsets, self.nbytes = pack([packed_bytes, *others.values()], at=0)
        memory = device.alloc(self.nbytes, "the arrays of a step")
        stack.callback(memory.free)
        stream.fill(memory.address, POISON, self.nbytes)
        self._tables = Tables(device, stream, limits, stack)
        self.nbytes += self._tables.nbytes
        self._base = memory.address
        self._packed_bytes = packed_bytes
        self.addresses = {name: memory.address + array.offset for name, array in self._arrays.items()}
        self.addresses |= {name: memory.address + at for name, at in zip(others, offsets[1:], strict=True)}
        self.addresses |= self._tables.addresses
        self._buffers = [self._allocate_buffers(device, stack) for _ in range(2)]
        self._turn = 0
        self._is_collected = False

    def _allocate_buffers(self, device: Device, stack: ExitStack) -> _UploadBuffers:
        packed = device.alloc_pinned(self._packed_bytes)
        stack.callback(packed.free)
        page_tables: list[PinnedMemory] = []
        for _ in range(self._groups):
            page_tables.append(device.alloc_pinned(self._limits.seqs * self._limits.max_pages * _BYTES))
            stack.callback(page_tables[-1].free)
        sent = device.event()
        stack.callback(sent.close)
        packed.array(I32.numpy, packed.nbytes // _BYTES)[:] = 0
        arrays = {name: packed.array(a.dtype.numpy, a.count, a.offset) for name, a in self._arrays.items()}
        return _UploadBuffers(packed, page_tables, arrays, sent)

    def next_tokens(self, turn: int) -> int:
        """Address where the sampler of a step writes its tokens; `turn` alternates between steps."""
        return self.addresses[f"next_tokens.{turn}"]

    def all_tokens(self, turn: int) -> int:
        """Address where `collect` gathers the tokens of a step that samples its rows part by part."""
        return self.addresses[f"all_tokens.{turn}"]

    def move_rows(self, first: int, rows: int) -> None:
        """Queue the copy of what `rows` rows of logits from `first` on have to where kernels read that of row 0 on."""
        of_rows = [self.addresses[item.name] for item in _BY_ROW]
        pitch = of_rows[1] - of_rows[0]
        self._stream.copy_rows(of_rows[0], of_rows[0] + first * _BYTES, pitch, rows * _BYTES, len(of_rows))

    def collect(self, turn: int, first: int, rows: int) -> None:
        """Queue the copy of the tokens sampled for `rows` rows, for the host and for the next step."""
        self._stream.copy(self.all_tokens(turn) + first * _BYTES, self.next_tokens(turn), rows * _BYTES)
        sampled, tokens = self.addresses[_SAMPLED], self.addresses["token_ids"]
        self._stream.copy(sampled + first * _BYTES, tokens, rows * _BYTES)

    def collect_logprobs(self, turn: int, first: int, rows: int) -> None:
        """Queue the copy of the log-probabilities of `rows` rows, for the host."""
        width = COLUMNS * _BYTES
        for to, source in zip(self.all_logprobs(turn), self.logprobs(turn), strict=True):
            self._stream.copy(to + first * width, source, rows * width)

    def note_step(self, *, collected: bool) -> None:
        """Note whether the tokens of the step just launched are collected, to be found by the next upload."""
        self._is_collected = collected

    def page_table(self, group: int) -> int:
        """Address of the page table of a cache group."""
        return self.addresses[_table_name(group)]

    def logprobs(self, turn: int) -> tuple[int, int]:
        """Addresses where a step writes tokens and values of log-probabilities."""
        tokens, values = (self.addresses[name] for name in _logprobs_names(turn))
        return tokens, values

    def all_logprobs(self, turn: int) -> tuple[int, int]:
        """Addresses where `collect_logprobs` gathers them."""
        tokens, values = (self.addresses[name] for name in _logprobs_names(turn, "all_"))
        return tokens, values

    def check(self, specs: Iterable[TensorSpec], block: str) -> None:
        """Raises BundleError when `block` reads an unknown input, or reads an input with another type of element."""
        for spec in specs:
            check_input(spec.name, dtypes.dtype(spec.dtype), block)

    def upload(self, batch: Batch, sampling: Sampling | None, padding: Padding | None = None) -> None:
        """Queue the upload of a step's arrays. The caller may change the arrays as soon as this returns.

        `padding`: further sequences of one token and one row, for a step in which each sequence has that.
        """
        self._turn = 1 - self._turn
        buffers = self._buffers[self._turn]
        buffers.sent.wait()
        values = batch.arrays()
        unread = np.flatnonzero(batch.token_ids < 0)
        rows = -1 - batch.token_ids[unread]
        tokens, sampled = self.addresses["token_ids"], self.addresses[_SAMPLED]
        if len(unread):
            # The last step has left its sampled tokens, or 0 for none, where the input of this one is written now.
            if not self._is_collected:
                self._stream.copy(sampled, tokens, (int(rows.max()) + 1) * _BYTES)
            values["token_ids"] = np.maximum(batch.token_ids, 0)
        if sampling is not None and (sampling.logprobs or not sampling.greedy):
            values |= sampling.arrays()
        for name, array in buffers.arrays.items():
            if name in values:
                _put(array, values[name])
                if padding is not None:
                    padding.fill(array, name, len(values[name]))
        self._stream.upload(self._base, buffers.packed.address, self._packed_bytes)
        for first, row, count in _runs(unread, rows):
            self._stream.copy(tokens + first * _BYTES, sampled + row * _BYTES, count * _BYTES)
        self._upload_page_tables(batch, buffers, padding)
        self._stream.record(buffers.sent)
        if sampling is not None:
            self.write(sampling.writes)

    def write(self, rows: Iterable[TableRow]) -> None:
        """Queue the upload of rows of tables. The caller may change their values as soon as this returns."""
        self._tables.write(rows)

    def _upload_page_tables(self, batch: Batch, buffers: _UploadBuffers, padding: Padding | None) -> None:
        seqs, columns = batch.page_table.shape
        padded = seqs if padding is None else padding.sequences
        if seqs * columns == 0:
            return
        width, pitch = columns * _BYTES, self._limits.max_pages * _BYTES
        for group, pinned in enumerate(buffers.page_tables):
            table = batch.page_table_of(group)
            array = pinned.array(I32.numpy, padded * columns).reshape(padded, columns)
            array[:seqs] = table
            if padding is not None:
                array[seqs:] = padding.pages[group]
            self._stream.upload_rows(self.page_table(group), pitch, pinned.address, width, width, padded)


def _table_name(group: int) -> str:
    """The key of a cache group's page table among the addresses of the inputs."""
    return f"{_PAGE_TABLE}.{group}" if group else _PAGE_TABLE


def _runs(places: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Iterator[tuple[int, int, int]]:
    """Runs of places whose rows follow each other too: the first place, its row, and their number."""
    breaks = 1 + np.flatnonzero((np.diff(places) != 1) | (np.diff(rows) != 1))
    for start, end in pairwise([0, *breaks.tolist(), len(places)]):
        if end > start:
            yield int(places[start]), int(rows[start]), end - start


def _logprobs_names(turn: int, prefix: str = "") -> tuple[str, str]:
    return f"{prefix}logprob_tokens.{turn}", f"{prefix}logprobs.{turn}"


def _put(to: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    to[: len(values)] = values


def _pack_arrays(limits: Limits) -> tuple[dict[str, _Array], int]:
    """The place of each array within the packed upload, and the bytes of the upload."""
    sizes = [_nbytes(item, limits) for item in _PACKED]
    offsets, end = pack(sizes, at=0)
    arrays = {
        item.name: _Array(item.dtype, offset, nbytes // _BYTES)
        for item, offset, nbytes in zip(_PACKED, offsets, sizes, strict=True)
    }
    return arrays, end


def _nbytes(item: StepInput, limits: Limits) -> int:
    """Bytes of an input in the largest step."""
    return math.prod(item.shape(asdict(limits))) * _BYTES
