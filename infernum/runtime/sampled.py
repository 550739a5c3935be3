"""Sampled tokens, copied from the GPU to the host while the next steps run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum.dtypes import I32
from infernum.runtime.device import Device
from infernum.runtime.stream import CudaEvent, Stream
from infernum.step import Int32

BUFFERS = 8
"""Number of buffers on the host, and so of steps whose tokens may be unread at the same time."""

TURNS = 2
"""Number of token buffers on the GPU. Steps use them in turn: a step writes one while the other is copied."""


@dataclass(frozen=True)
class _TokenBuffer:
    address: int
    values: np.ndarray[Any, Any]
    sampled: CudaEvent
    arrived: CudaEvent


class TokenRing:
    """A ring of pinned buffers, each filled by an asynchronous copy after a step.

    Copies have a stream of their own, so that the next step need not wait for them.
    """

    def __init__(self, device: Device, stream: Stream, max_rows: int, stack: ExitStack) -> None:
        """Allocate buffers for steps of up to `max_rows` rows; `stack` frees them."""
        self._device = device
        self._stream = stream
        self.step = 0
        memory = device.alloc_pinned(BUFFERS * max_rows * I32.bytes)
        stack.callback(memory.free)
        self._copies = device.stream()
        stack.callback(self._copies.close)
        self._buffers: list[_TokenBuffer] = []
        for index in range(BUFFERS):
            offset = index * max_rows * I32.bytes
            sampled = device.event()
            stack.callback(sampled.close)
            arrived = device.event()
            stack.callback(arrived.close)
            values = memory.array(I32.numpy, max_rows, offset)
            self._buffers.append(_TokenBuffer(memory.address + offset, values, sampled, arrived))
        stack.callback(self._copies.synchronize)

    def next_turn(self) -> int:
        """The token buffer on the GPU that the next step may write.

        Step n may overwrite its token buffer only after the copy of step n − 2, which used the same buffer, has
        finished.
        """
        if self.step >= TURNS:
            self._buffers[(self.step - TURNS) % BUFFERS].arrived.wait()
        return self.step % TURNS

    def fetch(self, source: int, rows: int, owner: object = None) -> SampledTokens:
        """Queue the copy of `rows` tokens at `source` on the GPU, behind all work queued on the stream so far.

        The tokens hold a reference to `owner`, so that the ring is not freed before they are read.
        """
        buffer = self._buffers[self.step % BUFFERS]
        self._stream.record(buffer.sampled)
        self._copies.wait(buffer.sampled)
        if rows:
            self._copies.download(buffer.address, source, rows * I32.bytes)
        self._copies.record(buffer.arrived)
        self.step += 1
        return SampledTokens(self, self.step - 1, rows, owner)

    def read(self, step: int, rows: int) -> Int32:
        """The tokens of step number `step`; waits for their copy."""
        assert self.step - step <= BUFFERS, (
            f"the tokens of a step must be read before {BUFFERS} more steps are started"
        )
        buffer = self._buffers[step % BUFFERS]
        self._device.activate()
        buffer.arrived.wait()
        return buffer.values[:rows].copy()


class SampledTokens:
    """Tokens of a step that may still be running. Read them before `BUFFERS` more steps are launched."""

    def __init__(self, ring: TokenRing, step: int, rows: int, owner: object) -> None:
        self._ring = ring
        self._owner = owner
        self._step = step
        self._rows = rows
        self._tokens: Int32 | None = None

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows], or `NO_TOKEN`; waits for the step."""
        if self._tokens is None:
            self._tokens = self._ring.read(self._step, self._rows)
        return self._tokens
