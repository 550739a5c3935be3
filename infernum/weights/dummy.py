"""Random weights in place of a checkpoint. They depend on name and seed only, not on device or bundle.

Element i of the tensor `name` is element (crc32(name) + i) mod `POOL` of a pool of `POOL` numbers, of which element j
is a hash of (seed, j), rounded to the type of the buffer. `POOL` is a prime, so that no two rows of a matrix are equal.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from infernum.dtypes import F32, DType
from infernum.dtypes import dtype as dtype_named
from infernum.recipes import Read, Shape, tensors_of
from infernum.weights.plan import WeightPlan, plan_for
from infernum.weights.source import Array, TensorSource

POOL = 4_000_037
"""Numbers in a pool, a prime: 16 MB of float32, generated in a fraction of a second."""

_MEAN, _DEVIATION = 131_070, 37_837.2
"""Mean and deviation of the sum of four numbers that are uniform over 0 … 65535."""

_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class DummyTensors:
    """A source of random tensors: float32, unless a tensor must be stored in another type.

    Matrices and biases have mean 0 and deviation 0.02, norm weights 1 and 0.1. What a norm adds to them (`added`,
    by name) is left out. Integers have random bits.
    """

    tensors: Mapping[str, Read]
    seed: int
    added: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def shape(self, name: str) -> Shape:
        return self.tensors[name].shape

    def dtype(self, name: str) -> DType:
        stored = self.tensors[name].dtype
        return dtype_named(stored) if stored else F32

    def rows(self, name: str, start: int, stop: int) -> Array:
        shape = self.shape(name)
        width = math.prod(shape[1:])
        pool = pool_of(self.seed, self.dtype(name), mean_of(name, shape, self.added.get(name, 0.0)))
        runs = pool_runs(name, start * width, (stop - start) * width)
        parts = [pool[first : first + count] for first, count in runs]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return flat.reshape(stop - start, *shape[1:])


def settle(plan: WeightPlan, source: TensorSource | None, seed: int) -> tuple[WeightPlan, TensorSource]:
    """The plan with every alternative chosen, and the source of its tensors.

    Without a checkpoint the tensors are random, and every first alternative is chosen. Raises CheckpointError as
    `plan_for` does.
    """
    if source is not None:
        return plan_for(plan, source), source
    chosen = plan.chosen({name for tensor in plan.tensors() for name in tensor.names})
    added = {
        t.names[0]: stored.added
        for stored in chosen.stored
        for t in tensors_of(stored.recipe)
        if stored.added
    }
    return chosen, DummyTensors({tensor.names[0]: tensor for tensor in chosen.tensors()}, seed, added)


def mean_of(name: str, shape: Shape, added: float = 0.0) -> float | None:
    """The mean of the random scale of a norm, which is any vector but a bias; None for all other tensors."""
    return 1.0 - added if len(shape) == 1 and not name.endswith("bias") else None


def pool_runs(name: str, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Elements `first` … `first + count − 1` of a tensor as runs of the pool, each (first, count)."""
    at = (zlib.crc32(name.encode()) + first) % POOL
    while count > 0:
        size = min(count, POOL - at)
        yield at, size
        at, count = 0, count - size


@lru_cache(maxsize=8)
def pool_of(seed: int, dtype: DType, mean: float | None = None) -> Array:
    """The pool of a seed: `POOL` elements of `dtype`, read-only. For norm weights, their mean."""
    pool = np.empty(POOL, dtype.numpy)
    for start in range(0, POOL, _AT_ONCE):
        piece = pool[start : start + _AT_ONCE]
        numbers = _hash(seed, start, len(piece))
        if dtype.is_float:
            numbers = _normal(numbers) * np.float32(0.02 if mean is None else 0.1) + np.float32(mean or 0.0)
        piece[:] = numbers.astype(dtype.numpy)
    pool.flags.writeable = False
    return pool


def _hash(seed: int, start: int, count: int) -> Array:
    """The outputs start … start + count − 1 of SplitMix64 (Steele, Lea and Flood, 2014) for a seed: 64 bits each."""
    with np.errstate(over="ignore"):
        x = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seed % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _normal(bits: Array) -> Array:
    """Nearly normal numbers of mean 0 and deviation 1, the sums of four words, without libm, which varies."""
    words = bits.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int32)
    return (words - np.int32(_MEAN)).astype(np.float32) / np.float32(_DEVIATION)
