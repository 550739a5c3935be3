"""The pages of the KV cache: owned by sequences, or kept for the tokens they hold, or empty."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infernum.step import Int32

Parent = int | str
"""The page before a page; of a first page, the salt: only sequences of one salt share pages."""


class Content(NamedTuple):
    """What a page holds: the tokens of its positions, as the bytes of an int32 array, after those of its parent.

    Contents are compared as they are, never by a hash alone. A dict hashes bytes with a secret of the process, so that
    no sender can make contents that collide.
    """

    parent: Parent
    tokens: bytes


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
        pages = [self._empty.pop() for _ in range(min(count, len(self._empty)))]
        for _ in range(count - len(pages)):
            page, _ = self._idle.popitem(last=False)
            content, self._contents[page] = self._contents[page], None
            assert content is not None, "what is idle is kept"
            del self._kept[content]
            pages.append(page)
        for page in pages:
            self._owners[page] = 1
        return pages

    def find(self, tokens: Sequence[int] | Int32, salt: str = "") -> list[int]:
        """The kept pages of the longest beginning of `tokens`, each with an owner more.

        At least one token is left over, so that there is one to compute.
        """
        pages: list[int] = []
        parent: Parent = salt
        held = np.asarray(tokens, np.int32).tobytes()
        width = len(held) // len(tokens) * self.page_size
        for start in range(0, len(held) - width, width):
            page = self._kept.get(Content(parent, held[start : start + width]))
            if page is None:
                break
            self._idle.pop(page, None)
            self._owners[page] += 1
            pages.append(page)
            parent = page
        return pages

    def keep(self, page: int, content: Content) -> int:
        """Keep a page that is owned and full, whose parent is kept. Returns the page to use from now on.

        That is another page when one of this content is kept already; `page` then loses its owner.
        """
        parent = content.parent
        assert self._owners[page] == 1 and self._contents[page] is None, (
            f"page {page} is not its owner's alone"
        )
        assert isinstance(parent, str) or self._contents[parent] is not None, "the parent is not kept"
        known = self._kept.setdefault(content, page)
        if known == page:
            self._contents[page] = content
            return page
        self._idle.pop(known, None)
        self._owners[known] += 1
        self.release([page])
        return known

    def release(self, pages: Sequence[int]) -> None:
        """Take an owner from each page of a sequence, in the order of its positions."""
        owners = self._owners
        for page in reversed(pages):
            others = owners[page] = owners[page] - 1
            assert others >= 0, f"page {page} is released and has no owner"
            if others:
                continue
            if self._contents[page] is not None:
                self._idle[page] = None
            else:
                self._empty.append(page)
