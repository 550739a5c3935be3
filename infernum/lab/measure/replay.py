"""Some kernels of a step as a graph that is replayed back to back, so that neither the host nor an idle GPU counts."""

from __future__ import annotations

from contextlib import ExitStack

from infernum.lab.measure.cuts import KernelInStep
from infernum.lab.measure.workload import Workload
from infernum.runtime.prepared import PreparedStep
from infernum.runtime.timing import HeadStart, Stopwatch

REPLAYS = 20
"""Replays of a graph between two events, unless they would take longer than REPLAY_SECONDS; two at least."""

REPLAY_SECONDS = 0.02
"""Short enough that a GPU at its power limit does not slow down on the way."""

LEAST_LAUNCHES = 8
"""Launches in the graph of a kernel alone, where the step has fewer."""

LAUNCH_SECONDS = 30e-6
"""More than the host takes to launch a graph."""


def replays_for(step_seconds: float) -> int:
    """How many replays of a step of this length are timed together."""
    return max(2, min(REPLAYS, int(REPLAY_SECONDS / step_seconds)))


class Replayed:
    """A graph of some launches of a step, replayed between two events. `advances`: it moves on by one position."""

    def __init__(
        self,
        step: PreparedStep,
        launches: tuple[int, ...],
        advances: bool,
        load: Workload,
        replays: int,
        stack: ExitStack,
    ) -> None:
        self.launches = launches
        self._step = step
        self._graph = step.capture(launches)
        stack.callback(self._graph.close)
        self._replays = load.repeats(replays + 1) - 1 if advances else replays
        self._batch = load.batch(load.start(self._replays + 1) if advances else None)

    def milliseconds(self, start: HeadStart, watch: Stopwatch) -> float:
        """The time of one replay among several that follow each other; the one before them is not timed."""
        self._step.upload(self._batch)
        start.queue((self._replays + 1) * LAUNCH_SECONDS)
        if self._replays < 1:  # no room to move on: the one replay is timed, by itself
            return watch.milliseconds(self._graph.launch)
        self._graph.launch()
        return watch.milliseconds(self._replay) / self._replays

    def _replay(self) -> None:
        for _ in range(self._replays):
            self._graph.launch()


def launches_alone(kernel: KernelInStep, advancing: set[int]) -> tuple[int, ...]:
    """The launches of a kernel, over and over where they are few; what moves on by a position does so once."""
    if set(kernel.launches) & advancing:
        return kernel.launches
    return kernel.launches * -(-LEAST_LAUNCHES // len(kernel.launches))
