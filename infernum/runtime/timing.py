"""Time on the GPU, measured between events on a stream."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from types import TracebackType
from typing import Self

from infernum.runtime.device import Device
from infernum.runtime.stream import CudaEvent, Stream

HEAD_START_BYTES = 256 * 2**20
MAX_FILLS = 200


def median_ms(
    device: Device, stream: Stream, call: Callable[[], None], *, runs: int = 20, warmup: int = 3
) -> float:
    """Median milliseconds that the work queued by `call` takes on `stream`, over `runs` runs after `warmup`.

    The result is the host's time to queue the work where that is longer than the GPU's. Queue a captured graph to
    measure the GPU alone.
    """
    for _ in range(warmup):
        call()
    with Stopwatch(device, stream) as watch:
        return statistics.median(watch.milliseconds(call) for _ in range(runs))


class Stopwatch:
    """Times work on a stream with an event before it and an event behind it."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._stream = stream
        self._start, self._end = device.event(timing=True), device.event(timing=True)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Milliseconds that the work queued by `work` takes on the GPU; waits until the work is done."""
        self._stream.record(self._start)
        work()
        self._stream.record(self._end)
        self._end.wait()
        return self._end.milliseconds_since(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._start.close()
        self._end.close()


class StepMarks:
    """Time stamps of the GPU before the first kernel of each step, and after the last one.

    The stamp before a step follows its uploads. So the time between two steps in which the GPU waits for the host, or
    copies inputs, is that between the stamp after one and the stamp before the next.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._events: list[CudaEvent] = []

    def mark(self) -> None:
        """Queue a time stamp: called before the kernels of a step are queued, and after them."""
        event = self._device.event(timing=True)
        self._events.append(event)
        self._stream.record(event)

    def steps(self) -> list[tuple[float, float]]:
        """Milliseconds since the first step began at which each step began and ended. Waits for the last one."""
        if self._events:
            self._events[-1].wait()
        times = [event.milliseconds_since(self._events[0]) for event in self._events]
        return list(zip(times[::2], times[1::2], strict=True))

    def close(self) -> None:
        for event in self._events:
            event.close()
        self._events.clear()


class HeadStart:
    """Keeps the GPU busy with fills of unused memory while the host queues the work that will be timed.

    Without the fills the GPU would wait for the host between short kernels, and the wait would count as kernel time.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        """Allocate up to HEAD_START_BYTES of GPU memory. Raises DeviceError when no memory is free."""
        self._stream = stream
        self._memory = device.alloc(
            min(HEAD_START_BYTES, device.memory()[0] // 4), "time for the host to queue"
        )
        with Stopwatch(device, stream) as watch:
            times = [watch.milliseconds(self._fill) for _ in range(3)]
        self._fill_seconds = max(min(times) * 1e-3, 1e-6)

    def queue(self, seconds: float) -> None:
        """Queue fills that take at least `seconds`, but no more than MAX_FILLS of them."""
        for _ in range(min(math.ceil(seconds / self._fill_seconds), MAX_FILLS)):
            self._fill()

    def close(self) -> None:
        self._memory.free()

    def _fill(self) -> None:
        self._stream.fill(self._memory.address, 0, self._memory.nbytes)
