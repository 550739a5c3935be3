"""What is needed of a checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from infernum.dtypes import DType

Array = np.ndarray[Any, Any]


class TensorSource(Protocol):
    """Names, shapes, and rows of tensors in the type that they are stored in."""

    @property
    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> DType: ...

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows start … stop − 1. The array must not be written to."""
        ...
