"""What a kernel must move and compute, as formulas over symbols."""

from __future__ import annotations

import re
from collections.abc import Iterable

from infernum.codegen.places import Place
from infernum.ir.graph import Graph
from infernum.ir.kernel import Formula
from infernum.ir.op import Op


def bytes_moved(places: Iterable[Place]) -> Formula:
    """Bytes of the tensors read and written, each once.

    The KV cache is left out: how much of it a step touches depends on the lengths of its sequences.
    """
    distinct = {(p.tensor, p.offset): p for p in places if "pages" not in p.type.shape}
    return " + ".join(_bytes(place) for place in distinct.values())


def _bytes(place: Place) -> str:
    dims = [f"({dim})" if isinstance(dim, str) else str(dim) for dim in place.type.shape]
    return " * ".join([*dims, str(place.type.dtype.bytes)])


def flops(body: Graph, lead: str) -> Formula:
    """Floating-point operations of a kernel's body; `lead` is what `tokens` means in it."""
    terms: list[str] = []
    for node in body.calls:
        assert isinstance(node.op, Op), "bodies hold primitive ops"
        operands = [body.type(v) for v in body.operands(node.name)]
        terms.append(str(node.op.flops(node.op.call(operands, node.types, node.attrs))))
    return re.sub(r"\btokens\b", lead, " + ".join(t for t in terms if t != "0")) or 0
