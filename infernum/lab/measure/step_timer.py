"""The time of a step on the GPU, whole or in parts: CUDA graphs of some of its launches, replayed back to back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from infernum.bundle import Bundle
from infernum.errors import DeviceError
from infernum.lab.measure.cuts import KernelInStep, kernels_in_step
from infernum.lab.measure.workload import Workload, greedy, prompt_steps
from infernum.manifest import BlockVariant, Launch, Pointer
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.layout import block_variant
from infernum.runtime.prepared import PreparedStep
from infernum.runtime.stream import CudaGraph
from infernum.runtime.timing import HeadStart, Stopwatch

REPLAYS = 20
"""Replays of a graph between two events, unless they would take longer than REPLAY_SECONDS; two at least."""

REPLAY_SECONDS = 0.02
"""Short enough that a GPU at its power limit does not lower its clock on the way."""

LEAST_LAUNCHES = 8
"""Launches in the graph of a kernel alone, where the step has fewer."""

LAUNCH_SECONDS = 30e-6
"""More than the host takes to launch a graph."""


@dataclass(frozen=True)
class ReplayedGraph:
    """A graph of `launches` of a step, which is replayed `replays` times from the batch at `start`.

    start    position of the batch where each replay moves it on by one; None: the batch of the workload
    """

    step: PreparedStep
    graph: CudaGraph
    launches: Sequence[int]
    replays: int
    start: int | None


class StepTimer:
    """Times the step of a workload, over a cache that holds the workload's prompts. Open until `stack` is closed."""

    def __init__(self, executor: CudaExecutor, bundle: Bundle, load: Workload, stack: ExitStack) -> None:
        """Runs the prompts. Raises DeviceError when the logits of the step are not finite."""
        self._executor, self._bundle, self._load = executor, bundle, load
        for batch, _ in prompt_steps(load.prompts, load.pages, executor):
            executor.run(batch, greedy(batch.rows)).tokens()
        self.check_logits()
        step = self.step = self.prepare()
        self._head_start = HeadStart(step.device, step.stream)
        stack.callback(self._head_start.close)
        self._watch = stack.enter_context(Stopwatch(step.device, step.stream))
        stack.callback(step.stream.synchronize)
        step.queue()
        step.upload(load.batch())  # the sampler has moved the batch on by one position
        seconds = 1e-3 * self._watch.milliseconds(step.queue)
        self._replays = max(2, min(REPLAYS, int(REPLAY_SECONDS / seconds)))
        self.kernels = kernels_in_step(step.places, step.queued())

    def prepare(self) -> PreparedStep:
        """The step, with the batch of the workload uploaded."""
        batch = self._load.batch()
        return self._executor.prepare(batch, greedy(batch.rows))

    def check_logits(self) -> None:
        """Raises DeviceError unless the logits of the step are finite."""
        if not np.isfinite(self._executor.logits(self._load.batch())).all():
            raise DeviceError("the logits are not finite; no result is given")

    def graph(
        self,
        launches: Sequence[int],
        stack: ExitStack,
        step: PreparedStep | None = None,
        variant: str | None = None,
    ) -> ReplayedGraph:
        """Capture launches of `step`, in `variant`; by default of the workload. Each kernel must have run before."""
        step, variant = step or self.step, variant or self._load.variant
        graph = step.capture(launches)
        stack.callback(graph.close)
        if moves_on(self._bundle, variant, step, launches):
            replays = self._load.repeats(self._replays + 1) - 1
            return ReplayedGraph(step, graph, launches, replays, self._load.start(replays + 1))
        return ReplayedGraph(step, graph, launches, self._replays, None)

    def milliseconds(self, graph: ReplayedGraph) -> float:
        """The mean time of replays that follow each other; one more replay ahead of them is not timed."""
        graph.step.upload(self._load.batch(graph.start))
        self._head_start.queue((graph.replays + 1) * LAUNCH_SECONDS)
        if graph.replays < 1:  # no room to move on: the only replay is the timed one
            return self._watch.milliseconds(graph.graph.launch)
        graph.graph.launch()

        def replay() -> None:
            for _ in range(graph.replays):
                graph.graph.launch()

        return self._watch.milliseconds(replay) / graph.replays

    def least_milliseconds(
        self,
        graphs: Sequence[ReplayedGraph],
        rounds: int,
        after_round: Callable[[int], None] = lambda rounds_done: None,
    ) -> list[float]:
        """The least time of each graph over some rounds.

        A round times all graphs in turn, so that a drift of the clocks affects all of them alike. The least time
        counts, since whatever disturbs a GPU only makes it slower.
        """
        least = [float("inf")] * len(graphs)
        for number in range(rounds):
            least = [min(ms, self.milliseconds(graph)) for ms, graph in zip(least, graphs, strict=True)]
            after_round(number + 1)
        return least

    def launches_alone(self, kernel: KernelInStep) -> tuple[int, ...]:
        """The launches of a kernel, repeated where they are few, unless they move the batch on."""
        if moves_on(self._bundle, self._load.variant, self.step, kernel.launches):
            return kernel.launches
        return kernel.launches * -(-LEAST_LAUNCHES // len(kernel.launches))


def moves_on(bundle: Bundle, variant: str, step: PreparedStep, launches: Collection[int]) -> bool:
    """True when one of these launches is the kernel of a sampler that writes `positions`."""
    for place in (step.places[number] for number in launches):
        if place.block in bundle.manifest.samplers:
            launch = block_variant(bundle.manifest, place.block, variant).steps[place.index]
            if isinstance(launch, Launch) and any(
                isinstance(arg, Pointer) and arg.tensor == "positions" for arg in launch.args
            ):
                return True
    return False


def blocks_of(bundle: Bundle, variant: str) -> Mapping[str, BlockVariant]:
    """The code of every block in a step of `variant`."""
    return {name: block_variant(bundle.manifest, name, variant) for name in bundle.manifest.blocks}
