"""Cache groups: layers that read their keys and values within one window share a page table, and pages of their own.

A group with a window gives back the pages behind it, so that its layers hold no more of a long sequence than they read.
"""

from __future__ import annotations

from collections.abc import Mapping

from infernum.dims import ceildiv
from infernum.manifest import Manifest


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
    """The window of each cache group of a model, given those of its stages: 0, if there is one, comes first."""
    return tuple(sorted(set(windows.values()))) or (0,)


def first_page(position: int, window: int, page_size: int) -> int:
    """The first page that a token attends to, by its number within the sequence."""
    return max(0, position + 1 - window) // page_size if window else 0


def most_pages(window: int, length: int, chunk: int, page_size: int) -> int:
    """Most pages that a sequence of `length` tokens owns at a time, computed in steps of at most `chunk` tokens."""
    whole = ceildiv(length, page_size)
    return min(whole, ceildiv(window + chunk, page_size) + 1) if window else whole
