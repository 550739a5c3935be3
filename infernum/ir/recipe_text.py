"""Recipes as text, which reads back as the same recipe: what follows `=` in the line of a weight.

"norm.weight"                                  a tensor of the checkpoint, of the shape of the weight
"norm.weight" | "ln.weight" [64]               alternative names, and the shape
i32("words" [64, 8])                           the type that it must be stored in
"q" [64, 64], "k" [32, 64]                     a stack
rows("qkv" [128, 64], 0, 64)                   rows 0 to 63
share("q" [64, 64], 0)                         this rank's part of axis 0
share("k" [64, 64], 0, 4)                      which is 4 heads
each("experts.{expert}.up" [96, 64], 8)        one after the other on a new first axis
packed("up" [64, 96], transpose)               in another order
either("q" [64, 64], rows("qkv" [128, 64], 0, 64))

All of it has the syntax of a Python expression, and Python's parser reads it.
"""

from __future__ import annotations

import ast
import json

import msgspec

from infernum.dtypes import DTYPES
from infernum.recipes import Each, Either, Packed, Read, Recipe, Rows, Shape, Share, Stack, parts_of


def recipe_text(recipe: Recipe, whole: tuple[object, ...] | None = None) -> str:
    """The text of a recipe. The shape of a single tensor is left out where it is `whole`, that of the weight."""
    match recipe:
        case Read(names=names, dtype=None) if recipe.shape == whole:
            return _names(names)
        case Stack(of=parts) if len(parts) > 1:
            return ", ".join(map(_text, parts))
        case _:
            return _text(recipe)


def parse_recipe(text: str, whole: tuple[object, ...]) -> Recipe:
    """The recipe that `recipe_text` wrote. Raises ValueError saying what is wrong."""
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(error.msg) from error
    match parsed:
        case ast.Tuple([_, _, *_] as parts):
            return Stack(tuple(map(_recipe, parts)))
        case _:
            static = tuple(dim for dim in whole if isinstance(dim, int))
            return _recipe(parsed, static if static == whole else ())


def _names(names: tuple[str, ...]) -> str:
    return " | ".join(json.dumps(name, ensure_ascii=False) for name in names)


def _text(recipe: Recipe) -> str:
    if isinstance(recipe, Read):
        text = f"{_names(recipe.names)} {list(recipe.shape)}"
        return f"{recipe.dtype}({text})" if recipe.dtype else text
    _, *settings = recipe.__struct_fields__  # the first is `of`
    if isinstance(recipe, Share) and not recipe.heads:
        settings.remove("heads")
    arguments = [*map(_text, parts_of(recipe)), *(str(getattr(recipe, name)) for name in settings)]
    return f"{type(recipe).__name__.lower()}({', '.join(arguments)})"


def _recipe(node: ast.expr, whole: Shape = ()) -> Recipe:
    """The recipe of an expression; `whole` is the shape of a tensor that states none, or () where each must."""
    match node:
        case ast.Call(ast.Name("rows"), [of, ast.Constant(int(start)), ast.Constant(int(stop))], []):
            return Rows(_recipe(of), start, stop)
        case ast.Call(ast.Name("share"), [of, ast.Constant(int(axis))], []):
            return Share(_recipe(of), axis)
        case ast.Call(ast.Name("share"), [of, ast.Constant(int(axis)), ast.Constant(int(heads))], []):
            return Share(_recipe(of), axis, heads)
        case ast.Call(ast.Name("each"), [of, ast.Constant(int(count))], []):
            return Each(_recipe(of), count)
        case ast.Call(ast.Name("packed"), [of, ast.Name(by)], []):
            return Packed(_recipe(of), by)
        case ast.Call(ast.Name("stack"), [_, *_] as parts, []):
            return Stack(tuple(map(_recipe, parts)))
        case ast.Call(ast.Name("either"), [_, *_] as parts, []):
            return Either(tuple(map(_recipe, parts)))
        case ast.Call(ast.Name(dtype), [tensor], []) if dtype in DTYPES:
            return msgspec.structs.replace(_read(tensor), dtype=dtype)
        case ast.Call():
            raise ValueError(
                f"{ast.unparse(node)} is no recipe; use rows(…, start, stop), share(…, axis), each(…, count),"
                " packed(…, by), stack(…), either(…) or a dtype such as i32(…)"
            )
        case _:
            return _read(node, whole)


def _read(node: ast.expr, whole: Shape = ()) -> Read:
    tensor = _tensor(node)
    if not tensor.shape and not whole:
        raise ValueError(f"{ast.unparse(node)} needs a shape without symbols, such as [64, 64]")
    return msgspec.structs.replace(tensor, shape=tensor.shape or whole)


def _tensor(node: ast.expr) -> Read:
    """A tensor with its alternative names; its shape is () where the text states none."""
    match node:
        case ast.Constant(str(name)):
            return Read((name,), ())
        case ast.Subscript(ast.Constant(str(name)), shape):
            return Read((name,), _dims(shape))
        case ast.BinOp(left, ast.BitOr(), right) if not (first := _tensor(left)).shape:
            last = _tensor(right)
            return Read((*first.names, *last.names), last.shape)
        case _:
            raise ValueError(f'expected a tensor such as "q_proj.weight" [64, 64], found {ast.unparse(node)}')


def _dims(node: ast.expr) -> Shape:
    match node:
        case ast.Constant(int(dim)):
            return (dim,)
        case ast.Tuple(dims):
            return tuple(number for dim in dims for number in _dims(dim))
        case _:
            raise ValueError(f"expected a shape such as [64, 64], found [{ast.unparse(node)}]")
