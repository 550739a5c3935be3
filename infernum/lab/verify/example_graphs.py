"""Random graphs around a rule's examples: inputs of random types, attributes of random values, ops before and after."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infernum.dtypes import F32, DType
from infernum.errors import InfernumError
from infernum.ir.block import BATCH, PAGE, Tensor
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.match import AttrVar
from infernum.ir.op import Op
from infernum.lab.verify.random_graphs import Maker
from infernum.ops import heads
from infernum.rope import Rope

DRAWS = 60
"""Times that types and attributes are drawn for one call of an example before the graph is given up."""

ATTRS: dict[str, Sequence[Any]] = {
    "int": (0, 1, 2, 4, 8, 16),
    "float": (1e-5, 0.5, 1.0, 2.0),
    "bool": (False, True),
    "str": ("f32", "bf16", "f16"),
    "Rope": (
        Rope(),
        Rope("linear", factor=2.0),
        Rope(partial=0.5, interleaved=True, attention_factor=1.5),
        Rope(original_max_position=4, beta=0.5),
        Rope(original_max_position=4),
    ),
}
"""Values of an attribute, by the annotation of its parameter in the op's meaning."""


Attrs = Mapping[tuple[str, str], Sequence[Any]]
"""Values of attributes by the names of op and attribute."""


def attrs_of(graphs: Iterable[Graph]) -> Attrs:
    """All attributes of the calls of some graphs."""
    values: dict[tuple[str, str], list[Any]] = {}
    for node in (node for graph in graphs for node in graph.calls):
        for name, value in node.attrs.items():
            values.setdefault((node.op.name, name), []).append(value)
    return values


def example_graphs(
    name: str, examples: Sequence[Graph], dtype: DType, attrs: Attrs, rng: np.random.Generator, attempts: int
) -> Iterator[Graph]:
    """Graphs that hold the traced examples in turn, at most one for each attempt; the first ones hold nothing else.

    attrs     values that an attribute may have, besides those of `ATTRS`
    attempts  an attempt gives no graph where none of the types fit that were drawn
    """
    for number in range(attempts if examples else 0):
        maker = Maker(rng, F32 if rng.random() < 1 / 7 else dtype)
        graph = _Example(examples[number % len(examples)], maker, attrs).graph(
            f"{name}_{number}", plain=number < 4 * len(examples)
        )
        if graph is not None:
            yield graph


class _Example:
    """Adds the calls of an example to the graph of a maker, and draws what the example leaves open."""

    def __init__(self, example: Graph, maker: Maker, known_attrs: Attrs) -> None:
        self.example, self.maker, self.known_attrs = example, maker, known_attrs
        self.tensors: dict[Value, Tensor] = {}
        self.attrs: dict[str, Any] = {}
        self.types = _few_types(maker)

    def graph(self, name: str, *, plain: bool) -> Graph | None:
        """The whole graph; None where no types were drawn that fit. `plain`: without ops around the example."""
        maker = self.maker
        if not plain:
            maker.begin()
            for _ in range(maker.pick((0, 1, 2))):
                maker.grow()
            maker.values += [heads(value, dim=4) for value in maker.values[-1:]]
            self.types += [value.type for value in maker.values]
        if not all(self._add(node) for node in self.example.calls):
            return None
        outputs = [self.tensors[value] for value in dict.fromkeys(self.example.outputs)]
        returned = 1.0 if plain else maker.pick((0.0, 0.0, 0.2, 1.0))
        ends = [end for out in outputs for end in ([out] if maker.chance(returned) else self._read(out))]
        if not plain and maker.chance(0.1):
            ends.append(maker.pick(list(self.tensors.values())))
        entries = maker.trace.entries
        computed = [v for v in dict.fromkeys(end.value for end in ends) if not entries[v.node][0].is_input]
        return Graph.build(name, entries.values(), computed).live()

    def _add(self, node: Node) -> bool:
        """Add a call of the example, with the inputs that it is the first to read. False where nothing fits it."""
        assert isinstance(node.op, Op), "examples hold primitive ops"
        operands = self.example.operands(node.name)
        for _ in range(DRAWS):
            types = {value: self._type(node.op, slot, value) for slot, value in enumerate(operands)}
            drawn = self._attrs(node.op, node.attrs, types[operands[0]])
            if drawn is None:
                return False
            attrs = {k: drawn[v.name] if isinstance(v, AttrVar) else v for k, v in node.attrs.items()}
            if not _accepts(node.op, [types[value] for value in operands], attrs):
                continue
            for slot, value in enumerate(operands):
                if value not in self.tensors:
                    self.tensors[value] = self._input(_batch_name(node.op, slot, value), types[value])
            self.attrs = drawn
            tensors = [self.tensors[value] for value in operands]
            results = self.maker.trace.add(node.op, node.op.infer_types, tensors, attrs)
            self.tensors |= {Value(node.name, i): result for i, result in enumerate(results)}
            return True
        return False

    def _type(self, op: Op, slot: int, value: Value) -> TensorType:
        """The type of an operand; for an input that no call has read yet, one that the op's signature may allow."""
        if value in self.tensors:
            return self.tensors[value].type
        if name := _batch_name(op, slot, value):
            return BATCH[name]
        if op.signature is None:
            return self.maker.pick([type_ for type_ in self.types if len(type_.shape) < 4])
        term = op.signature.operands[slot]
        if term.dtype is not None and not term.dtype.is_float:
            return TensorType(("tokens",) * len(term.dims), term.dtype)
        fitting = [type_ for type_ in self.types if len(type_.shape) == len(term.dims)]
        type_ = self.maker.pick(fitting)
        return replace(type_, dtype=term.dtype or type_.dtype)

    def _attrs(self, op: Op, attrs: Mapping[str, Any], first: TensorType) -> dict[str, Any] | None:
        """Values of all variables so far; most integers cut the first operand in halves. None: some have no values."""
        drawn = dict(self.attrs)
        for name, variable in attrs.items():
            if not isinstance(variable, AttrVar) or variable.name in drawn:
                continue
            annotation = inspect.signature(op.meaning).parameters[name].annotation
            kind = getattr(annotation, "__name__", annotation)
            options = [*ATTRS.get(kind, ()), *self.known_attrs.get((op.name, name), ())]
            options += [op.defaults[name]] if name in op.defaults else []
            width = first.shape[-1]
            if kind == "int" and isinstance(width, int):
                options = [0, width // 2, width] if self.maker.chance(0.8) else [*options, width // 4]
            if not options:
                return None
            drawn[variable.name] = self.maker.pick(options)
        return drawn

    def _input(self, batch: str, type_: TensorType) -> Tensor:
        """An input of the step, a cache, a weight, something that the graph holds, or a new stream."""
        maker, trace = self.maker, self.maker.trace
        if batch:
            return trace.input(batch, Input("batch"), type_)
        if type_.shape[0] == "pages":
            return trace.input("kv", Input("state"), type_)
        static = [dim for dim in type_.shape if isinstance(dim, int)]
        if len(static) == len(type_.shape) and type_.dtype is maker.dtype and maker.chance(0.9):
            return maker.weight(*static)
        alike = [value for value in maker.values if value.type == type_]
        return maker.pick(alike) if alike and maker.chance(0.7) else maker.stream(type_)

    def _read(self, value: Tensor) -> list[Tensor]:
        """What an op computes from a result of the example; the result itself where none of the ops reads its type."""
        maker, rank = self.maker, len(value.shape)
        if value.dtype is not maker.dtype or rank not in (2, 3):
            return [value]
        readers = [maker.silu, maker.bias, maker.norm, maker.linear]
        return maker.pick(readers if rank == 2 else readers[:2])(value)


def _batch_name(op: Op, slot: int, value: Value) -> str:
    """The input of the step that an operand is, by the name of the parameter or of the value; "" for all others."""
    names = (op.params[0 if op.variadic else slot], value.node)
    return next((name for name in names if name in BATCH), "")


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


def _accepts(op: Op, operands: Sequence[TensorType], attrs: Mapping[str, Any]) -> bool:
    """Whether an op takes these operands and gives results that are static but for their first dim."""
    try:
        results = op.infer_types(*operands, **attrs)
    except (InfernumError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        return False
    return all(isinstance(dim, int) for type_ in results for dim in type_.shape[1:])
