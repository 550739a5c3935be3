"""Instances of a rule's own examples: types and attributes that fit it are searched for, and ops put around it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from typing import Any

import numpy as np

from infernum import ops
from infernum.dtypes import F32, DType
from infernum.errors import InfernumError
from infernum.ir.block import BATCH, PAGE, Tensor
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.match import AttrVar
from infernum.ir.op import Op
from infernum.lab.verify.random_graphs import Maker
from infernum.rope import Rope

TRIES = 1500
"""Calls of type inference that the search for one instance may take."""

MISSES = 60
"""Searches without a result after which there will be no more."""

LARGEST = 1 << 20
"""Elements a token of the largest type of a bundle that an instance may have."""

BY_ANNOTATION: dict[str, list[Any]] = {
    "int": [1, 2, 4, 8, 16],
    "float": [1e-5, 0.5, 1.0, 2.0],
    "bool": [False, True],
    "str": ["f32", "bf16", "f16"],
    "Rope": [Rope(), Rope("linear", factor=2.0)],
}
"""Attributes to try, by the annotation of the parameter that takes them."""

Solution = tuple[Mapping[Value, TensorType], Mapping[str, Any]]
"""Types of a pattern's values, and values of its attributes."""


@dataclass
class Harvest:
    """What occurs in the graphs of a bundle: attributes by op and name, and floating types of modest size."""

    attrs: dict[tuple[str, str], list[Any]] = field(default_factory=dict[tuple[str, str], list[Any]])
    types: list[TensorType] = field(default_factory=list[TensorType])


def harvest(graphs: Sequence[Graph]) -> Harvest:
    """Collect attributes and types from the graphs of a bundle."""
    found = Harvest()
    for node in (node for graph in graphs for node in graph.nodes):
        for name, value in node.attrs.items():
            known = found.attrs.setdefault((node.op.name, name), [])
            known += [value] if value not in known else []
        for type_ in node.types:
            small = math.prod(dim for dim in type_.shape if isinstance(dim, int)) <= LARGEST
            if small and type_.dtype.is_float and type_ not in found.types:
                found.types.append(type_)
    return found


def instances(
    name: str, patterns: Sequence[Graph], dtype: DType, rng: np.random.Generator, found: Harvest
) -> Iterator[Graph]:
    """Graphs that hold a rule's examples by turns, the plainest first; they end where no types can be found."""
    misses = 0
    for number in count() if patterns else ():
        maker = Maker(rng, F32 if rng.random() < 1 / 7 else dtype)
        search = _Search(patterns[number % len(patterns)], maker, found)
        solution = search.solve()
        if solution:
            yield _embedded(search, solution, f"{name}_{number}", plain=number < 4 * len(patterns))
        misses += not solution
        if misses == MISSES:
            return


class _Search:
    """Looks for types of a pattern's inputs and values of its attributes that every op of it accepts."""

    def __init__(self, pattern: Graph, maker: Maker, found: Harvest) -> None:
        self.pattern, self.maker, self.found = pattern, maker, found
        self.calls = pattern.calls
        self.read = {node.name: pattern.operands(node.name) for node in self.calls}
        self.facts = dict(self._facts())
        self.pool = [*_few_types(maker), *(found.types if maker.chance(0.25) else [])]
        self.cuts = self._cuts(maker.pick(("equal", "unequal", "none")))
        self.tries = TRIES

    def solve(
        self, at: int = 0, types: Mapping[Value, TensorType] = {}, attrs: Mapping[str, Any] = {}
    ) -> Solution | None:
        """The first types and attributes found, beside those given, that the calls from number `at` on accept."""
        if at == len(self.calls):
            return types, attrs
        node, read = self.calls[at], self.read[self.calls[at].name]
        inputs = [v for v in dict.fromkeys(read) if v not in types]
        named = {v.name: k for k, v in node.attrs.items() if isinstance(v, AttrVar)}
        variables = {variable: k for variable, k in named.items() if variable not in attrs}
        for kinds in product(*(self._types(node, value) for value in inputs)):
            typed = {**types, **dict(zip(inputs, kinds, strict=True))}
            operands = [typed[v] for v in read]
            for values in product(*(self._values(node, name, operands[0]) for name in variables.values())):
                if self.tries == 0:
                    return None
                self.tries -= 1
                bound = {**attrs, **dict(zip(variables, values, strict=True))}
                made = _results(node, operands, bound)
                solution = self.solve(at + 1, typed | made, bound) if made else None
                if solution:
                    return solution
        return None

    def _facts(self) -> Iterator[tuple[Value, str]]:
        """Inputs of the pattern that are inputs of the step, by their own name or by an operand's."""
        for node in self.calls:
            for slot, value in enumerate(self.read[node.name]):
                names = [name for name in (_param(node, slot), value.node) if name in BATCH]
                if names and self.pattern.node(value.node).is_input:
                    yield value, names[0]

    def _cuts(self, how: str) -> dict[str, tuple[float, float]]:
        """Where slices that share out a whole value begin and end, as parts of it, by the name of the call."""
        cuts: dict[str, tuple[float, float]] = {}
        sliced = [node.name for node in self.calls if node.op is ops.columns and how != "none"]
        for value in dict.fromkeys(self.read[name][0] for name in sliced):
            names = [name for name in sliced if self.read[name][0] == value]
            parts = len(names) if how == "equal" else max(4, len(names))
            inner = sorted(self.maker.rng.permutation(parts - 1)[: len(names) - 1] + 1)
            ends = [0.0, *(cut / parts for cut in inner), 1.0]
            cuts |= {name: (ends[i], ends[i + 1]) for i, name in enumerate(names)}
        return cuts

    def _types(self, node: Node, value: Value) -> list[TensorType]:
        """Types that an input of the pattern may have as an operand of the call that reads it first."""
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        if value in self.facts:
            return [BATCH[self.facts[value]]]
        slot = self.read[node.name].index(value)
        if node.op.signature is None:
            of_cache = _param(node, slot) == "kv"
            return self._shuffled([t for t in self.pool if (t.shape[0] == "pages") == of_cache])
        term = node.op.signature.operands[slot]
        if term.dtype is not None and not term.dtype.is_float:
            return [TensorType(("tokens",) * len(term.dims), term.dtype)]
        fitting = [t for t in self.pool if len(t.shape) == len(term.dims)]
        return self._shuffled([replace(t, dtype=term.dtype or t.dtype) for t in fitting])

    def _values(self, node: Node, name: str, first: TensorType) -> list[Any]:
        """Values that an attribute may have: from the bundle, by its annotation, and parts of the first operand."""
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        annotation = inspect.signature(node.op.meaning).parameters[name].annotation
        kind = getattr(annotation, "__name__", annotation)
        default = [node.op.defaults[name]] if name in node.op.defaults else []
        seen = self.found.attrs.get((node.op.name, name), [])[:6]
        width = first.shape[-1]
        parts = [width * part // 4 for part in range(5)] if kind == "int" and isinstance(width, int) else []
        values = self._shuffled([*seen, *default, *BY_ANNOTATION.get(kind, []), *parts])
        if node.name in self.cuts and isinstance(width, int):
            start, stop = self.cuts[node.name]
            values.insert(0, int(width * (start if name == "start" else stop)))
        return values

    def _shuffled(self, options: Sequence[Any]) -> list[Any]:
        return [options[i] for i in self.maker.rng.permutation(len(options))]


def _few_types(maker: Maker) -> list[TensorType]:
    """Types of a few sizes, so that they often agree: rows, heads, vectors, matrices, and caches of the heads."""
    a, b, c = maker.rng.permutation([4, 8, 12, 16, 24])[:3].tolist()
    dim, some, few = maker.pick([4, 8]), maker.pick([2, 4]), maker.pick([1, 2])
    shapes: list[tuple[int | str, ...]] = [
        *(("tokens", n) for n in (a, b, 2 * a, a + b + c)),
        *(("tokens", n, dim) for n in (some, few)),
        *((n,) for n in (a, b, c, dim, a + b + c)),
        *((n, m) for n in (a, b, c) for m in (a, b)),
        *(("pages", 2, n, PAGE, dim) for n in (some, few)),
    ]
    return [TensorType(shape, maker.dtype) for shape in shapes]


def _param(node: Node, slot: int) -> str:
    """The name of a call's operand."""
    assert isinstance(node.op, Op), "patterns hold primitive ops"
    return node.op.params[0 if node.op.variadic else slot]


def _bound(node: Node, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a call, variables replaced by their values."""
    return {k: attrs[v.name] if isinstance(v, AttrVar) else v for k, v in node.attrs.items()}


def _results(
    node: Node, operands: Sequence[TensorType], attrs: Mapping[str, Any]
) -> dict[Value, TensorType] | None:
    """The types of a call's results, static but for a first dim; None where an op refuses its operands."""
    assert isinstance(node.op, Op), "patterns hold primitive ops"
    try:
        types = node.op.infer_types(*operands, **_bound(node, attrs))
    except (InfernumError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        return None
    if any(isinstance(dim, str) for type_ in types for dim in type_.shape[1:]):
        return None
    return {Value(node.name, i): type_ for i, type_ in enumerate(types)}


def _embedded(search: _Search, solution: Solution, name: str, *, plain: bool) -> Graph:
    """The instance with ops around it, which read what it gives and, unless `plain`, compute what it reads."""
    maker, pattern, (types, attrs) = search.maker, search.pattern, solution
    tensors: dict[Value, Tensor] = {}
    for value in (Value(node.name) for node in pattern.inputs):
        if value in search.facts:
            tensors[value] = maker.trace.input(search.facts[value], Input("batch"), types[value])
        elif value in types:
            tensors[value] = _input(maker, types[value], plain=plain)
    for node in search.calls:
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        made = maker.trace.add(node.op, [tensors[v] for v in search.read[node.name]], _bound(node, attrs))
        tensors |= {Value(node.name, i): result for i, result in enumerate(made)}
    given = maker.pick((0.0, 0.0, 0.2, 1.0))
    ends: list[Tensor] = []
    for output in dict.fromkeys(pattern.outputs):
        ends += [tensors[output]] if maker.chance(given) else _using(maker, tensors[output])
    if not plain and maker.chance(0.1):
        ends.append(maker.pick(list(tensors.values())))
    calls = [v for v in dict.fromkeys(t.value for t in ends) if not maker.trace.entries[v.node][0].is_input]
    return Graph.build(name, maker.trace.entries.values(), calls).live()


def _input(maker: Maker, type_: TensorType, *, plain: bool) -> Tensor:
    """A value for an input of the pattern: a cache, a weight, a stream, or something computed."""
    if type_.shape[0] == "pages":
        return maker.trace.input("kv", Input("state"), type_)
    first, *rest = type_.shape
    own, static = type_.dtype is maker.dtype, [dim for dim in rest if isinstance(dim, int)]
    if isinstance(first, int) and own and (plain or maker.chance(0.9)):
        return maker.weight(first, *static)
    same = [] if plain else [v for v in maker.values if v.type == type_]
    if same and maker.chance(0.2):
        return maker.pick(same)
    value = maker.stream(type_)
    if not plain and own and first == "tokens" and len(static) in (1, 2) and maker.chance():
        value = _computed(maker, value, static)
    maker.values.append(value)
    return value


def _computed(maker: Maker, like: Tensor, static: Sequence[int]) -> Tensor:
    """A value of the type of `like`, computed from it or by a product."""
    if maker.chance():
        return maker.pick((maker.silu, maker.bias, maker.norm))(like)[0]
    x = maker.stream(TensorType(("tokens", 8), maker.dtype))
    wide = ops.linear(x, maker.weight(math.prod(static), 8))
    return wide if len(static) == 1 else ops.heads(wide, dim=static[-1])


def _using(maker: Maker, value: Tensor) -> list[Tensor]:
    """What an op computes from a result; the result itself where none can."""
    if value.dtype is not maker.dtype or len(value.shape) not in (2, 3):
        return [value]
    makers = [maker.silu, maker.bias, *([maker.norm, maker.linear] if len(value.shape) == 2 else [])]
    return maker.pick(makers)(value)
