"""Which of a recipe's alternatives a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from infernum.errors import CheckpointError
from infernum.recipes import Either, Read, Recipe, Stack, reads


def choose(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe without alternatives, for a checkpoint with tensors of these names.

    All experts follow the first. A tensor without alternatives stays as it is, there or not. Raises CheckpointError
    naming all alternatives where there is none of them.
    """
    match recipe:
        case Read(names=(_,)):
            return recipe
        case Read(names=options):
            present = next((name for name in options if _is_present(name, names)), None)
            if present is None:
                raise _missing(list(options))
            return msgspec.structs.replace(recipe, names=(present,))
        case Either(of=options):
            option = next((option for option in options if _is_complete(option, names)), None)
            if option is None:
                raise _missing([_listed(option) for option in options])
            return choose(option, names)
        case Stack(of=parts):
            return Stack(tuple(choose(part, names) for part in parts))
        case _:
            return msgspec.structs.replace(recipe, of=choose(recipe.of, names))


def _is_complete(recipe: Recipe, names: Collection[str]) -> bool:
    """True when the checkpoint has every tensor that the recipe needs."""
    match recipe:
        case Read(names=options):
            return any(_is_present(name, names) for name in options)
        case Either(of=options):
            return any(_is_complete(option, names) for option in options)
        case Stack(of=parts):
            return all(_is_complete(part, names) for part in parts)
        case _:
            return _is_complete(recipe.of, names)


def _is_present(name: str, names: Collection[str]) -> bool:
    return name.replace("{expert}", "0") in names


def _listed(recipe: Recipe) -> str:
    return ", ".join(dict.fromkeys(name for tensor in reads(recipe) for name in tensor.names))


def _missing(alternatives: list[str]) -> CheckpointError:
    first, *others = alternatives
    return CheckpointError(
        f"{first}: the checkpoint has no such tensor, nor {' or '.join(others)} in its place;"
        " were these weights made for this config.json?"
    )
