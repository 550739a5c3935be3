"""Values of a graph's inputs on which rules are checked: rows of every kind, and the facts of one ragged step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from infernum.dtypes import F16, DType, round_to
from infernum.ir.block import PAGE
from infernum.ir.graph import Input, Node, TensorType
from infernum.lab.verify.facts import Facts, ragged_step
from infernum.lab.verify.values import Array
from infernum.recipes import Read, Recipe, tensors_of
from infernum.step import TABLES
from infernum.weights.values import choose, values

KINDS = ("normal", "large", "tiny", "zeros", "equal")
"""Kinds of the rows of a stream, in turn. Tiny rows are denormal in part, zeros have both signs."""

POOL = 1_000_003
"""Random numbers: a prime number of them, so that no two rows of a large array are the same."""

VOCAB = 4
"""Tokens, fewer than any table of a random graph has rows."""


@dataclass(frozen=True)
class RuleTrial:
    """One evaluation of a graph: the number of tokens, and the index in `KINDS` of the first row's kind."""

    tokens: int
    first: int = 0

    @property
    def facts(self) -> Facts:
        """The step: one sequence, or two of which the first begins near the end of a page."""
        return _facts(self.tokens)


_TABLES = {table.name for table in TABLES}
"""Inputs whose width is the vocabulary of the graph at hand, and not that of `_facts`."""


@dataclass
class InputValues:
    """The arrays of one trial, by the name of an input or of a checkpoint tensor; drawn at the first use."""

    trial: RuleTrial
    arrays: dict[str, Array] = field(default_factory=dict[str, Array])

    def of(self, node: Node) -> Array:
        """The array of a graph's input, float32 or of its integer type; a copy, except for weights.

        Raises ShapeError for a weight whose recipe makes no sense.
        """
        assert isinstance(node.op, Input), f"{node.name} is not an input"
        if node.op.recipe:
            return self._weight(node.op.recipe, node.types[0].dtype)
        if node.name not in self.arrays:
            self.arrays[node.name] = self._array(node.name, node.types[0])
        return self.arrays[node.name].copy()

    def _weight(self, recipe: Recipe, dtype: DType) -> Array:
        tensors = {tensor.names[0]: tensor for tensor in tensors_of(recipe)}
        return values(choose(recipe, tensors), _Tensors(tensors, dtype, self.arrays))

    def _array(self, name: str, kind: TensorType) -> Array:
        facts = self.trial.facts
        if name in facts.arrays and name not in _TABLES:
            return facts.arrays[name]
        shape = facts.sizes(kind)
        if not kind.dtype.is_float:
            # bits for the sets of allowed tokens, and otherwise numbers below both the rows and the tokens
            below = 2**31 if name == "allowed" else min(facts.symbols["rows"], 8)
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            return rng.integers(0, below, shape).astype(kind.dtype.numpy)
        return round_to(self._rows(name, _normal(name, shape), kind.dtype), kind.dtype)

    def _rows(self, name: str, numbers: Array, dtype: DType) -> Array:
        """Numbers scaled to rows of all kinds; the first rows are of one kind in all streams, later rows are not."""
        large, tiny = (30.0, 1e-6) if dtype is F16 else (3e4, 1e-30)
        denormal = 1e-7 if dtype is F16 else 1e-39
        signs = np.sign(numbers)
        for row in range(len(numbers)) if numbers.ndim > 1 else ():
            shift = zlib.crc32(name.encode()) if row >= len(KINDS) else 0
            match KINDS[(row + self.trial.first + shift) % len(KINDS)]:
                case "large":
                    numbers[row] *= np.float32(large)
                case "tiny":
                    numbers[row] *= np.float32(tiny)
                    numbers[row, ..., ::2] = signs[row, ..., ::2] * np.float32(denormal)
                case "zeros":
                    numbers[row] = signs[row] * np.float32(0.0)
                case "equal":
                    numbers[row] = np.float32(1.0) + np.abs(numbers[row].flat[0])
                case _:
                    pass
        return numbers


@dataclass(frozen=True)
class _Tensors:
    """Tensors of a checkpoint, in float32: matrices of unit gain. `arrays` holds those that were drawn already."""

    tensors: Mapping[str, Read]
    type: DType
    arrays: dict[str, Array]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> DType:
        return self.type

    def rows(self, name: str, start: int, stop: int) -> Array:
        if name not in self.arrays:
            shape = self.shape(name)
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            self.arrays[name] = round_to(_normal(name, shape) * np.float32(scale), self.type)
        return self.arrays[name][start:stop]


@cache
def _facts(tokens: int) -> Facts:
    half = tokens // 2
    chunks = ((PAGE - 2, half), (3, tokens - half)) if half else ((PAGE - 2, tokens),)
    return ragged_step(chunks, VOCAB, np.random.default_rng(tokens))


@cache
def _pool() -> Array:
    """Random numbers, twice, that all arrays are cut from: drawing each array anew is slow."""
    return np.tile(np.random.default_rng(7).standard_normal(POOL).astype(np.float32), 2)


def _normal(name: str, shape: tuple[int, ...]) -> Array:
    """Normally distributed numbers, others for another name."""
    numbers = _pool()
    start, most = zlib.crc32(name.encode()) % POOL, min(math.prod(shape), POOL)
    return np.resize(numbers[start : start + most], shape)
