"""The pages of a cache group whose layers have a window: a sequence gives back those behind it."""

from __future__ import annotations

import numpy as np

from infernum.engine.page_pool import PagePool
from infernum.step import Array, Int32

_UNBOUNDED = 2**31 - 1


class WindowedPages:
    """The pages of the sequences that run, in one cache group. Arrays are int32, with a row for each slot.

    window      positions that a token attends to, itself among them
    table       [slots, columns]: the page of each column; −1: it is behind the window, or not needed yet
    first, end  [slots]: columns first … end − 1 have pages
    """

    def __init__(self, window: int, pool: PagePool, slots: int, columns: int) -> None:
        self.window = window
        self.pool = pool
        self.table = np.full((slots, columns), -1, np.int32)
        self.first, self.end = np.zeros((2, slots), np.int32)

    def first_columns(self, positions: Array) -> Int32:
        """The first column that a token at each of these positions attends to."""
        return np.maximum(positions + 1 - self.window, 0) // self.pool.page_size

    def needed(self, lengths: Array) -> Array:
        """Pages of sequences of so many tokens, while they decode."""
        return np.minimum(-(-lengths // self.pool.page_size), self.pool.pages_for(self.window) + 1)

    def owned(self, slots: Array) -> int:
        """Number of pages of these slots together."""
        return int((self.end[slots] - self.first[slots]).sum())

    def release_behind(self, slots: Array, positions: Int32) -> None:
        """Give back the pages that no token from `positions` on attends to.

        A launched step may still read them. The steps of their next owner run after it, on the same stream.
        """
        first = self.first_columns(positions)
        for place in np.flatnonzero(first > self.first[slots]):
            slot, column = int(slots[place]), min(int(first[place]), int(self.end[slots[place]]))
            self._release(slot, column)
            self.first[slot] = int(first[place])
            self.end[slot] = max(self.end[slot], self.first[slot])

    def grow(self, slots: list[int]) -> bool:
        """Give each slot its next page; False where there are too few for all."""
        pages = self.pool.allocate(len(slots))
        if pages is None:
            return False
        self.table[slots, self.end[slots]] = pages
        self.end[slots] += 1
        return True

    def add(self, slot: int, count: int) -> bool:
        """Give a slot its next `count` pages; False where fewer are free."""
        pages = self.pool.allocate(count)
        if pages is None:
            return False
        end = int(self.end[slot])
        self.table[slot, end : end + count] = pages
        self.end[slot] += count
        return True

    def clear(self, slot: int) -> None:
        """Give back all pages of a slot."""
        self._release(slot, int(self.end[slot]))
        self.first[slot] = self.end[slot] = 0

    def _release(self, slot: int, column: int) -> None:
        """Give back the pages before a column."""
        pages = self.table[slot, self.first[slot] : column]
        self.pool.release(pages.tolist())
        pages[:] = -1


def longest_sequence(window: int, pool: PagePool) -> int:
    """Most tokens of a sequence that has all pages of a pool for itself, computed page by page."""
    return _UNBOUNDED if pool.num_pages >= pool.pages_for(window) + 2 else pool.capacity


def longest_chunk(window: int, length: int, pages: int, page_size: int) -> int:
    """Most tokens of a step of a sequence of `length` tokens that has so many pages for itself."""
    return length if length <= pages * page_size else (pages - 1) * page_size - window
