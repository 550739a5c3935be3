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

_GAIN = 0.6
"""Deviation of a product's results where its input has deviation 1, about as in trained models. With 0.02 for every
matrix, wide models had steep scores and large activations, which amplify the rounding of one layer in the next."""

_MEAN, _DEVIATION = 131_070, 37_837.2
"""Mean and deviation of the sum of four numbers that are uniform over 0 … 65535."""

_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Normal:
    """The distribution of a tensor's numbers."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class DummyTensors:
    """A source of random tensors: float32, unless a tensor must be stored in another type.

    Floats are distributed as `distribution_of` says; what a norm adds to its weights is `added`, by name. Integers have
    random bits.
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
        pool = pool_of(self.seed, self.dtype(name), distribution_of(name, shape, self.added.get(name, 0.0)))
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


def distribution_of(name: str, shape: Shape, added: float = 0.0) -> Normal:
    """Mean 0 and deviation 0.6 / √columns of a matrix, 0 and 0.02 of a bias, 1 − added and 0.1 of a norm's weights.

    A norm's weights are any vector but a bias.
    """
    if len(shape) > 1:
        return Normal(0.0, _GAIN / math.sqrt(math.prod(shape[1:])))
    if len(shape) == 1 and not name.endswith("bias"):
        return Normal(1.0 - added, 0.1)
    return Normal(0.0, 0.02)


def pool_runs(name: str, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Elements `first` … `first + count − 1` of a tensor as runs of the pool, each (first, count)."""
    at = (zlib.crc32(name.encode()) + first) % POOL
    while count > 0:
        size = min(count, POOL - at)
        yield at, size
        at, count = 0, count - size


@lru_cache(maxsize=8)
def pool_of(seed: int, dtype: DType, distribution: Normal) -> Array:
    """The pool of a seed: `POOL` elements of `dtype`, read-only. Integers have random bits, whatever `distribution`."""
    pool = np.empty(POOL, dtype.numpy)
    for start in range(0, POOL, _AT_ONCE):
        piece = pool[start : start + _AT_ONCE]
        numbers = _hash(seed, start, len(piece))
        if dtype.is_float:
            numbers = _normal(numbers) * np.float32(distribution.deviation) + np.float32(distribution.mean)
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
