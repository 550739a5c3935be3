"""A step in many variants over the same weights and cache, each checked and timed as one CUDA graph."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from infernum.dtypes import relative_error
from infernum.lab.measure.candidates import CandidateBundle
from infernum.lab.measure.checks import allowed_error
from infernum.lab.measure.cuts import cuts, in_place
from infernum.lab.measure.step_timer import ReplayedGraph, StepTimer, blocks_of
from infernum.lab.measure.workload import Workload, greedy
from infernum.runtime.executor import CudaExecutor

CUT_ROUNDS = 5
"""Rounds in which the step is timed cut after each of its kernels; the least of them counts."""

KernelName = tuple[str, str]
"""Block and name of a kernel."""


class VariantTimer(StepTimer):
    """Times the step of `load` in `load.variant`, the default, and in other variants that serve the same step."""

    def __init__(
        self, executor: CudaExecutor, bundle: CandidateBundle, load: Workload, stack: ExitStack
    ) -> None:
        super().__init__(executor, bundle, load, stack)
        self._served = bundle
        self._graphs: dict[str, ReplayedGraph] = {}
        self.open(load.variant, stack)

    def open(self, variant: str, stack: ExitStack) -> str:
        """Make a variant ready to be sampled, until `stack` is closed; "", or why it is refused.

        Its logits must be the default's, but for the order of sums, and its tokens the most likely ones. Raises
        DeviceError when one of its kernels fails.
        """
        with self._served.serve(variant):
            step = self.prepare()
            refusal = "" if variant == self._load.variant else self._difference()
        if refusal:
            return refusal
        step.upload(self._load.batch())
        step.queue()
        self._graphs[variant] = self.graph(step.queued(), stack, step, variant)
        stack.callback(self._graphs.pop, variant)
        return ""

    def sample(self, variant: str) -> float:
        """Microseconds of the whole step, once: the mean of some replays that follow each other."""
        return 1e3 * self.milliseconds(self._graphs[variant])

    def kernel_us(self) -> dict[KernelName, tuple[int, float]]:
        """For each kernel of the default: its launches in a step, and the microseconds of one launch in its place."""
        with ExitStack() as stack:
            stack.callback(self.step.stream.synchronize)
            graphs = [self.graph(launches, stack) for launches in cuts(self.kernels)]
            least = dict(enumerate(self.least_milliseconds(graphs, CUT_ROUNDS)))
        blocks = blocks_of(self._bundle, self._load.variant)
        return {
            (kernel.block, blocks[kernel.block].kernels[kernel.index].name): (
                len(kernel.launches),
                1e3 * in_place(self.kernels, least, number),
            )
            for number, kernel in enumerate(self.kernels)
        }

    def _difference(self) -> str:
        """How the logits or tokens of the variant that is served differ from the default's; "" where they do not."""
        batch = self._load.batch()
        with self._served.serve(self._load.variant):
            expected = self._executor.logits(batch)  # anew: steps that were timed have overwritten keys
        logits = self._executor.logits(batch)
        error = relative_error(logits, expected)
        if not error <= allowed_error(self._bundle):
            return f"wrong: its logits differ from the default's by {error:.1e}"
        tokens = self._executor.run(batch, greedy(batch.rows)).tokens()
        if not np.array_equal(tokens, np.argmax(logits, axis=-1)):
            return "wrong: its tokens are not the most likely ones"
        return ""
