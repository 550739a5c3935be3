"""Steps that are run phase by phase, so that those of several ranks go on together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

Result = TypeVar("Result")

Phases = Generator[None, None, Result]
"""A step. It yields where every rank must have come before one of them goes on, and returns its result."""


def in_lockstep(steps: Sequence[Phases[Result]]) -> Result:
    """Run the steps of all ranks, one phase of each after the other. Returns the result of the first."""
    results: list[Result] = []
    while not results:
        for step in steps:
            try:
                next(step)
            except StopIteration as end:
                results.append(end.value)
    assert len(results) == len(steps), "all ranks have the same phases"
    return results[0]
