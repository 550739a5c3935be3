"""Bytes and FLOPs of a kernel, as formulas over symbols (`infernum.dims`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from infernum.codegen.places import Place
from infernum.ir.graph import Graph, Value
from infernum.ir.kernel import Formula
from infernum.ir.op import Op

Region = tuple[str, int]
"""Where a tensor or a slice of one begins: its name and the offset."""


def bytes_moved(places: Iterable[Place], partly_moved: Mapping[Region, str]) -> Formula:
    """Bytes that a kernel reads and writes: each place once in full, or as `partly_moved` gives them."""
    distinct = {(p.tensor, p.offset): p for p in places}
    return total(partly_moved.get(region) or _bytes(place) for region, place in distinct.items())


def partly_moved_by(body: Graph, places: Mapping[Value, Place], lead: str) -> dict[Region, str]:
    """Bytes moved of the operands that a body's ops do not move exactly once in full (`Op.moved_bytes`)."""
    moved: dict[Region, str] = {}
    for node in body.calls:
        assert isinstance(node.op, Op), "bodies hold primitive ops"
        operands = body.operands(node.name)
        call = node.op.call([body.type(v) for v in operands], node.types, node.attrs)
        values = dict(zip(call.operands, operands, strict=True))
        for param, formula in node.op.moved_bytes(call).items():
            place = places.get(_in_memory_of(body, values[param]))
            if place is not None:
                region = (place.tensor, place.offset)
                moved[region] = str(total(f for f in (moved.get(region), _led(formula, lead)) if f))
    return moved


def _in_memory_of(body: Graph, value: Value) -> Value:
    """The value whose memory this one has taken over: itself, unless an op of the body writes in place."""
    op = body.node(value.node).op
    while isinstance(op, Op) and value.index in op.in_place:
        value = body.operands(value.node)[op.in_place[value.index]]
        op = body.node(value.node).op
    return value


def flops(body: Graph, lead: str) -> Formula:
    """Floating-point operations of a kernel's body; `lead` is what `tokens` means in it."""
    terms: list[str] = []
    for node in body.calls:
        assert isinstance(node.op, Op), "bodies hold primitive ops"
        operands = [body.type(v) for v in body.operands(node.name)]
        terms.append(_led(node.op.flops(node.op.call(operands, node.types, node.attrs)), lead))
    return total(terms)


def total(formulas: Iterable[Formula]) -> Formula:
    """The sum of formulas; terms that are 0 are left out."""
    return " + ".join(str(f) for f in formulas if str(f) != "0") or 0


def _led(formula: Formula, lead: str) -> str:
    return re.sub(r"\btokens\b", lead, str(formula))


def _bytes(place: Place) -> str:
    dims = [f"({dim})" if isinstance(dim, str) else str(dim) for dim in place.type.shape]
    return " * ".join([*dims, str(place.type.dtype.bytes)])
