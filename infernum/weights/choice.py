"""Which of a recipe's alternatives a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from infernum.errors import CheckpointError
from infernum.recipes import Either, Read, Recipe, all_names, map_parts, parts_of


def choose(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe without alternatives, for a checkpoint with tensors of these names.

    All experts follow the first. A tensor without alternatives stays as it is, there or not. Raises CheckpointError
    naming all alternatives where there is none of them.
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


def _is_complete(recipe: Recipe, names: Collection[str]) -> bool:
    """True when the checkpoint has every tensor that the recipe needs."""
    match recipe:
        case Read(names=options):
            return any(name.replace("{expert}", "0") in names for name in options)
        case Either(of=options):
            return any(_is_complete(option, names) for option in options)
        case _:
            return all(_is_complete(part, names) for part in parts_of(recipe))
