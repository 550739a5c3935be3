"""The layout of a bundle's weights: every distinct recipe once, all in one allocation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

from infernum import dims, dtypes
from infernum.errors import BundleError, CheckpointError, ShapeError
from infernum.manifest import Manifest, Stage, Weight
from infernum.recipes import (
    Rank,
    Read,
    Recipe,
    Shape,
    Share,
    filled,
    has_field,
    reads,
    shape_of,
    size_of,
    stack,
    stacked,
    tensors_of,
)
from infernum.weights.source import TensorSource
from infernum.weights.values import choose

ALIGNMENT = 256
"""Bytes."""

WeightKey = tuple[Recipe, str]
"""Recipe with the layer filled in, and dtype. Weights of equal keys are stored once."""


@dataclass(frozen=True)
class StoredWeight:
    """The values of one recipe, `offset` bytes from the start of all weights, a multiple of `ALIGNMENT`."""

    recipe: Recipe
    dtype: str
    offset: int
    size: int
    """Number of elements."""
    added: float = 0.0
    """`Weight.added`."""

    @property
    def nbytes(self) -> int:
        return self.size * dtypes.dtype(self.dtype).bytes


@dataclass(frozen=True)
class WeightPlace:
    """Place of a weight: the index of the stored weight that contains it, and its first element there."""

    stored: int
    first: int


@dataclass(frozen=True)
class WeightPlan:
    """The stored weights of one rank, and the place of every weight of every stage in them."""

    stored: tuple[StoredWeight, ...]
    places: dict[WeightKey, WeightPlace]
    total_bytes: int
    rank: Rank

    def place(self, weight: Weight, stage: Stage) -> WeightPlace:
        """The place of `weight` in `stage`."""
        return self.places[weight_key(weight, stage)]

    def offset(self, weight: Weight, stage: Stage) -> int:
        """Bytes from the start of all weights to `weight` in `stage`."""
        place = self.place(weight, stage)
        stored = self.stored[place.stored]
        return stored.offset + place.first * dtypes.dtype(stored.dtype).bytes

    def tensors(self) -> Iterator[Read]:
        """Every tensor that the weights read or may read. A tensor of two weights comes twice."""
        return (tensor for stored in self.stored for tensor in tensors_of(stored.recipe))

    def chosen(self, names: Collection[str]) -> WeightPlan:
        """The plan with every alternative chosen for a checkpoint with these tensors. Raises CheckpointError."""
        settled = tuple(replace(stored, recipe=choose(stored.recipe, names)) for stored in self.stored)
        return replace(self, stored=settled)


def weight_key(weight: Weight, stage: Stage) -> WeightKey:
    """The key of `weight` in a stage. Raises BundleError when the weight needs a layer and the stage has none."""
    if stage.layer is None:
        if has_field(weight.recipe, "layer"):
            raise BundleError(
                f"{stage.block}.{weight.spec.name}: belongs to a layer, but the program names none"
            )
        return weight.recipe, weight.spec.dtype
    return filled(weight.recipe, "layer", stage.layer), weight.spec.dtype


def plan_weights(manifest: Manifest, index: int = 0) -> WeightPlan:
    """Lay out every distinct weight of rank `index` once, however many blocks, variants and layers use it.

    A weight that is a run of a stack (q within q, k, v) is stored only in the stack, if it begins there at a multiple
    of `ALIGNMENT`. Raises BundleError for a recipe of another shape than its weight, and for two recipes that read one
    tensor in different shapes.
    """
    rank = Rank(index, manifest.ranks)
    added = _distinct(manifest, rank)
    places: dict[WeightKey, WeightPlace] = {}
    stored: list[StoredWeight] = []
    end = 0
    for recipe, dtype in sorted(added, key=lambda key: -len(stacked(key[0]))):  # stable: then by first use
        if (recipe, dtype) in places:
            continue
        weight = StoredWeight(recipe, dtype, end, size_of(recipe, rank.count), added[recipe, dtype])
        for run, first in _aligned_runs(weight, rank):
            places.setdefault((run, dtype), WeightPlace(len(stored), first))
        stored.append(weight)
        end += dims.ceildiv(weight.nbytes, ALIGNMENT) * ALIGNMENT
    return WeightPlan(tuple(stored), places, end, rank)


def plan_for(plan: WeightPlan, source: TensorSource) -> WeightPlan:
    """The plan with every alternative chosen for `source`, whose tensors are checked.

    Raises CheckpointError for the first tensor that is missing, or has another shape or type.
    """
    chosen = plan.chosen(source.names)
    for tensor in chosen.tensors():
        _check_tensor(tensor, source)
    return chosen


def _check_tensor(tensor: Read, source: TensorSource) -> None:
    (name,) = tensor.names
    if name not in source.names:
        raise CheckpointError(f"{name}: the checkpoint has no such tensor; was the bundle compiled for it?")
    if source.shape(name) != tensor.shape:
        raise CheckpointError(
            f"{name}: the checkpoint has shape {list(source.shape(name))},"
            f" the bundle was compiled for {list(tensor.shape)}"
        )
    stored = source.dtype(name)
    fits = stored.name == tensor.dtype if tensor.dtype else stored.is_float
    if not fits:
        raise CheckpointError(
            f"{name}: the checkpoint stores {stored}, the bundle was compiled for {tensor.dtype or 'a float type'};"
            " get the model's original weights"
        )


def _distinct(manifest: Manifest, rank: Rank) -> dict[WeightKey, float]:
    """The distinct weights of all stages, in order of first use, each with what is added to it."""
    keys: dict[WeightKey, float] = {}
    shapes: dict[str, Shape] = {}
    for stage in (*manifest.program, *(Stage(block=name) for name in manifest.samplers)):
        for variant in manifest.blocks[stage.block].values():
            for weight in variant.weights.values():
                key = weight_key(weight, stage)
                if key not in keys:
                    keys[key] = weight.added
                    _check(weight, key[0], f"{stage.block}.{weight.spec.name}", rank, shapes)
    return keys


def _check(weight: Weight, recipe: Recipe, where: str, rank: Rank, shapes: dict[str, Shape]) -> None:
    """Raises BundleError when a recipe has another shape than its weight, or a tensor another than in `shapes`."""
    try:
        shape = shape_of(recipe, rank.count)
    except ShapeError as error:
        raise BundleError(f"{where}: {error}; compile the model again") from error
    if list(shape) != weight.spec.shape:
        raise BundleError(
            f"{where}: has shape {weight.spec.shape}, and its recipe gives {list(shape)}; compile the model again"
        )
    for tensor in reads(recipe):
        for name in tensor.names:
            if shapes.setdefault(name, tensor.shape) != tensor.shape:
                raise BundleError(f"{where}: {name} has two shapes; compile the model again")


def _aligned_runs(weight: StoredWeight, rank: Rank) -> Iterator[tuple[Recipe, int]]:
    """Every run of consecutive parts that begins at an aligned element, with the number of that element.

    The rank's share of the rows too, of a weight that is whole: a head that is tied to the embedding.
    """
    parts = stacked(weight.recipe)
    starts = [0, *accumulate(size_of(part, rank.count) for part in parts)]
    runs = [(stack(parts[first:end]), starts[first]) for first, end in combinations(range(len(starts)), 2)]
    rows = shape_of(weight.recipe, rank.count)[0]
    if rank.count > 1 and rows % rank.count == 0:
        runs.append((Share(weight.recipe, 0), weight.size // rank.count * rank.index))
    for run, first in runs:
        if first * dtypes.dtype(weight.dtype).bytes % ALIGNMENT == 0:
            yield run, first
