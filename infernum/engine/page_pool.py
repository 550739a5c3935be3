"""The pages of the KV cache: owned by sequences, or kept for the tokens they hold, or empty."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from infernum.step import Int32

Parent = int | str
"""The page before a page; of a first page, the salt: only sequences of one salt share pages."""

Content = tuple[Parent, bytes]
"""What a page holds: its parent, and the tokens of its positions after those of the parent, as the bytes of an int32
array.

Contents are compared as they are, never by a hash alone. A dict hashes bytes with a secret of the process, so that no
sender can make contents that collide.
"""


class PagePool:
    """Gives out pages 0 … num_pages − 1, each of `page_size` positions.

    A page has any number of owners. A full page may be `kept`: it is then found again by its content, also once nobody
    owns it. Pages without owners are given out anew, empty ones first, then the one whose last owner left longest ago.
    A parent outlives its children: whoever owns a page owns its parents, and returns them after it.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._empty = list(range(num_pages - 1, -1, -1))
        self._owners = [0] * num_pages
        self._contents: list[Content | None] = [None] * num_pages
        self._kept: dict[Content, int] = {}
        self._idle = OrderedDict[int, None]()
        self._page_of_tokens = np.dtype((np.void, page_size * np.dtype(np.int32).itemsize))

    @property
    def free_pages(self) -> int:
        """Number of pages without owners."""
        return len(self._empty) + len(self._idle)

    @property
    def capacity(self) -> int:
        """Number of positions in the whole cache."""
        return self.num_pages * self.page_size

    def pages_for(self, positions: int) -> int:
        """Number of pages that hold `positions` positions."""
        return -(-positions // self.page_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one owner each; None when fewer are free."""
        if count > self.free_pages:
            return None
        owners, contents = self._owners, self._contents
        pages: list[int] = []
        for _ in range(count):
            if self._empty:
                page = self._empty.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                content, contents[page] = contents[page], None
                assert content is not None, "what is idle is kept"
                del self._kept[content]
            owners[page] = 1
            pages.append(page)
        return pages

    def find(self, tokens: Sequence[int] | Int32, salt: str = "") -> list[int]:
        """The kept pages of the longest beginning of `tokens`, each with an owner more.

        At least one token is left over, so that there is one to compute.
        """
        pages: list[int] = []
        parent: Parent = salt
        for held in self._by_page(np.asarray(tokens[: len(tokens) - 1], np.int32)):
            page = self._kept.get((parent, held))
            if page is None:
                break
            self._share(page)
            pages.append(page)
            parent = page
        return pages

    def keep(self, parent: Parent, pages: Sequence[int], tokens: Int32) -> list[int]:
        """Keep pages that follow each other behind `parent`, which is kept. They are full and have one owner each.

        Returns the pages to use from now on. A page whose content another page has already is replaced by that, and
        loses its owner.
        """
        owners, contents = self._owners, self._contents
        assert isinstance(parent, str) or contents[parent] is not None, "the parent is not kept"
        used: list[int] = []
        for page, held in zip(pages, self._by_page(tokens), strict=True):
            assert owners[page] == 1 and contents[page] is None, f"page {page} is not its owner's alone"
            content = parent, held
            parent = self._kept.setdefault(content, page)
            if parent == page:
                contents[page] = content
            else:
                self._share(parent)
                self.release([page])
            used.append(parent)
        return used

    def release(self, pages: Sequence[int]) -> None:
        """Take an owner from each page of a sequence, in the order of its positions."""
        owners, contents = self._owners, self._contents
        for page in reversed(pages):
            others = owners[page] = owners[page] - 1
            assert others >= 0, f"page {page} is released and has no owner"
            if others:
                continue
            if contents[page] is None:
                self._empty.append(page)
            else:
                self._idle[page] = None

    def _share(self, page: int) -> None:
        """Give a kept page an owner more."""
        if not self._owners[page]:
            del self._idle[page]
        self._owners[page] += 1

    def _by_page(self, tokens: Int32) -> list[bytes]:
        """The tokens of each full page, as `Content` has them."""
        full = tokens[: len(tokens) // self.page_size * self.page_size]
        pages: list[bytes] = full.view(self._page_of_tokens).tolist()
        return pages
