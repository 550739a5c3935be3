"""The values of a unit's operands in one trial."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infernum import dims
from infernum.cache_groups import first_page
from infernum.codegen.places import Place
from infernum.dtypes import DType, round_to
from infernum.ir.block import PAGE
from infernum.lab.verify.facts import Facts
from infernum.lab.verify.units import Unit
from infernum.lab.verify.values import Array, Kind, draw
from infernum.recipes import tensor_names
from infernum.step import NO_TOKEN

_STEEPEST = 32.0
"""Factor of attention's queries for "large": scores of ±130, whose powers overflow unless a maximum is subtracted."""


@dataclass
class OperandSource:
    """Draws the operands of one unit for one trial.

    factor   the factor of "large" values
    weights  values of weights that are the same in every trial; new ones are added
    """

    unit: Unit
    facts: Facts
    kind: Kind
    factor: float
    weights: dict[Place, Array]
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.queries = set(_read_by(self.unit, "attention", 0))
        self.keys = set(_read_by(self.unit, "append", 1)) if self.queries else set[int]()
        self.key_kind: Kind = "normal" if self.queries and self.kind in ("large", "denormal") else self.kind
        readers = {"advance": 0, "count_tokens": 2, "logprobs": 1}
        self.page_table = self._page_table()
        self.sampled = {slot for op, index in readers.items() for slot in _read_by(self.unit, op, index)}

    def operands(self) -> list[Array]:
        """Values of every operand, by slot: float32 or int32, one array for operands in the same place."""
        arrays: dict[Place, Array] = {}
        for slot, place in enumerate(self.unit.program.operands):
            if place not in arrays:
                arrays[place] = self._values(slot, place)
        return [arrays[place] for place in self.unit.program.operands]

    def _values(self, slot: int, place: Place) -> Array:
        shape, dtype = self.facts.sizes(place.type), place.type.dtype
        source = self.unit.source(place)
        match self.unit.role(place):
            case "batch":
                assert source is not None
                if source.name == "page_table":
                    return self.page_table.copy()
                return self.facts.arrays[source.name].copy()
            case "state":
                whole = self.unit.graph.operands(self.unit.node.name)[slot].node == place.tensor
                return self._cache(shape, dtype, self.facts.starts if whole else self.facts.ends)
            case "weight":
                return self._weight(place, shape, dtype)
            case _ if not dtype.is_float:
                vocab = self.unit.bundle.manifest.model.vocab_size
                tokens = self.rng.integers(0, vocab, shape).astype(np.int32)
                if slot in self.sampled:
                    tokens[self.rng.random(shape) < 0.25] = NO_TOKEN
                return tokens
            case _ if slot in self.queries:
                return self._queries(shape, dtype)
            case _ if slot in self.keys:
                return draw(self.key_kind, shape, dtype, self.rng)
            case _:
                values = draw(self.kind, shape, dtype, self.rng, self.factor)
                return self._logits(values) if place.tensor == "logits" and self.kind == "normal" else values

    def _queries(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """Queries. Their products with keys are exponents: large ones are steep, denormal ones would be flat.

        The rounding of a score becomes a relative error of its power, so the tolerance bounds the size of scores.
        """
        if self.kind == "large":
            return draw("normal", shape, dtype, self.rng, min(_STEEPEST, dtype.tolerance * 2.0**18))
        return draw(self.key_kind, shape, dtype, self.rng)

    def _page_table(self) -> Array:
        """The page table; −1 also where attention with a window has its pages behind that, as the engine does."""
        table = self.facts.arrays["page_table"].copy()
        for node in self.unit.body.calls_of("attention"):
            for pages, start in zip(table, self.facts.starts, strict=True):
                pages[: first_page(start, node.attrs["window"], PAGE)] = -1
        return table

    def _cache(self, shape: tuple[int, ...], dtype: DType, filled: Sequence[int]) -> Array:
        """A KV cache [pages, 2, kv_heads, 64, dim]: the first `filled[s]` positions of sequence s, NaN elsewhere.

        Pages behind a window hold nothing.
        """
        kv = np.full(shape, np.nan, np.float32)
        for pages, count in zip(self.page_table, filled, strict=True):
            for column in range(dims.ceildiv(count, PAGE)):
                if pages[column] < 0:
                    continue
                rows = min(PAGE, count - column * PAGE)
                keys, values = kv[pages[column], :, :, :rows]
                key_factor = self.factor if self.key_kind == self.kind else 1.0
                keys[:] = draw(self.key_kind, keys.shape, dtype, self.rng, key_factor)
                values[:] = draw(self.kind, values.shape, dtype, self.rng, self.factor)
        return kv

    def _weight(self, place: Place, shape: tuple[int, ...], dtype: DType) -> Array:
        """A weight of unit gain, the same in every trial: deviation 1/sqrt(k) for a matrix, norms around 1.

        Biases, which are added to values of the trial's kind, are of that kind too; so are weights that are copied.
        """
        name = tensor_names(self.unit.variant.weights[place.tensor].recipe)[0]
        if self.unit.copies or name.endswith("bias"):
            return draw(self.kind, shape, dtype, self.rng, self.factor)
        if place not in self.weights:
            self.weights[place] = _unit_gain(name, shape, dtype)
        return self.weights[place]

    def _logits(self, values: Array) -> Array:
        """Logits with some −∞ and, in some rows, two equal maxima; in a few rows no token can be drawn."""
        values = values * np.float32(3)
        rows, vocab = values.shape
        for row in range(0, rows, 2):
            values[row, self.rng.integers(0, vocab, 3)] = -np.inf
        for row in range(0, rows, 3):
            values[row, self.rng.integers(0, vocab, 2)] = 40.0
        for row in range(rows):
            match int(self.rng.integers(12)):
                case 0:
                    values[row, self.rng.integers(vocab)] = np.nan
                case 1:
                    values[row, self.rng.integers(vocab)] = np.inf
                case 2:
                    values[row] = -np.inf
                case _:
                    pass
        return values


def _unit_gain(name: str, shape: tuple[int, ...], dtype: DType) -> Array:
    rng = np.random.default_rng([len(name), *shape])
    if len(shape) == 2:
        return draw("normal", shape, dtype, rng, shape[1] ** -0.5)
    return round_to(1 + np.float32(0.2) * draw("normal", shape, dtype, rng), dtype)


def _read_by(unit: Unit, op: str, index: int) -> Iterator[int]:
    """The slots of the operands from which an op of the unit gets its operand `index`, also through other ops."""
    slots = {node.name: slot for slot, node in enumerate(unit.body.inputs)}
    for node in unit.body.calls_of(op):
        name = unit.body.operands(node.name)[index].node
        while name not in slots:
            name = unit.body.operands(name)[0].node
        yield slots[name]


def weight_bytes(unit: Unit) -> int:
    """Bytes of the unit's weights, on which the time of NumPy depends."""
    weights = {place.tensor: place.type for place in unit.program.operands if unit.role(place) == "weight"}
    return sum(math.prod(map(int, type_.shape)) * type_.dtype.bytes for type_ in weights.values())
