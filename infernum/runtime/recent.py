"""A mapping of bounded size that evicts the least recently used value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """At most `most` values by key. `drop` is called with each evicted value, to free what the value holds."""

    def __init__(self, most: int, drop: Callable[[Value], None]) -> None:
        self._most = most
        self._drop = drop
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value of a key, or None; the value becomes the most recently used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Add a value under a new key, and evict the least recently used value when the mapping is full."""
        assert key not in self._values, f"{key} has a value already"
        if len(self._values) >= self._most:
            self._drop(self._values.popitem(last=False)[1])
        self._values[key] = value

    def clear(self) -> None:
        """Drop every value."""
        while self._values:
            self._drop(self._values.popitem()[1])
