"""Symbolic sizes: a dim is an int or a symbol such as `tokens`, and a formula is arithmetic over symbols.

Symbols get their values when a step is launched:

    tokens         new tokens in the step, all sequences together
    seqs           sequences in the step
    rows           rows of logits wanted
    max_pages      columns of the page table
    context_pages  pages of the longest sequence, rounded up by `round_pages`
    pages          pages in the KV cache
    sms            multiprocessors of the GPU

One more only occurs in shapes of what outlives a step:

    table_rows     rows of logits of the largest step

Two more only occur in costs, since no kernel needs them:

    cached         positions in the KV cache of all sequences together, after the step
    attended       pairs of a new token and a position that it attends to
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from infernum.errors import InfernumError

Dim = int | str
SYMBOLS = ("tokens", "seqs", "rows", "max_pages", "context_pages", "pages", "sms")
COSTS = ("cached", "attended")


def ceildiv(a: int, b: int) -> int:
    """The smallest integer not below a / b."""
    return -(-a // b)


def round_pages(pages: int) -> int:
    """A power of two, 64 or more: so few values of `context_pages` that each may have a CUDA graph of its own."""
    return max(64, 1 << (pages - 1).bit_length())


def round_decodes(sequences: int) -> int:
    """The number of sequences, rounded up to one of the sizes for which decodes have CUDA graphs.

    Exact up to 8, multiples of 8 up to 64, then four sizes up to each power of two: 31 sizes up to 1024.
    """
    if sequences <= 8:
        return sequences
    step = max(8, 1 << (sequences - 1).bit_length() - 3)
    return ceildiv(sequences, step) * step


_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_COMPARED: dict[type[ast.cmpop], Callable[[int, int], bool]] = {ast.Gt: operator.gt, ast.LtE: operator.le}
_CALLS: dict[str, Callable[..., int]] = {"ceildiv": ceildiv, "min": min, "max": max}


def evaluate(formula: str | int, symbols: Mapping[str, int]) -> int:
    """The value of a launch formula such as `ceildiv(tokens, 64) + seqs`.

    Only integers, symbols, `+ - * //`, `ceildiv`, `min`, `max` and `… if a > b else …` (or `a <= b`) are understood, so
    that a manifest cannot run code. Raises InfernumError for anything else.
    """
    if isinstance(formula, int):
        return formula
    try:
        return _value(ast.parse(formula, mode="eval").body, symbols)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InfernumError(
            f"formula {formula!r} cannot be evaluated over {sorted(symbols)}: {error}"
        ) from error


def _value(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbols[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, symbols), _value(right, symbols))
        case ast.IfExp(test=ast.Compare(left=left, ops=[op], comparators=[right])):
            holds = _COMPARED[type(op)](_value(left, symbols), _value(right, symbols))
            return _value(node.body if holds else node.orelse, symbols)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _CALLS[name](*(_value(arg, symbols) for arg in args))
        case _:
            raise TypeError(f"{ast.dump(node)} is not allowed")


def size(shape: tuple[Dim, ...], symbols: Mapping[str, int]) -> int:
    """Number of elements of `shape` under the given symbol values. Raises InfernumError for a symbol without one."""
    count = 1
    for dim in shape:
        count *= evaluate(dim, symbols)
    return count
