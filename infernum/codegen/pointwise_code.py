"""Pointwise ops as C: the code of a template's prologue or epilogue, or of a kernel of pointwise ops only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infernum.codegen.places import Operand, Place
from infernum.dtypes import F32
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.kernel import Pointwise
from infernum.ir.op import Op


@dataclass(frozen=True)
class Load:
    """A value read from memory: one per element, or a vector that is the same for each row."""

    name: str
    operand: Operand
    vector: bool


@dataclass(frozen=True)
class Statement:
    """`const float name = expr;` with the op and the line it came from."""

    name: str
    expr: str
    comment: str


@dataclass(frozen=True)
class Store:
    """The float `name` written to an operand."""

    name: str
    operand: Operand


@dataclass(frozen=True)
class PointwiseCode:
    """Pointwise code over one element: loads, then statements, then stores. All values are floats."""

    loads: tuple[Load, ...]
    statements: tuple[Statement, ...]
    stores: tuple[Store, ...]
    names: Mapping[Value, str]

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Operands that the code reads and writes, inputs first."""
        return (*(load.operand for load in self.loads), *(store.operand for store in self.stores))


def literal(value: float) -> str:
    """A number as a float constant of CUDA. Infinity and NaN have none, and their names are macros of a header."""
    number = float(value)
    if math.isnan(number):
        return "__int_as_float(0x7fc00000)"
    if abs(number) > float(np.finfo(np.float32).max):
        return f"__int_as_float({'0x7f800000' if number > 0 else '0xff800000'})"
    return f"{number!r}f"


def pointwise_code(
    body: Graph,
    nodes: Sequence[Node],
    bound: Mapping[Value, str],
    inputs: Mapping[Value, Place],
    outputs: Sequence[tuple[Value, Operand]],
    identifiers: Mapping[str, str],
    consumed: frozenset[Value] = frozenset(),
) -> PointwiseCode:
    """The code of pointwise `nodes` of a kernel's body.

    `bound` names values the template has computed, `inputs` are the body's inputs in memory, `outputs` what is stored,
    `identifiers` what the nodes are called in C, and `consumed` the values that the template goes on to use. A value
    that anything reads is rounded to its type first, as it would be between separate kernels.
    """
    names = dict(bound)
    loads: list[Load] = []
    read = [v for node in nodes for v in body.operands(node.name)] + [v for v, _ in outputs]
    for value in dict.fromkeys(read):
        if value in inputs and value not in names:
            place = inputs[value]
            operand = Operand(identifiers[value.node], place, const=True)
            names[value] = f"{operand.name}_value"
            loads.append(Load(names[value], operand, len(place.type.shape) == 1))
    used = consumed | {v for node in nodes for v in body.operands(node.name)}
    statements: list[Statement] = []
    for node in nodes:
        assert isinstance(node.op, Op) and isinstance(node.op.lowering, Pointwise), (
            f"{node.name} is not pointwise"
        )
        value = Value(node.name)
        arguments = {p: names[v] for p, v in zip(node.op.params, body.operands(node.name), strict=True)}
        arguments |= {name: literal(v) for name, v in node.attrs.items() if isinstance(v, int | float)}
        expr = node.op.lowering.expr.format(**arguments)
        dtype = node.types[0].dtype
        if value in used and dtype is not F32:
            expr = f"round_to<{dtype.cuda}>({expr})"
        names[value] = identifiers[node.name]
        statements.append(Statement(names[value], expr, ", ".join(node.where)))
    stores = tuple(Store(names[value], operand) for value, operand in outputs)
    return PointwiseCode(tuple(loads), tuple(statements), stores, names)
