"""The result of tuning the kernels of one key: their parameters, times, and candidates that were refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infernum.ir.kernel import Tuned
from infernum.lab.measure.candidates import Tunable, Values
from infernum.lab.measure.variant_timer import KernelName


@dataclass
class TuningResult:
    """The result of tuning the kernels of one key. Times are of one launch in its place, in microseconds.

    gain_us  of the whole step
    raced    False when the time was up before all candidates were compared
    refused  why candidates were refused, by their parameters
    """

    tunable: Tunable
    launches: int = 0
    before_us: float = 0.0
    gain_us: float = 0.0
    values: Values = field(default_factory=dict[str, int])
    raced: bool = False
    refused: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def default(self) -> Values:
        return self.tunable.parameters.default

    @property
    def key(self) -> str:
        return self.tunable.parameters.key

    @property
    def changed(self) -> bool:
        return dict(self.values) != dict(self.default)

    @property
    def after_us(self) -> float:
        return self.before_us - self.gain_us / max(1, self.launches) if self.changed else self.before_us

    def reset(self) -> None:
        """Go back to the default."""
        self.values, self.gain_us = dict(self.default), 0.0


def spelled(values: Mapping[str, int]) -> str:
    """Values of parameters as text: "WARPS 8, SPLITS 16"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def why(result: TuningResult, gpu: str, arch: str, date: str) -> str:
    """The sentence that the manifest has about a kernel that was tuned."""
    tried = f"{len(result.tunable.parameters.candidates)} candidates"
    if not result.changed:
        return f"default for {arch}; none was faster on {gpu}, {date}: {result.before_us:.2f} µs; {tried}"
    return (
        f"tuned on {gpu}, {date}: {result.after_us:.2f} µs;"
        f" default {spelled(result.default)}: {result.before_us:.2f} µs; {tried}"
    )


def row(result: TuningResult, tuned: Mapping[str, Tuned]) -> dict[str, Any]:
    """A kernel in the results of `tune`."""
    blocks = dict.fromkeys(block for block, _ in result.tunable.kernels)
    names = dict.fromkeys(name for _, name in result.tunable.kernels)
    return {
        "variant": result.tunable.variant,
        "block": ", ".join(blocks),
        "kernel": " + ".join(names),
        "key": result.key,
        "launches": result.launches,
        "before": dict(result.default),
        "after": dict(result.values),
        "before_us": result.before_us,
        "after_us": result.after_us,
        "candidates": len(result.tunable.parameters.candidates),
        "decided": result.raced,
        "refused": result.refused,
        "why": tuned[result.key].why if result.key in tuned else "not decided: the time was up",
    }


def record_kernel_times(
    results: Sequence[TuningResult], times: Mapping[KernelName, tuple[int, float]]
) -> None:
    """Set launches and time of each result. The kernels of one key count as one kernel, whose times are summed."""
    for result in results:
        timed = [times[name] for name in result.tunable.kernels if name in times]
        result.launches = timed[0][0] if timed else 0
        total = sum(launches * us for launches, us in timed)
        result.before_us = total / result.launches if result.launches else 0.0
