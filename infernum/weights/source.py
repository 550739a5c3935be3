"""What is needed of a checkpoint, and how the progress of loading it is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from infernum.dtypes import DType

Array = np.ndarray[Any, Any]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class TensorSource(Protocol):
    """Names, shapes, and rows of tensors in the type that they are stored in."""

    @property
    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> DType: ...

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows start … stop − 1. The array must not be written to."""
        ...
