"""The protocol of a checkpoint that is loaded, and the callback for the progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from infernum.dtypes import DType

Array = np.ndarray[Any, Any]

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and the total bytes."""


class TensorSource(Protocol):
    """Names, shapes and rows of tensors, in their stored types."""

    @property
    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> DType: ...

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows start … stop − 1. The array must not be written to."""
        ...
