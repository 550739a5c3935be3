"""Cuts of a step: the step up to one of its kernels. The difference of two cuts is the time of a kernel in place.

Kernels overlap: a kernel begins while the kernel before it ends. So the times of kernels by themselves do not add up
to the time of the step. Instead the step is timed up to each of its kernels: cut j holds the first j kernels, each in
every layer that has it, in the order of the program. The time of kernel j in place is the time of cut j minus the time
of cut j - 1. By construction, the times of all kernels add up to the time of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infernum.runtime.binding import StepPlace


@dataclass(frozen=True)
class KernelInStep:
    """Kernel number `index` of a block, and the numbers of its launches in the step, one for each layer."""

    block: str
    index: int
    launches: tuple[int, ...]


def kernels_in_step(places: Sequence[StepPlace], queued: Sequence[int]) -> list[KernelInStep]:
    """The kernels that a step launches, in the order in which they first appear."""
    launches: dict[tuple[str, int], list[int]] = {}
    for number in queued:
        launches.setdefault((places[number].block, places[number].index), []).append(number)
    return [KernelInStep(block, index, tuple(numbers)) for (block, index), numbers in launches.items()]


def cuts(kernels: Sequence[KernelInStep]) -> list[tuple[int, ...]]:
    """For each kernel the launches of the step that is cut after it, in the order of the program."""
    return [
        tuple(sorted(number for kernel in kernels[: end + 1] for number in kernel.launches))
        for end in range(len(kernels))
    ]


def in_place(kernels: Sequence[KernelInStep], totals: Mapping[int, float], number: int) -> float:
    """The time of one launch of kernel `number`; `totals[j]` is the time of cut j. Noise may make it negative."""
    before = totals[number - 1] if number else 0.0
    return (totals[number] - before) / len(kernels[number].launches)
