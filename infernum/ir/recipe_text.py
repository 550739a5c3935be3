"""Recipes as text, which reads back as the same recipe: what follows `=` in the line of a weight.

"norm.weight"                                  a tensor of the checkpoint, of the shape of the weight
"norm.weight" | "ln.weight" [64]               alternative names, and the shape
"words" i32[64, 8]                             the type that it must be stored in
"q" [64, 64], "k" [32, 64]                     a stack
rows("qkv" [128, 64], 0, 64)                   rows 0 to 63
share("q" [64, 64], 0)                         this rank's part of axis 0
each("experts.{expert}.up" [96, 64], 8)        one after the other on a new first axis
packed("up" [64, 96], transpose)               in another order
either("q" [64, 64], rows("qkv" [128, 64], 0, 64))
"""

from __future__ import annotations

import json
import re

from infernum.recipes import Each, Either, Packed, Read, Recipe, Rows, Shape, Share, Stack

_TOKEN = re.compile(r"""\s*("(?:\\.|[^"\\])*"|\w+|.)""")


def recipe_text(recipe: Recipe, whole: tuple[object, ...] | None = None) -> str:
    """The text of a recipe. The shape of a single tensor is left out where it is `whole`, that of the weight."""
    match recipe:
        case Read(names=names, dtype=None) if recipe.shape == whole:
            return _names(names)
        case Stack(of=parts) if len(parts) > 1:
            return ", ".join(_nested(part) for part in parts)
        case _:
            return _nested(recipe)


def parse_recipe(text: str, whole: tuple[object, ...]) -> Recipe:
    """The recipe that `recipe_text` wrote. Raises ValueError saying what is wrong."""
    return _Parser(text).whole(whole)


def _names(names: tuple[str, ...]) -> str:
    return " | ".join(json.dumps(name, ensure_ascii=False) for name in names)


def _nested(recipe: Recipe) -> str:
    match recipe:
        case Read(names=names, shape=shape, dtype=dtype):
            return f"{_names(names)} {dtype or ''}{list(shape)}"
        case Rows(of=of, start=start, stop=stop):
            return f"rows({_nested(of)}, {start}, {stop})"
        case Share(of=of, axis=axis):
            return f"share({_nested(of)}, {axis})"
        case Each(of=of, count=count):
            return f"each({_nested(of)}, {count})"
        case Packed(of=of, by=by):
            return f"packed({_nested(of)}, {by})"
        case Stack(of=parts) | Either(of=parts):
            kind = "stack" if isinstance(recipe, Stack) else "either"
            return f"{kind}({', '.join(map(_nested, parts))})"


class _Parser:
    """A place among the tokens of a text."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.tokens = [*_TOKEN.findall(self.text), ""]
        self.at = 0

    @property
    def token(self) -> str:
        return self.tokens[self.at]

    def take(self, wanted: str | None = None) -> str:
        token = self.token
        if not token or (wanted is not None and token != wanted):
            raise ValueError(f"expected {wanted or 'more'}, found {token or 'the end'}")
        self.at += 1
        return token

    def accept(self, wanted: str) -> bool:
        if self.token != wanted:
            return False
        self.at += 1
        return True

    def number(self) -> int:
        return int(self.take())

    def whole(self, shape: tuple[object, ...]) -> Recipe:
        parts = [self.recipe(shape)]
        while self.accept(","):
            parts.append(self.recipe())
        if self.token:
            raise ValueError(f"expected nothing more, found {self.token}")
        return parts[0] if len(parts) == 1 else Stack(tuple(parts))

    def recipe(self, shape: tuple[object, ...] | None = None) -> Recipe:
        """A recipe; `shape` is that of a tensor which names none."""
        if self.token.startswith('"'):
            return self.read(shape)
        kind = self.take()
        self.take("(")
        first = self.recipe()
        match kind:
            case "rows":
                recipe: Recipe = Rows(first, self.argument(), self.argument())
            case "share":
                recipe = Share(first, self.argument())
            case "each":
                recipe = Each(first, self.argument())
            case "packed":
                self.take(",")
                recipe = Packed(first, self.take())
            case "stack" | "either":
                parts = [first]
                while self.accept(","):
                    parts.append(self.recipe())
                recipe = Stack(tuple(parts)) if kind == "stack" else Either(tuple(parts))
            case _:
                raise ValueError(f"{kind} is no recipe; use rows, share, each, packed, stack or either")
        self.take(")")
        return recipe

    def argument(self) -> int:
        self.take(",")
        return self.number()

    def read(self, whole: tuple[object, ...] | None) -> Read:
        names = [self.name()]
        while self.accept("|"):
            names.append(self.name())
        dtype = self.take() if self.token.isidentifier() else None
        if self.accept("["):
            dims = [self.number()]
            while self.accept(","):
                dims.append(self.number())
            self.take("]")
            return Read(tuple(names), tuple(dims), dtype)
        if whole is None or dtype is not None:
            raise ValueError(f"{names[0]} needs a shape such as [64, 64]")
        return Read(tuple(names), _static(whole))

    def name(self) -> str:
        token = self.take()
        if not token.startswith('"'):
            raise ValueError(f'expected a name such as "q_proj.weight", found {token}')
        return json.loads(token)


def _static(shape: tuple[object, ...]) -> Shape:
    if not shape or not all(isinstance(dim, int) for dim in shape):
        raise ValueError("a weight needs a type without symbols")
    return tuple(dim for dim in shape if isinstance(dim, int))
