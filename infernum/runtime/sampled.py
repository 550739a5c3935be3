"""Sampled tokens, copied from the GPU to the host while the next steps run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum.dtypes import F32, I32
from infernum.runtime.device import Device, PinnedMemory
from infernum.runtime.stream import CudaEvent, Stream
from infernum.sampling_params import MOST_LOGPROBS
from infernum.step import Int32, Logprobs

BUFFERS = 8
"""Number of buffers on the host, and so of steps whose tokens may be unread at the same time."""

COLUMNS = 1 + MOST_LOGPROBS
"""Log-probabilities of a row."""

TURNS = 2
"""Number of token buffers on the GPU. Steps use them in turn: a step writes one while the other is copied."""


@dataclass(frozen=True)
class _TokenBuffer:
    address: int
    values: np.ndarray[Any, Any]
    logprobs: PinnedMemory
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
            logprobs = device.alloc_pinned(2 * max_rows * COLUMNS * I32.bytes)
            stack.callback(logprobs.free)
            self._buffers.append(_TokenBuffer(memory.address + offset, values, logprobs, sampled, arrived))
        stack.callback(self._copies.synchronize)

    def next_turn(self) -> int:
        """The token buffer on the GPU that the next step may write.

        Step n may overwrite its token buffer only after the copy of step n − 2, which used the same buffer, has
        finished.
        """
        if self.step >= TURNS:
            self._buffers[(self.step - TURNS) % BUFFERS].arrived.wait()
        return self.step % TURNS

    def fetch(
        self, source: int, rows: int, owner: object = None, logprobs: tuple[int, int] | None = None
    ) -> SampledTokens:
        """Queue the copy of `rows` tokens at `source` on the GPU, behind all work queued on the stream so far.

        `logprobs`: addresses of tokens and values of their log-probabilities, which are copied too. The tokens hold a
        reference to `owner`, so that the ring is not freed before they are read.
        """
        buffer = self._buffers[self.step % BUFFERS]
        self._stream.record(buffer.sampled)
        self._copies.wait(buffer.sampled)
        if rows:
            self._copies.download(buffer.address, source, rows * I32.bytes)
            nbytes = rows * COLUMNS * I32.bytes
            for part, address in enumerate(logprobs or ()):
                self._copies.download(buffer.logprobs.address + part * nbytes, address, nbytes)
        self._copies.record(buffer.arrived)
        self.step += 1
        return SampledTokens(self, self.step - 1, rows, owner, has_logprobs=logprobs is not None)

    def read(self, step: int, rows: int) -> Int32:
        """The tokens of step number `step`; waits for their copy."""
        return self._arrived(step).values[:rows].copy()

    def read_logprobs(self, step: int, rows: int) -> Logprobs:
        """The log-probabilities of step number `step`; waits for their copy."""
        memory, count = self._arrived(step).logprobs, rows * COLUMNS
        tokens = memory.array(I32.numpy, count).reshape(rows, COLUMNS)
        values = memory.array(F32.numpy, count, count * F32.bytes).reshape(rows, COLUMNS)
        return Logprobs(tokens.copy(), values.copy())

    def _arrived(self, step: int) -> _TokenBuffer:
        """The buffer of step number `step`, once its copies have finished."""
        assert self.step - step <= BUFFERS, (
            f"the tokens of a step must be read before {BUFFERS} more steps are started"
        )
        buffer = self._buffers[step % BUFFERS]
        self._device.activate()
        buffer.arrived.wait()
        return buffer


class SampledTokens:
    """Tokens of a step that may still be running. Read them before `BUFFERS` more steps are launched."""

    def __init__(
        self, ring: TokenRing, step: int, rows: int, owner: object, *, has_logprobs: bool = False
    ) -> None:
        self._ring = ring
        self._owner = owner
        self._step = step
        self._rows = rows
        self._has_logprobs = has_logprobs
        self._tokens: Int32 | None = None

    def tokens(self) -> Int32:
        """The sampled token of each row, int32 [rows], or `NO_TOKEN`; waits for the step."""
        if self._tokens is None:
            self._tokens = self._ring.read(self._step, self._rows)
        return self._tokens

    def logprobs(self) -> Logprobs:
        """The log-probabilities of each row, of a step whose sampling has `logprobs`; waits for the step."""
        assert self._has_logprobs, "the step computed no log-probabilities"
        return self._ring.read_logprobs(self._step, self._rows)
