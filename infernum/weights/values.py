"""The values of a recipe: chooses its alternatives for a checkpoint, then reads its values piece by piece."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import msgspec
import numpy as np

from infernum.errors import CheckpointError
from infernum.recipes import (
    ALONE,
    Each,
    Either,
    Packed,
    Rank,
    Read,
    Recipe,
    Rows,
    Share,
    Stack,
    all_names,
    filled,
    find_packing,
    first_of,
    map_parts,
    parts_of,
    shape_of,
    size_of,
    steps,
)
from infernum.weights.source import Array, TensorSource

PIECE = 2**21
"""Elements read at a time: at most 8 MiB, which malloc reuses without a system call."""


def choose(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with its alternatives chosen, for a checkpoint with tensors of these names.

    All experts follow the choice of the first. A tensor without alternatives is not checked. Raises CheckpointError,
    which lists the alternatives, when the checkpoint has none of them.
    """
    match recipe:
        case Read(names=(_,)):
            return recipe
        case Read(names=alternatives):
            options = tuple(msgspec.structs.replace(recipe, names=(name,)) for name in alternatives)
        case Either(of=options):
            pass
        case _:
            return map_parts(recipe, lambda part: choose(part, names))
    for option in options:
        if _is_complete(option, names):
            return choose(option, names)
    first, *others = (", ".join(all_names(option)) for option in options)
    raise CheckpointError(
        f"{first}: the checkpoint has no such tensor, nor {' or '.join(others)} in its place;"
        " were these weights made for this config.json?"
    )


def pieces(recipe: Recipe, source: TensorSource, rank: Rank = ALONE) -> Iterator[Array]:
    """The values of a recipe without alternatives, in order, flat, in their stored type.

    A piece has at most `PIECE` elements, unless a single row has more. Packed values are one piece. Pieces are
    read-only.
    """
    for section in sections(recipe):
        rows, *rest = shape_of(section, rank.count)
        at_once = max(1, PIECE // math.prod(rest))
        if any(isinstance(step, Packed) for step in steps(section)):
            at_once = rows
        for start in range(0, rows, at_once):
            yield _rows(section, start, min(start + at_once, rows), source, rank).reshape(-1)


def values(recipe: Recipe, source: TensorSource, rank: Rank = ALONE) -> Array:
    """All values of a recipe without alternatives, in its shape."""
    return _rows(recipe, 0, shape_of(recipe, rank.count)[0], source, rank)


def sections(recipe: Recipe) -> Iterator[Recipe]:
    """The consecutive sections of a weight: the parts of a stack, and the parts of each expert."""
    match recipe:
        case Stack(of=parts):
            for part in parts:
                yield from sections(part)
        case Each(of=of, count=count):
            for expert in range(count):
                yield from sections(filled(of, "expert", expert))
        case _:
            yield recipe


def run_of(recipe: Recipe, rank: Rank = ALONE) -> tuple[Read, int] | None:
    """The tensor that a recipe is a run of, and the first element of the run; None when it is no run of one tensor."""
    match recipe:
        case Read():
            return recipe, 0
        case Rows(of=of, start=start):
            row = start
        case Share(of=of, axis=0):
            row = first_of(recipe, rank)
        case _:
            return None
    inner = run_of(of, rank)
    if inner is None:
        return None
    rows, *_ = shape_of(of, rank.count)
    return inner[0], inner[1] + row * (size_of(of, rank.count) // rows)


def _is_complete(recipe: Recipe, names: Collection[str]) -> bool:
    """True when the checkpoint has every tensor that the recipe needs."""
    match recipe:
        case Read(names=options):
            return any(name.replace("{expert}", "0") in names for name in options)
        case Either(of=options):
            return any(_is_complete(option, names) for option in options)
        case _:
            return all(_is_complete(part, names) for part in parts_of(recipe))


def _rows(recipe: Recipe, start: int, stop: int, source: TensorSource, rank: Rank) -> Array:
    """Rows start … stop − 1 of the recipe's values on a rank."""
    match recipe:
        case Read(names=(name,)):
            return source.rows(name, start, stop)
        case Rows(of=of, start=first):
            return _rows(of, first + start, first + stop, source, rank)
        case Share(of=of, axis=axis):
            first = first_of(recipe, rank)
            if axis == 0:
                return _rows(of, first + start, first + stop, source, rank)
            width = shape_of(recipe, rank.count)[axis]
            share = (*(slice(None) for _ in range(axis)), slice(first, first + width))
            return _rows(of, start, stop, source, rank)[share]
        case Stack(of=parts):
            overlaps: list[Array] = []
            for part in parts:
                rows = shape_of(part, rank.count)[0]
                if start < rows and stop > 0:
                    overlaps.append(_rows(part, max(start, 0), min(stop, rows), source, rank))
                start, stop = start - rows, stop - rows
            return overlaps[0] if len(overlaps) == 1 else np.concatenate(overlaps)
        case Each(of=of):
            experts = (filled(of, "expert", expert) for expert in range(start, stop))
            return np.stack([values(expert, source, rank) for expert in experts])
        case Packed(of=of, by=by):
            return find_packing(by).function(values(of, source, rank))[start:stop]
        case Read() | Either():
            raise AssertionError("the alternatives of a recipe are settled before its values are read")
