"""Instances of a rule's own examples: types and attributes that fit it are searched for, and ops put around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from infernum import ops
from infernum.dtypes import F32, I32, DType
from infernum.errors import InfernumError
from infernum.ir.block import BATCH, PAGE, Tensor
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.match import AttrVar
from infernum.ir.op import Op
from infernum.rope import Rope
from infernum.verify.random_graphs import Maker, width

TRIES = 1500
"""Calls of type inference that the search for one instance may take."""

MISSES = 60
"""Searches without a result after which there will be no more."""

BY_ANNOTATION: dict[str, list[Any]] = {
    "int": [1, 2, 4, 8, 16],
    "float": [1e-5, 0.5, 1.0, 2.0],
    "bool": [False, True],
    "str": ["f32", "bf16", "f16"],
    "Rope": [Rope(), Rope("linear", factor=2.0)],
}
"""Attributes to try, by the annotation of the parameter that takes them."""


@dataclass(frozen=True)
class Harvest:
    """What occurs in the graphs of a bundle: attributes by op and name, and operand types by op and slot."""

    attrs: dict[tuple[str, str], list[Any]] = field(default_factory=dict[tuple[str, str], list[Any]])
    types: dict[tuple[str, int], list[TensorType]] = field(
        default_factory=dict[tuple[str, int], list[TensorType]]
    )


def harvest(graphs: Sequence[Graph], largest: int = 1 << 20) -> Harvest:
    """Collect attributes, and types of at most `largest` elements a token, from the graphs of a bundle."""
    found = Harvest()
    for graph in graphs:
        for node in graph.calls:
            for name, value in node.attrs.items():
                _note(found.attrs.setdefault((node.op.name, name), []), value)
            for slot, operand in enumerate(graph.operands(node.name)):
                kind = graph.type(operand)
                if int(np.prod([d for d in kind.shape if isinstance(d, int)])) <= largest:
                    _note(found.types.setdefault((node.op.name, slot), []), kind)
    return found


def _note(known: list[Any], value: Any) -> None:
    if value not in known:
        known.append(value)


def instances(
    name: str, patterns: Sequence[Graph], dtype: DType, rng: np.random.Generator, found: Harvest
) -> Iterator[Graph]:
    """Graphs that hold a rule's examples by turns, the plainest first; they end where no types can be found."""
    misses = 0
    for number in count() if patterns else ():
        kind = F32 if number % 7 == 6 else dtype
        search = _Search(patterns[number % len(patterns)], kind, rng, found, real=number % 4 == 3)
        if search.run():
            yield _embedded(search, f"{name}_{number}", plain=number < 4 * len(patterns))
            continue
        misses += 1
        if misses == MISSES:
            return


class _Search:
    """Looks for types of a pattern's inputs and values of its attributes that every op of it accepts."""

    def __init__(
        self, pattern: Graph, dtype: DType, rng: np.random.Generator, found: Harvest, *, real: bool
    ) -> None:
        self.pattern, self.dtype, self.rng, self.found, self.real = pattern, dtype, rng, found, real
        self.types: dict[Value, TensorType] = {}
        self.attrs: dict[str, Any] = {}
        self.facts: dict[str, str] = {}
        self.tidy = rng.random() < 0.6
        self.left = TRIES
        self.calls = pattern.calls
        self.read = {node.name: pattern.operands(node.name) for node in self.calls}
        self.pool = self._pool()

    def run(self) -> bool:
        """True when types and attributes were found: they are in `types` and `attrs`."""
        return self._call(0)

    def _pool(self) -> list[TensorType]:
        """Types of a few sizes, so that they often agree: rows, heads, vectors, matrices."""
        a, b, c = self.rng.permutation([4, 8, 12, 16, 24])[:3].tolist()
        dim, some, few = (int(self.rng.choice(sizes)) for sizes in ([4, 8], [2, 4], [1, 2]))
        shapes: list[tuple[int | str, ...]] = [
            *(("tokens", n) for n in (a, b, 2 * a, a + b + c)),
            *(("tokens", n, dim) for n in (some, few)),
            *((n,) for n in (a, b, c, dim, a + b + c)),
            *((n, m) for n in (a, b, c) for m in (a, b)),
        ]
        return [TensorType(shape, self.dtype) for shape in shapes]

    def _call(self, at: int) -> bool:
        if at == len(self.calls):
            return True
        node = self.calls[at]
        read = self.read[node.name]
        free = [v for v in dict.fromkeys(read) if v not in self.types]
        return self._operands(at, node, free)

    def _operands(self, at: int, node: Node, free: list[Value]) -> bool:
        if not free:
            variables = [
                v for v in node.attrs.values() if isinstance(v, AttrVar) and v.name not in self.attrs
            ]
            return self._attrs(at, node, variables)
        value, rest = free[0], free[1:]
        for kind in self._shuffled(self._choices(node, value)):
            if self.left <= 0:
                break
            self.types[value] = kind
            if self._operands(at, node, rest):
                return True
        self.types.pop(value, None)
        return False

    def _attrs(self, at: int, node: Node, free: list[AttrVar]) -> bool:
        if free:
            variable, rest = free[0], free[1:]
            for value in self._values(node, variable):
                if self.left <= 0:
                    break
                self.attrs[variable.name] = value
                if self._attrs(at, node, rest):
                    return True
            self.attrs.pop(variable.name, None)
            return False
        self.left -= 1
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        operands = [self.types[v] for v in self.read[node.name]]
        try:
            results = node.op.infer_types(*operands, **self.bound(node))
        except (InfernumError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
            return False
        if any(isinstance(dim, str) for kind in results for dim in kind.shape[1:]):
            return False
        made = {Value(node.name, i): kind for i, kind in enumerate(results)}
        self.types |= made
        if self._call(at + 1):
            return True
        for value in made:
            del self.types[value]
        return False

    def bound(self, node: Node) -> dict[str, Any]:
        """The attributes of a call, variables replaced by what was found for them."""
        return {k: self.attrs[v.name] if isinstance(v, AttrVar) else v for k, v in node.attrs.items()}

    def _choices(self, node: Node, value: Value) -> list[TensorType]:
        """Types that an input of the pattern may have as an operand of the call that reads it first."""
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        slot = self.read[node.name].index(value)
        param = node.op.params[0 if node.op.variadic else slot]
        name = param if param in BATCH else value.node if value.node in BATCH else ""
        if name:
            self.facts[value.node] = name
            return [BATCH[name]]
        if self.real:
            seen = self.found.types.get((node.op.name, slot), [])
            if seen:
                return seen
        term = None if node.op.signature is None or node.op.variadic else node.op.signature.operands[slot]
        if param == "kv" or (term is not None and len(term.dims) == 5):
            dims = [(k.shape[1], k.shape[2]) for k in self.pool if len(k.shape) == 3]
            return [TensorType(("pages", 2, n, PAGE, d), self.dtype) for n, d in dims]
        if term is None:
            return self.pool
        if term.dtype is not None and not term.dtype.is_float:
            return [TensorType(("tokens",) * len(term.dims), I32)]
        wanted = [k for k in self.pool if len(k.shape) == len(term.dims)]
        return [replace(k, dtype=term.dtype) for k in wanted] if term.dtype else wanted

    def _values(self, node: Node, variable: AttrVar) -> list[Any]:
        """Values that an attribute may have: by its operand, from the bundle, by its annotation."""
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        name = next(k for k, v in node.attrs.items() if v == variable)
        first = self._columns(node, name) if node.op is ops.columns else []
        seen = self.found.attrs.get((node.op.name, name), [])
        default = [node.op.defaults[name]] if name in node.op.defaults else []
        parameter = inspect.signature(node.op.meaning).parameters.get(name)
        kind = "" if parameter is None else str(parameter.annotation)
        known = BY_ANNOTATION.get(kind.removeprefix("<class '").removesuffix("'>"), [])
        rest = self._shuffled([*seen[:6], *default, *known])
        return first if first and self.tidy else self._shuffled([*first, *rest])

    def _columns(self, node: Node, name: str) -> list[Any]:
        """Columns side by side, as many as there are slices of one value: most often all of it is used."""
        value = self.read[node.name][0]
        every = [n for n in self.calls if n.op is ops.columns and self.read[n.name][0] == value]
        place = [n.name for n in every].index(node.name)
        if any(isinstance(dim, str) for dim in self.types[value].shape[1:]):
            return []
        start = int(self.bound(every[place - 1])["stop"]) if place else 0
        if name == "start":
            return [start]
        rows = self.types[value].width
        if place == len(every) - 1:
            return [rows]
        sizes = {k.shape[0] for k in self.pool if len(k.shape) == 1}
        return [rows * (place + 1) // len(every), *(start + int(n) for n in self._shuffled(sorted(sizes)))]

    def _shuffled(self, options: Sequence[Any]) -> list[Any]:
        return [options[i] for i in self.rng.permutation(len(options))]


def _embedded(found: _Search, name: str, *, plain: bool) -> Graph:
    """The instance with ops around it, which read what it gives and, unless `plain`, compute what it reads."""
    maker = Maker(found.rng, found.dtype)
    maker.trace.entries.clear()
    maker.values.clear()
    pattern, tensors = found.pattern, dict[Value, Tensor]()
    for node in pattern.inputs:
        value = Value(node.name)
        if value in found.types:
            tensors[value] = _input(maker, found, node.name, plain=plain)
    for node in pattern.calls:
        assert isinstance(node.op, Op), "patterns hold primitive ops"
        read = [tensors[v] for v in pattern.operands(node.name)]
        for i, made in enumerate(maker.trace.add(node.op, read, found.bound(node))):
            tensors[Value(node.name, i)] = made
    how = maker.pick(("given", "read", "read", "mixed"))
    ends: list[Tensor] = []
    for output in dict.fromkeys(pattern.outputs):
        ends += [tensors[output]] if how == "given" else _used(maker, tensors[output], how)
    if not plain and maker.chance(0.1):
        ends.append(maker.pick(list(tensors.values())))
    calls = [v for v in dict.fromkeys(t.value for t in ends) if not maker.trace.entries[v.node][0].is_input]
    return Graph.build(name, maker.trace.entries.values(), calls).live()


def _input(maker: Maker, found: _Search, name: str, *, plain: bool) -> Tensor:
    """A value for an input of the pattern: a weight, a fact of the step, a stream, or something computed."""
    kind = found.types[Value(name)]
    if name in found.facts:
        return maker.trace.input(found.facts[name], Input("batch"), kind)
    if kind.shape[0] == "pages":
        return maker.trace.input("kv", Input("state"), kind)
    static = tuple(d for d in kind.shape if isinstance(d, int))
    if len(static) == len(kind.shape) and kind.dtype is maker.dtype and (plain or maker.chance(0.9)):
        return maker.weight(*static)
    same = [v for v in maker.values if v.type == kind]
    if same and not plain and maker.chance(0.2):
        return maker.pick(same)
    if plain or maker.chance() or kind.dtype is not maker.dtype or kind.shape[0] != "tokens":
        given = maker.trace.input(f"x{len(maker.trace.entries)}", Input("stream"), kind)
    else:
        given = _computed(maker, static)
    maker.values.append(given)
    return given


def _computed(maker: Maker, dims: tuple[int, ...]) -> Tensor:
    """[tokens, *dims], computed by one of several ops."""
    if len(dims) == 2:
        flat = _computed(maker, (dims[0] * dims[1],))
        return ops.heads(flat, dim=dims[1])
    x = maker.stream(*dims)
    if len(dims) != 1:
        return ops.silu(x)
    makers: list[Callable[[Tensor], list[Tensor]]] = [maker.silu, maker.bias, maker.norm]
    wide = maker.pick([*makers, _projected(maker)])
    return wide(x)[0]


def _projected(maker: Maker) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: [ops.linear(maker.stream(8), maker.weight(width(x), 8))]


def _used(maker: Maker, value: Tensor, how: str) -> list[Tensor]:
    """What is computed from a result, and where uses are mixed perhaps the result too, or it alone."""
    if (
        value.dtype is not maker.dtype
        or len(value.shape) not in (2, 3)
        or (how == "mixed" and maker.chance(0.2))
    ):
        return [value]
    makers = [maker.silu, maker.bias, *([maker.norm, maker.linear] if len(value.shape) == 2 else [])]
    used = maker.pick(makers)(value)
    return [value, *used] if how == "mixed" and maker.chance(0.2) else used
