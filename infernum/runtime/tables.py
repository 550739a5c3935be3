"""The tables on the GPU that outlive a step, and the upload of single rows of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict

from infernum.dtypes import I32
from infernum.runtime.device import Device
from infernum.runtime.layout import Limits, pack
from infernum.runtime.stream import CudaEvent, Stream
from infernum.step import TABLES, TableRow

_STAGED = 8
"""Rows in pinned memory that may be on their way to the GPU."""


class Tables:
    """The tables at fixed addresses. Their memory is not initialised: a row is written before a step reads it."""

    def __init__(self, device: Device, stream: Stream, limits: Limits, stack: ExitStack) -> None:
        """Allocate the tables on `device`; `stack` frees them. Raises DeviceError when they do not fit."""
        self._stream = stream
        sizes = asdict(limits) | {"table_rows": limits.rows}
        shapes = {table.name: table.shape(sizes) for table in TABLES}
        offsets, self.nbytes = pack([math.prod(shape) * I32.bytes for shape in shapes.values()], at=0)
        memory = device.alloc(self.nbytes, "the tables of penalties, biases and allowed tokens")
        stack.callback(memory.free)
        self.addresses = {name: memory.address + at for name, at in zip(shapes, offsets, strict=True)}
        self._columns = {name: columns for name, (_, columns) in shapes.items()}
        self._staged_columns = max(self._columns.values())
        self._staging = device.alloc_pinned(_STAGED * self._staged_columns * I32.bytes)
        stack.callback(self._staging.free)
        self._sent: list[CudaEvent] = []
        for _ in range(_STAGED):
            self._sent.append(device.event())
            stack.callback(self._sent[-1].close)
        self._next = 0

    def write(self, rows: Iterable[TableRow]) -> None:
        """Queue the upload of rows. The caller may change their values as soon as this returns."""
        for row in rows:
            columns = self._columns[row.table]
            offset = self._next * self._staged_columns * I32.bytes
            self._sent[self._next].wait()
            self._staging.array(row.values.dtype, columns, offset)[:] = row.values
            to = self.addresses[row.table] + row.row * columns * I32.bytes
            self._stream.upload(to, self._staging.address + offset, columns * I32.bytes)
            self._stream.record(self._sent[self._next])
            self._next = (self._next + 1) % _STAGED
