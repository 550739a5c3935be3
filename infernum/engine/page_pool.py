"""The pages of the KV cache: which are free, and who gets them."""

from __future__ import annotations


class PagePool:
    """Hands out pages 0 … num_pages − 1 of the KV cache, each of `page_size` positions."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._allocated: set[int] = set()

    @property
    def free_pages(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Positions that the whole cache holds."""
        return self.num_pages * self.page_size

    def pages_for(self, positions: int) -> int:
        """How many pages hold so many positions."""
        return -(-positions // self.page_size)

    def allocate(self, positions: int) -> tuple[int, ...] | None:
        """Pages for so many positions, or None when too few are free."""
        count = self.pages_for(positions)
        if count > len(self._free):
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        self._allocated.update(pages)
        return pages

    def release(self, pages: tuple[int, ...]) -> None:
        """Give pages back. Each must have been handed out and not given back since."""
        assert self._allocated.issuperset(pages), (
            f"pages {sorted(set(pages) - self._allocated)} are given back but not taken"
        )
        self._allocated.difference_update(pages)
        self._free.extend(reversed(pages))
