"""Recipes of weights: tensors of the checkpoint that are cut, stacked and repacked into one buffer.

Graph and manifest hold the recipe of each weight; `infernum.weights` executes it when a checkpoint is loaded. Names of
tensors may hold `{layer}` and, inside `Each`, `{expert}`. The first axis of a tensor is called its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from infernum.dtypes import DTYPES
from infernum.errors import ShapeError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rank:
    """One of `count` GPUs that share the weights."""

    index: int
    count: int


ALONE = Rank(0, 1)


class _RecipeBase(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="kind",
    tag=str.lower,
):
    """Base of every recipe. Two recipes that are equal once `filled` are the same weight."""


class Read(_RecipeBase, frozen=True):
    """A tensor of the checkpoint. Of several `names`, the first that the checkpoint has is read.

    dtype  the required stored type; None: any float type, which is cast to the type of the buffer
    """

    names: tuple[str, ...]
    shape: Shape
    dtype: str | None = None


class Rows(_RecipeBase, frozen=True):
    """Rows start … stop − 1: a part of a fused tensor, such as q of qkv_proj."""

    of: Recipe
    start: int
    stop: int


class Share(_RecipeBase, frozen=True):
    """The part of this rank, when an axis is split into equal parts, one for each rank.

    heads  the axis is this many heads, which are not cut; where there are fewer than ranks, neighbouring ranks have
           the same one. 0: the axis may be cut anywhere
    """

    of: Recipe
    axis: int
    heads: int = 0


class Stack(_RecipeBase, frozen=True):
    """Several weights, one after the other along the rows."""

    of: tuple[Recipe, ...]


class Each(_RecipeBase, frozen=True):
    """A new first axis: the recipe for `{expert}` = 0 … count − 1."""

    of: Recipe
    count: int


class Packed(_RecipeBase, frozen=True):
    """The values repacked by the function of `PACKINGS` named `by`."""

    of: Recipe
    by: str


class Either(_RecipeBase, frozen=True):
    """The first of several recipes whose tensors the checkpoint has: q_proj, or else rows of qkv_proj."""

    of: tuple[Recipe, ...]


Recipe = Read | Rows | Share | Stack | Each | Packed | Either


@dataclass(frozen=True)
class Packing:
    """A function that repacks values. `shape` maps the shape of its operand to the shape of its result."""

    function: Callable[[Array], Array]
    shape: Callable[[Shape], Shape]


PACKINGS: dict[str, Packing] = {}
"""Packings by name, for `Packed.by`."""


def packing(
    shape: Callable[[Shape], Shape],
) -> Callable[[Callable[[Array], Array]], Callable[[Array], Array]]:
    """Register a packing under its function's name. `shape` returns the shape of the result, or raises ShapeError."""

    def register(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        PACKINGS[function.__name__] = Packing(function, shape)
        return function

    return register


def find_packing(name: str) -> Packing:
    """The packing of that name. Raises ShapeError."""
    if name not in PACKINGS:
        known = ", ".join(PACKINGS)
        raise ShapeError(f"no packing is named {name!r}; use {known}, or load the plugin that defines it")
    return PACKINGS[name]


def _transposed(shape: Shape) -> Shape:
    if len(shape) < 2:
        raise ShapeError(f"transpose needs two axes, and {list(shape)} has one")
    return (*shape[:-2], shape[-1], shape[-2])


@packing(_transposed)
def transpose(values: Array) -> Array:
    """[…, in, out] -> […, out, in], for checkpoints that store the weight of a product transposed."""
    return np.ascontiguousarray(np.swapaxes(values, -1, -2))


def read(name: str, *shape: int) -> Read:
    """The checkpoint tensor `name` of that shape."""
    return Read((name,), shape)


def stack(recipes: Iterable[Recipe]) -> Recipe:
    """The recipes stacked along the rows. Stacks among them are flattened, so that equal stacks compare equal."""
    parts = tuple(part for recipe in recipes for part in stacked(recipe))
    return parts[0] if len(parts) == 1 else Stack(parts)


def stacked(recipe: Recipe) -> tuple[Recipe, ...]:
    """The parts of a stack; for any other recipe, the recipe itself."""
    return recipe.of if isinstance(recipe, Stack) else (recipe,)


def parts_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes directly within a recipe."""
    match recipe:
        case Read():
            return ()
        case Stack(of=parts) | Either(of=parts):
            return parts
        case _:
            return (recipe.of,)


def map_parts(recipe: Recipe, change: Callable[[Recipe], Recipe]) -> Recipe:
    """The recipe with `change` applied to every recipe directly within it."""
    match recipe:
        case Read():
            return recipe
        case Stack(of=parts) | Either(of=parts):
            return msgspec.structs.replace(recipe, of=tuple(map(change, parts)))
        case _:
            return msgspec.structs.replace(recipe, of=change(recipe.of))


def steps(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe and every recipe within it, outermost first."""
    yield recipe
    for part in parts_of(recipe):
        yield from steps(part)


def reads(recipe: Recipe) -> Iterator[Read]:
    """Every tensor that the recipe reads or may read, in order."""
    return (step for step in steps(recipe) if isinstance(step, Read))


def tensors_of(recipe: Recipe) -> Iterator[Read]:
    """Every tensor that the recipe reads or may read, for every expert."""
    match recipe:
        case Read():
            yield recipe
        case Each(of=of, count=count):
            for expert in range(count):
                yield from tensors_of(filled(of, "expert", expert))
        case _:
            for part in parts_of(recipe):
                yield from tensors_of(part)


def all_names(recipe: Recipe) -> list[str]:
    """The names of the tensors that the recipe reads or may read, each once."""
    return list(dict.fromkeys(name for tensor in reads(recipe) for name in tensor.names))


def tensor_names(recipe: Recipe) -> list[str]:
    """The names of the tensors that the recipe reads, each once; the first of alternatives."""
    match recipe:
        case Read(names=names):
            return [names[0]]
        case Either(of=options):
            return tensor_names(options[0])
        case _:
            return list(dict.fromkeys(name for part in parts_of(recipe) for name in tensor_names(part)))


def renamed(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """The recipe with `change` applied to every tensor name."""
    if isinstance(recipe, Read):
        return msgspec.structs.replace(recipe, names=tuple(map(change, recipe.names)))
    return map_parts(recipe, lambda part: renamed(part, change))


def filled(recipe: Recipe, field: str, number: int) -> Recipe:
    """The recipe with the placeholder `field` (layer or expert) replaced by a number in all names."""
    return renamed(recipe, lambda name: name.replace(f"{{{field}}}", str(number)))


def prefixed(recipe: Recipe, prefix: str) -> Recipe:
    """The recipe with `prefix` in front of all names."""
    return renamed(recipe, lambda name: prefix + name)


def spelled(recipe: Recipe, beginnings: Mapping[str, Sequence[str]]) -> Recipe:
    """The recipe with further names for its tensors: `beginnings` maps the beginning of a name to other beginnings."""
    if not isinstance(recipe, Read):
        return map_parts(recipe, lambda part: spelled(part, beginnings))
    others = (
        other + name.removeprefix(beginning)
        for name in recipe.names
        for beginning, spellings in beginnings.items()
        if name.startswith(beginning)
        for other in spellings
    )
    return msgspec.structs.replace(recipe, names=(*recipe.names, *others))


def has_field(recipe: Recipe, field: str) -> bool:
    """True when a name holds the placeholder `field` (layer or expert)."""
    return any(f"{{{field}}}" in name for name in all_names(recipe))


def parts_among(share: Share, ranks: int) -> int:
    """Number of equal parts into which `ranks` GPUs divide the axis of a share: fewer than ranks where heads are."""
    return min(share.heads or ranks, ranks)


def first_of(share: Share, rank: Rank) -> int:
    """The first index of a rank's part along the axis of a share."""
    part = rank.index * parts_among(share, rank.count) // rank.count
    return part * shape_of(share, rank.count)[share.axis]


def size_of(recipe: Recipe, ranks: int = 1) -> int:
    """Number of elements on each of `ranks` GPUs."""
    return math.prod(shape_of(recipe, ranks))


def shape_of(recipe: Recipe, ranks: int = 1) -> Shape:
    """The shape of the result on each of `ranks` GPUs. Raises ShapeError for an invalid recipe."""
    match recipe:
        case Read():
            return _read_shape(recipe)
        case Rows(of=of, start=start, stop=stop):
            rows, *rest = shape_of(of, ranks)
            if not 0 <= start < stop <= rows:
                raise ShapeError(f"{_named(of)}: has {rows} rows, and not rows {start} to {stop}")
            return (stop - start, *rest)
        case Share(of=of, axis=axis, heads=heads):
            whole = shape_of(of, ranks)
            if not 0 <= axis < len(whole):
                raise ShapeError(f"{_named(of)}: {list(whole)} has no axis {axis} to share")
            parts = parts_among(recipe, ranks)
            if heads and (whole[axis] % heads or (heads % ranks and ranks % heads)):
                raise ShapeError(f"{_named(of)}: {heads} heads do not divide among {ranks} GPUs")
            if whole[axis] % parts:
                raise ShapeError(
                    f"{_named(of)}: axis {axis} of {list(whole)} does not divide among {ranks} GPUs"
                )
            return (*whole[:axis], whole[axis] // parts, *whole[axis + 1 :])
        case Stack(of=parts):
            shapes = [shape_of(part, ranks) for part in parts]
            if len(shapes) < 2 or len({whole[1:] for whole in shapes}) != 1:
                raise ShapeError(f"{_named(recipe)}: shapes {[list(whole) for whole in shapes]} do not stack")
            return (sum(whole[0] for whole in shapes), *shapes[0][1:])
        case Each(of=of, count=count):
            if count < 1 or not has_field(of, "expert"):
                raise ShapeError(f"{_named(of)}: `each` needs a count above 0 and {{expert}} in a name")
            if any(isinstance(step, Each) for step in steps(of)):
                raise ShapeError(f"{_named(of)}: one `each` within another would count the same {{expert}}")
            return (count, *shape_of(of, ranks))
        case Packed(of=of, by=by):
            return find_packing(by).shape(shape_of(of, ranks))
        case Either(of=options):
            shapes = {shape_of(option, ranks) for option in options}
            if len(shapes) != 1:
                raise ShapeError(
                    f"{_named(recipe)}: the alternatives have the shapes {sorted(map(list, shapes))}"
                )
            return shapes.pop()


def _read_shape(tensor: Read) -> Shape:
    if not tensor.names:
        raise ShapeError("a tensor of the checkpoint needs a name")
    if not tensor.shape or min(tensor.shape) < 1:
        raise ShapeError(f"{_named(tensor)}: a weight of shape {list(tensor.shape)} has no elements to read")
    if tensor.dtype is not None and tensor.dtype not in DTYPES:
        raise ShapeError(f"{_named(tensor)}: unknown dtype {tensor.dtype!r}; use one of {', '.join(DTYPES)}")
    return tensor.shape


def _named(recipe: Recipe) -> str:
    """The tensors of a recipe, for errors."""
    return ", ".join(all_names(recipe)) or "a weight"
