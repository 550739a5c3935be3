"""The pool of KV cache pages: which pages are free, and which are allocated."""

from __future__ import annotations


class PagePool:
    """Allocates pages 0 … num_pages − 1 of the KV cache, each of `page_size` positions."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._allocated: set[int] = set()

    @property
    def free_pages(self) -> int:
        """Number of free pages."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Number of positions in the whole cache."""
        return self.num_pages * self.page_size

    def pages_for(self, positions: int) -> int:
        """Number of pages that hold `positions` positions."""
        return -(-positions // self.page_size)

    def allocate(self, positions: int) -> tuple[int, ...] | None:
        """Allocate pages for `positions` positions; None when too few are free."""
        count = self.pages_for(positions)
        if count > len(self._free):
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        self._allocated.update(pages)
        return pages

    def release(self, pages: tuple[int, ...]) -> None:
        """Free pages. Each must be allocated."""
        assert self._allocated.issuperset(pages), (
            f"pages {sorted(set(pages) - self._allocated)} are freed but not allocated"
        )
        self._allocated.difference_update(pages)
        self._free.extend(reversed(pages))
