"""A race of candidates against a reference, timed in turns; a winner is faster beyond doubt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FIRST_ROUNDS = 4
"""Rounds of all candidates."""

LAST_ROUNDS = 16
"""Rounds of the best quarter, at least two candidates. Only these decide: the first rounds chose who takes part."""

LEAST_SAMPLES = 8
"""Samples in the last rounds that a decision needs; there are fewer when time ran out."""

LEAST_GAIN = 0.005
"""Least gain of a winner, as a share of the time of its kernel."""

DOUBT = 4.0
"""Standard errors by which the gain of a winner exceeds zero."""

Sample = Callable[[str], float]
"""Times the step once in the variant of a name; returns microseconds."""


@dataclass
class PairedDifferences:
    """Times of a candidate minus times of the reference right before it, in microseconds of the whole step.

    last  True where the differences are those of the last rounds
    """

    differences: list[float] = field(default_factory=list[float])
    last: bool = False

    @property
    def samples(self) -> int:
        return len(self.differences)

    @property
    def decided(self) -> bool:
        """False when time ran out before there were enough samples."""
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
        """True when the candidate was faster by `least` microseconds in the last rounds, and beyond doubt."""
        return self.last and -self.median >= least and -self.median > DOUBT * self.spread


def race(
    reference: str, candidates: Sequence[str], sample: Sample, in_time: Callable[[], bool]
) -> dict[str, PairedDifferences]:
    """Time candidates against the reference, each right after it, so that a drift of the clocks affects both alike.

    All of them for FIRST_ROUNDS, then the best of them for LAST_ROUNDS. The race ends early, with the samples that it
    has, when `in_time` becomes False.
    """
    comparisons = {name: PairedDifferences() for name in candidates}

    def rounds(names: Sequence[str], count: int) -> None:
        for _ in range(count):
            for name in names:
                if not in_time():
                    return
                before = sample(reference)
                comparisons[name].differences.append(sample(name) - before)

    rounds(candidates, FIRST_ROUNDS)
    best = sorted(candidates, key=lambda name: comparisons[name].median)[: max(2, len(candidates) // 4)]
    if all(comparison.decided for comparison in comparisons.values()):
        comparisons |= {name: PairedDifferences(last=True) for name in best}
        rounds(best, LAST_ROUNDS)
    return comparisons


def winner(comparisons: dict[str, PairedDifferences], kernel_us: float) -> str | None:
    """The candidate that gains most over the reference; None where no candidate gains enough.

    `kernel_us`: the share of the kernel in the step, over all its launches.
    """
    least = LEAST_GAIN * max(kernel_us, 0.0)
    gaining = [name for name, comparison in comparisons.items() if comparison.gains(least)]
    return min(gaining, key=lambda name: comparisons[name].median, default=None)
