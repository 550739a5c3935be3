"""Candidates timed against a reference, turn by turn, and which of them is faster beyond doubt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FIRST_ROUNDS = 4
"""Rounds in which every candidate takes part."""

LAST_ROUNDS = 16
"""Rounds of those that were among the best quarter, two at least. These alone decide: the first ones chose them."""

LEAST_SAMPLES = 8
"""Last rounds without which nothing is decided, as when time ran out."""

LEAST_GAIN = 0.005
"""Share of a kernel's time that it must gain to be changed."""

DOUBT = 4.0
"""Standard errors by which the gain must be more than zero."""

Sample = Callable[[str], float]
"""Microseconds of one timing of the step with a candidate, by name."""


@dataclass
class Comparison:
    """Differences of a candidate to the reference that was timed right before it, in microseconds of the whole step.

    `last`: they are of the last rounds.
    """

    differences: list[float] = field(default_factory=list[float])
    last: bool = False

    @property
    def samples(self) -> int:
        return len(self.differences)

    @property
    def decided(self) -> bool:
        """False when time ran out before it was compared often enough."""
        return self.samples >= (LEAST_SAMPLES if self.last else FIRST_ROUNDS)

    @property
    def median(self) -> float:
        """Infinite for a candidate that was never timed."""
        return statistics.median(self.differences) if self.differences else math.inf

    @property
    def spread(self) -> float:
        """The standard error of the median, from the median absolute deviation; infinite for a few samples."""
        if not self.decided:
            return math.inf
        middle = self.median
        deviation = 1.4826 * statistics.median(abs(value - middle) for value in self.differences)
        return 1.2533 * deviation / math.sqrt(self.samples)

    def gains(self, least: float) -> bool:
        """True when the last rounds found it faster by `least` microseconds at the least, and beyond doubt."""
        return self.last and -self.median >= least and -self.median > DOUBT * self.spread


def race(
    reference: str, candidates: Sequence[str], sample: Sample, in_time: Callable[[], bool]
) -> dict[str, Comparison]:
    """Time candidates against the reference, each right after it, so that a drift of the clocks hits both alike.

    All of them for FIRST_ROUNDS, then the best ones for LAST_ROUNDS; it ends early, with what there is, once `in_time`
    says so.
    """
    found = {name: Comparison() for name in candidates}

    def rounds(names: Sequence[str], count: int) -> None:
        for _ in range(count):
            for name in names:
                if not in_time():
                    return
                before = sample(reference)
                found[name].differences.append(sample(name) - before)

    rounds(candidates, FIRST_ROUNDS)
    best = sorted(candidates, key=lambda name: found[name].median)[: max(2, len(candidates) // 4)]
    if all(each.decided for each in found.values()):
        found |= {name: Comparison(last=True) for name in best}
        rounds(best, LAST_ROUNDS)
    return found


def winner(found: dict[str, Comparison], kernel_us: float) -> str | None:
    """The candidate to take instead of the reference: the one that gains most, if it gains enough; else None.

    `kernel_us`: what the kernel takes of the step, in all its launches.
    """
    gaining = [name for name, each in found.items() if each.gains(LEAST_GAIN * max(kernel_us, 0.0))]
    return min(gaining, key=lambda name: found[name].median, default=None)
