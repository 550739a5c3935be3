"""Time on the GPU, measured between two events on a stream."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from infernum.runtime.device import Device
from infernum.runtime.stream import Stream


def median_ms(
    device: Device, stream: Stream, call: Callable[[], None], *, runs: int = 20, warmup: int = 3
) -> float:
    """Median milliseconds that the work queued by `call` takes on `stream`, over `runs` runs after `warmup`.

    The time the host takes to queue the work counts when it is the longer one; queue a captured graph to
    leave it out.
    """
    for _ in range(warmup):
        call()
    start, end = device.event(timing=True), device.event(timing=True)
    times: list[float] = []
    try:
        for _ in range(runs):
            stream.record(start)
            call()
            stream.record(end)
            end.wait()
            times.append(end.milliseconds_since(start))
    finally:
        start.close()
        end.close()
    return statistics.median(times)
