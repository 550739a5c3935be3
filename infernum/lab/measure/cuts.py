"""A step cut short: its program up to one kernel, and up to the next; what lies between is that kernel in place.

Kernels overlap: each begins while the one before it ends. A kernel's time by itself is therefore not what it adds to
a step, and the sum of such times is not the step. So the step is timed after each of its kernels: cut j holds the
first j kernels, each in every layer that has it, in the order of the program, and the time of kernel j in place is
what cut j takes longer than cut j - 1. The sum over all kernels is by construction the time of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infernum.runtime.binding import StepPlace


@dataclass(frozen=True)
class KernelInStep:
    """A kernel of a block, `index` in it, and the numbers of its launches in the step, one for each layer."""

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
    """The time of one launch of kernel `number`, of `totals[j]`, the time of cut j; noise may make it negative."""
    before = totals[number - 1] if number else 0.0
    return (totals[number] - before) / len(kernels[number].launches)
