"""The weights of a bundle in host memory: float32 arrays that hold what the bundle's dtype can store."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from infernum.bundle import Manifest, Stage, Weight
from infernum.dtypes import F32, DType, round_to
from infernum.dtypes import dtype as dtype_named
from infernum.errors import DeviceError

Array = np.ndarray[Any, Any]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_Key = tuple[tuple[str, ...], str]
"""Checkpoint names of the stacked parts, layer filled in, and the dtype: what makes two weights the same."""

_AT_ONCE = 1 << 24
"""Elements converted at a time, which bounds what is in memory besides the result."""


class TensorSource(Protocol):
    """What is needed of a checkpoint."""

    def read(self, name: str) -> Array:
        """The tensor `name` in its stored dtype."""
        ...


class HostWeights:
    """Every distinct tensor once, however many variants and layers use it: q is found within q, k and v."""

    def __init__(self, arrays: dict[_Key, Array]) -> None:
        self._arrays = arrays

    @classmethod
    def load(
        cls,
        manifest: Manifest,
        source: TensorSource | None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> HostWeights:
        """Read the weights from a checkpoint that has them all; without one, make random ones from `seed`.

        Raises CheckpointError for what cannot be read, DeviceError when the machine has too little memory.
        """
        recipes = _recipes(manifest)
        sizes = {key: sum(map(math.prod, shapes)) for key, shapes in recipes.items()}
        total, done = F32.bytes * sum(sizes.values()), 0
        _check_memory(total)
        arrays: dict[_Key, Array] = {}
        for (names, dtype), shapes in recipes.items():
            array = np.empty(sizes[names, dtype], np.float32)
            starts = [0]
            for name, shape in zip(names, shapes, strict=True):
                starts.append(starts[-1] + math.prod(shape))
                part = array[starts[-2] : starts[-1]]
                if source is None:
                    _fill_with_random(part, name, len(shape), seed)
                else:
                    part[:] = source.read(name).reshape(-1)
                _round(part, dtype_named(dtype))
            for first, last in _runs(len(names)):
                arrays.setdefault((names[first:last], dtype), array[starts[first] : starts[last]])
            done += array.nbytes
            if progress is not None:
                progress(done, total)
        return cls(arrays)

    def array(self, weight: Weight, stage: Stage) -> Array:
        """The weight as applied in one stage of the program, in its own shape."""
        return self._arrays[_key(weight, stage)].reshape([int(dim) for dim in weight.spec.shape])


def _recipes(manifest: Manifest) -> dict[_Key, list[list[int]]]:
    """The weights to fill, and the shapes of their parts; what is a run of the parts of another is left out."""
    found: dict[_Key, list[list[int]]] = {}
    for stage in manifest.program:
        for variant in manifest.blocks[stage.block].values():
            for weight in variant.weights.values():
                found.setdefault(_key(weight, stage), weight.part_shapes)
    kept: dict[_Key, list[list[int]]] = {}
    covered: set[_Key] = set()
    for (names, dtype), shapes in sorted(found.items(), key=lambda item: -len(item[0][0])):
        if (names, dtype) not in covered:
            kept[names, dtype] = shapes
            covered |= {(names[first:last], dtype) for first, last in _runs(len(names))}
    return kept


def _key(weight: Weight, stage: Stage) -> _Key:
    return tuple(part.replace("{layer}", str(stage.layer)) for part in weight.parts), weight.spec.dtype


def _runs(count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of consecutive parts."""
    for first in range(count):
        for last in range(first + 1, count + 1):
            yield first, last


def _round(values: Array, dtype: DType) -> None:
    if dtype is F32:
        return
    for start in range(0, len(values), _AT_ONCE):
        values[start : start + _AT_ONCE] = round_to(values[start : start + _AT_ONCE], dtype)


def _fill_with_random(values: Array, name: str, rank: int, seed: int) -> None:
    """Norm weights around 1 with deviation 0.1, everything else around 0 with 0.02; each tensor by its name."""
    is_norm = rank == 1 and not name.endswith("bias")
    np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(dtype=np.float32, out=values)
    values *= np.float32(0.1 if is_norm else 0.02)
    values += np.float32(1.0 if is_norm else 0.0)


def _check_memory(nbytes: int) -> None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if nbytes > total:
        raise DeviceError(
            f"the weights take {nbytes / 2**30:.1f} GiB as float32, and this machine has {total / 2**30:.1f} GiB of"
            " memory; run the model on a GPU, or take a smaller one"
        )
