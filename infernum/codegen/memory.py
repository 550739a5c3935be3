"""Memory planning: lifetimes to offsets in one arena, so that tensors that are never alive together share bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 256


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `bytes` bytes, written by step `first` and last read by step `last`."""

    name: str
    bytes: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def plan_memory(lifetimes: Iterable[Lifetime]) -> tuple[dict[str, int], int]:
    """Offset of each tensor, and the size of the arena, in bytes.

    Largest first, each at the lowest offset where no tensor alive at the same time stands (greedy by size: Pisarchyk
    & Lee 2020, arXiv:2001.03288).
    """
    placed: list[tuple[int, Lifetime]] = []
    for tensor in sorted(lifetimes, key=lambda t: (-t.bytes, t.first, t.name)):
        offset = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            if tensor.overlaps(other) and offset < start + other.bytes and start < offset + tensor.bytes:
                offset = _aligned(start + other.bytes)
        placed.append((offset, tensor))
    offsets = {tensor.name: offset for offset, tensor in sorted(placed, key=lambda p: (p[1].first, p[0]))}
    return offsets, _aligned(max((offset + t.bytes for offset, t in placed), default=0))


def check_no_overlap(lifetimes: Iterable[Lifetime], offsets: Mapping[str, int]) -> None:
    """Assert that no two tensors alive at the same time share a byte."""
    tensors = list(lifetimes)
    for i, a in enumerate(tensors):
        for b in tensors[i + 1 :]:
            if a.overlaps(b):
                first, second = sorted((a, b), key=lambda t: offsets[t.name])
                end = offsets[first.name] + first.bytes
                assert end <= offsets[second.name], (
                    f"{first.name} and {second.name} share bytes while both are alive"
                )


def _aligned(value: int) -> int:
    return -(-value // ALIGNMENT) * ALIGNMENT
