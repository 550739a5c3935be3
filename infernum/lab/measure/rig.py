"""A step on the GPU in many variants over the same weights and cache, each timed as a graph of the whole step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from infernum.dtypes import relative_error
from infernum.errors import DeviceError
from infernum.lab.measure.candidates import CandidateBundle
from infernum.lab.measure.checked import allowed_error
from infernum.lab.measure.cuts import cuts, in_place, kernels_in_step
from infernum.lab.measure.kernels import advancing_launches
from infernum.lab.measure.replay import Replayed, replays_for
from infernum.lab.measure.workload import Workload, greedy, prompt_steps
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.layout import block_variant
from infernum.runtime.prepared import PreparedStep
from infernum.runtime.timing import HeadStart, Stopwatch

CUT_ROUNDS = 5
"""Rounds in which the step is timed cut after each of its kernels; the least of them counts."""

Named = tuple[str, str]
"""Block and name of a kernel."""


class Rig:
    """`load` is the step; `load.variant` and others of the bundle that serve it are its variants.

    The prompts are run once; what they leave in the cache is what all variants attend to.
    """

    def __init__(
        self, executor: CudaExecutor, bundle: CandidateBundle, load: Workload, stack: ExitStack
    ) -> None:
        """Raises DeviceError when the logits of the default variant are not finite."""
        self._executor, self._bundle, self._load = executor, bundle, load
        for batch, _ in prompt_steps(load.prompts, load.pages, executor):
            executor.run(batch, greedy(batch.rows)).tokens()
        if not np.isfinite(self._output(load.variant)).all():
            raise DeviceError("the logits are not finite; nothing can be tuned")
        step = self._prepared(load.variant)
        self._start = HeadStart(step.device, step.stream)
        stack.callback(self._start.close)
        self._watch = stack.enter_context(Stopwatch(step.device, step.stream))
        stack.callback(step.stream.synchronize)
        step.queue()
        step.upload(load.batch())  # a step moves its batch on by one position
        self._replays = replays_for(1e-3 * self._watch.milliseconds(step.queue))
        self._graphs: dict[str, Replayed] = {}
        self.open(load.variant, stack)

    def open(self, variant: str, stack: ExitStack) -> str:
        """Make a variant ready to be sampled, until `stack` is closed; why it cannot be, or "".

        Its logits must be those of the default, but for the order of sums, and its tokens the most likely ones.
        Raises DeviceError when one of its kernels fails.
        """
        step = self._prepared(variant)
        refused = "" if variant == self._load.variant else self._difference(variant)
        if refused:
            return refused
        step.upload(self._load.batch())
        step.queue()
        launches = tuple(step.queued())
        kernels = kernels_in_step(step.places, launches)
        advances = bool(advancing_launches(self._bundle, variant, kernels))
        self._graphs[variant] = Replayed(step, launches, advances, self._load, self._replays, stack)
        stack.callback(self._graphs.pop, variant)
        return ""

    def sample(self, variant: str) -> float:
        """Microseconds of the whole step, once: the mean of some replays that follow each other."""
        return 1e3 * self._graphs[variant].milliseconds(self._start, self._watch)

    def kernel_us(self) -> Mapping[Named, tuple[int, float]]:
        """Of each kernel of the default: its launches in a step, and the microseconds of one of them in its place."""
        step = self._prepared(self._load.variant)
        kernels = kernels_in_step(step.places, step.queued())
        advancing = advancing_launches(self._bundle, self._load.variant, kernels)
        with ExitStack() as stack:
            stack.callback(step.stream.synchronize)
            graphs = [
                Replayed(step, group, not advancing.isdisjoint(group), self._load, self._replays, stack)
                for group in cuts(kernels)
            ]
            rounds = [
                [graph.milliseconds(self._start, self._watch) for graph in graphs] for _ in range(CUT_ROUNDS)
            ]
        least = {number: min(times) for number, times in enumerate(zip(*rounds, strict=True))}
        found: dict[Named, tuple[int, float]] = {}
        for number, kernel in enumerate(kernels):
            block = block_variant(self._bundle.manifest, kernel.block, self._load.variant)
            us = 1e3 * in_place(kernels, least, number)
            found[kernel.block, block.kernels[kernel.index].name] = len(kernel.launches), us
        return found

    def _prepared(self, variant: str) -> PreparedStep:
        batch = self._load.batch()
        self._bundle.serving[:] = [variant]
        try:
            return self._executor.prepare(batch, greedy(batch.rows))
        finally:
            self._bundle.serving.clear()

    def _output(self, variant: str) -> np.ndarray:
        self._bundle.serving[:] = [variant]
        try:
            return self._executor.logits(self._load.batch())
        finally:
            self._bundle.serving.clear()

    def _difference(self, variant: str) -> str:
        batch = self._load.batch()
        expected = self._output(self._load.variant)  # anew: steps that were timed have left other keys behind
        logits = self._output(variant)
        error = relative_error(logits, expected)
        if not error <= allowed_error(self._bundle):
            return f"wrong: its logits differ from the default's by {error:.1e}"
        self._bundle.serving[:] = [variant]
        try:
            tokens = self._executor.run(batch, greedy(batch.rows)).tokens()
        finally:
            self._bundle.serving.clear()
        if not np.array_equal(tokens, np.argmax(logits, axis=-1)):
            return "wrong: its tokens are not the most likely ones"
        return ""
