"""Cache groups: layers that read their keys and values within one window share a page table, and pages of their own.

Group 0 is that of the layers without a window; it may have none. A group with a window gives back the pages behind it,
so that its layers hold no more of a long sequence than they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infernum.dims import ceildiv
from infernum.manifest import Manifest


@dataclass(frozen=True)
class CacheGroup:
    """`window`: positions that the layers read, 0: all. `page_bytes`: bytes of one page of all layers together."""

    window: int
    page_bytes: int


def stage_windows(manifest: Manifest, length: int) -> dict[int, int]:
    """The window of each stage that has a cache, by its index in the program.

    0: a sequence of `length` tokens is read whole.
    """
    windows: dict[int, int] = {}
    for index, stage in enumerate(manifest.program):
        for state in next(iter(manifest.blocks[stage.block].values())).state:
            windows[index] = state.window if state.window < length else 0
    return windows


def group_windows(windows: Mapping[int, int]) -> tuple[int, ...]:
    """The window of each cache group of a model, given those of its stages."""
    return tuple(sorted({0, *windows.values()}))


def cache_groups(windows: Mapping[int, int], page_bytes: Mapping[int, int]) -> list[CacheGroup]:
    """The cache groups of a model, given the window and the bytes of a page of each stage."""
    return [
        CacheGroup(window, sum(page_bytes[stage] for stage, own in windows.items() if own == window))
        for window in group_windows(windows)
    ]


def first_page(position: int, window: int, page_size: int) -> int:
    """The first page that a token attends to, by its number within the sequence."""
    return max(0, position + 1 - window) // page_size if window else 0


def most_pages(window: int, length: int, chunk: int, page_size: int) -> int:
    """Most pages that a sequence of `length` tokens owns at a time, computed in steps of at most `chunk` tokens."""
    whole = ceildiv(length, page_size)
    return min(whole, ceildiv(window + chunk - 2, page_size) + 1) if window else whole


def divide_pages(
    groups: Sequence[CacheGroup],
    budget: int,
    *,
    page_size: int,
    chunk: int,
    length: int,
    sequences: int,
    most: int | None = None,
) -> list[int] | None:
    """The pages of each group within `budget` bytes; None where one sequence of `length` tokens does not fit.

    Each group has pages for such a sequence, computed in steps of `chunk` tokens. The rest is for as many sequences of
    a quarter of the length as all groups have room for. No group has more than `most` pages; where all can have so
    many, they do. A group without layers has pages for `sequences` sequences.
    """
    if most is not None and most * sum(group.page_bytes for group in groups) <= budget:
        return [most] * len(groups)
    least = [most_pages(group.window, length, chunk, page_size) for group in groups]
    spare = budget - sum(n * group.page_bytes for n, group in zip(least, groups, strict=True))
    if spare < 0 or (most is not None and most < max(least)):
        return None
    typical = [most_pages(group.window, max(1, length // 4), 1, page_size) for group in groups]
    cost = sum(n * group.page_bytes for n, group in zip(typical, groups, strict=True))
    pages = [
        n + spare * more // cost if group.page_bytes else sequences * n
        for n, more, group in zip(least, typical, groups, strict=True)
    ]
    return pages if most is None else [min(most, n) for n in pages]
