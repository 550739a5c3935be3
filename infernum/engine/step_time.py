"""How long a step with prompt tokens takes, fitted to the steps so far."""

from __future__ import annotations

import numpy as np

from infernum.step import Array

_FORGETTING = 0.97
"""What the weight of a measurement is multiplied by with each further one: about the last 33 count."""

_TRUST = 1e-2
"""Weight of the estimate so far. It decides where the measurements do not, as when all steps were alike."""

_MOST_SURPRISE = 2.0
"""A time is read as at most so many times the predicted one, and as no less than that share of it.

A single step that was disturbed then changes little, and a lasting change is followed within a few steps.
"""

_SHORTEST = 1e-6
"""Seconds of a step at least."""

_MARGIN = 0.05
"""Share of a limit that predictions stay below it."""


class StepTime:
    """Estimates seconds = a + b · prompt tokens + c · decodes, with a, b and c not negative.

    By least squares of relative errors: a step counts as much as one with ten times its tokens, and a step that was
    disturbed, such as the first, for which the GPU loads kernels, counts little.

    Only steps with prompt tokens count: steps of decodes alone run other kernels.
    """

    def __init__(self) -> None:
        self._products: Array = np.zeros((3, 3))
        self._steps: Array = np.zeros(3)
        self._estimate: Array = np.zeros(3)

    def measure(self, prompt_tokens: int, decodes: int, seconds: float) -> None:
        """Note a step: the time from the tokens of the step before to its own, the GPU not being idle between."""
        step = _features(prompt_tokens, decodes)
        predicted = float(step @ self._estimate)
        if predicted:
            seconds = min(max(seconds, predicted / _MOST_SURPRISE), predicted * _MOST_SURPRISE)
        seconds = max(seconds, _SHORTEST)
        step /= seconds
        self._products = _FORGETTING * self._products + np.outer(step, step)
        self._steps = _FORGETTING * self._steps + step
        trust = _TRUST / seconds**2
        estimate = np.linalg.solve(self._products + trust * np.eye(3), self._steps + trust * self._estimate)
        self._estimate = np.maximum(estimate, 0)

    def prompt_tokens_within(self, seconds: float, decodes: int) -> int | None:
        """Most prompt tokens of a step that takes no longer than this; None: no step was measured that tells."""
        each, rest = float(self._estimate[1]), float(_features(0, decodes) @ self._estimate)
        if not each:
            return None
        return max(0, int(1024 * ((1 - _MARGIN) * seconds - rest) / each))


def _features(prompt_tokens: int, decodes: int) -> Array:
    """The factors of a, b and c, of about the same size: prompt tokens in units of 1024, decodes in units of 256."""
    return np.array([1.0, prompt_tokens / 1024, decodes / 256])
