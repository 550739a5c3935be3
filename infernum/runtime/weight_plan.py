"""Where each weight of a bundle lies on the GPU: every distinct tensor once, all in one allocation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from infernum import dims, dtypes
from infernum.bundle import Manifest, Stage, Weight
from infernum.errors import BundleError

ALIGNMENT = 256

WeightKey = tuple[tuple[str, ...], str]
"""Checkpoint names of the stacked parts, layer filled in, and storage dtype: what makes weights the same."""


@dataclass(frozen=True)
class Part:
    """One checkpoint tensor within a stored weight, `offset` bytes from the start of all weights."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoredWeight:
    """Checkpoint tensors stacked along axis 0, without gaps, at a multiple of 256 bytes."""

    parts: tuple[Part, ...]
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightPlan:
    """Everything to fill, and where any weight of any stage is found in it."""

    stored: tuple[StoredWeight, ...]
    offsets: dict[WeightKey, int]
    total_bytes: int

    def offset(self, weight: Weight, stage: Stage) -> int:
        """Bytes from the start of all weights to `weight` as applied in `stage`."""
        return self.offsets[weight_key(weight, stage)]


def weight_key(weight: Weight, stage: Stage) -> WeightKey:
    """The identity of `weight` in a stage. Raises BundleError when it needs a layer and there is none."""
    if stage.layer is None and any("{layer}" in part for part in weight.parts):
        raise BundleError(f"{stage.block}.{weight.spec.name}: belongs to a layer, but the program names none")
    return tuple(part.replace("{layer}", str(stage.layer)) for part in weight.parts), weight.spec.dtype


def stages(manifest: Manifest) -> list[Stage]:
    """The program followed by the samplers: everything a step may run."""
    return [*manifest.program, *(Stage(block=name) for name in manifest.samplers)]


def plan_weights(manifest: Manifest) -> WeightPlan:
    """Lay out every distinct weight once, however many blocks, variants and layers use it.

    A weight that is a run of the parts of a larger one (q within q, k, v) is found inside that one, when it
    begins there at a multiple of 256 bytes. Raises BundleError when two uses disagree about a shape.
    """
    shapes: dict[WeightKey, list[list[int]]] = {}
    for stage in stages(manifest):
        for variant in manifest.blocks[stage.block].values():
            for weight in variant.weights.values():
                key = weight_key(weight, stage)
                if shapes.setdefault(key, weight.part_shapes) != weight.part_shapes:
                    raise BundleError(
                        f"{stage.block}.{weight.spec.name}: {key[0]} has two shapes; compile the model again"
                    )
                _check_size(weight, stage.block)

    offsets: dict[WeightKey, int] = {}
    stored: list[StoredWeight] = []
    end = 0
    for key in sorted(
        shapes, key=lambda key: -len(key[0])
    ):  # sorting is stable: otherwise in order of first use
        if key in offsets:
            continue
        names, dtype = key
        weight = _store(names, shapes[key], dtype, at=end)
        stored.append(weight)
        for run, offset in _aligned_runs(weight):
            offsets.setdefault((run, dtype), offset)
        end += dims.ceildiv(weight.nbytes, ALIGNMENT) * ALIGNMENT
    return WeightPlan(tuple(stored), offsets, end)


def _check_size(weight: Weight, block: str) -> None:
    wanted = math.prod(dims.evaluate(dim, {}) for dim in weight.spec.shape)
    if wanted != sum(math.prod(shape) for shape in weight.part_shapes):
        raise BundleError(
            f"{block}.{weight.spec.name}: {weight.spec.shape} is not made of {weight.part_shapes}"
        )


def _store(names: tuple[str, ...], shapes: list[list[int]], dtype: str, *, at: int) -> StoredWeight:
    parts: list[Part] = []
    offset = at
    for name, shape in zip(names, shapes, strict=True):
        part = Part(name, tuple(shape), offset)
        parts.append(part)
        offset += part.size * dtypes.dtype(dtype).bytes
    return StoredWeight(tuple(parts), dtype, at, offset - at)


def _aligned_runs(weight: StoredWeight) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every run of consecutive parts that begins at an aligned offset, the whole first."""
    names = tuple(part.name for part in weight.parts)
    for length in range(len(names), 0, -1):
        for first in range(len(names) - length + 1):
            offset = weight.parts[first].offset
            if offset % ALIGNMENT == 0:
                yield names[first : first + length], offset
