"""The memory of each value of a graph: a tensor, an offset in it, and the distance between rows.

Views cost nothing because of this module: a slice of columns is the same tensor with another offset, and an in-place
result is the operand itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, TensorType, Value
from infernum.ir.kernel import LoadTime, View
from infernum.ir.op import Op


@dataclass(frozen=True)
class Place:
    """A value's memory: `offset` and `stride` (the distance between rows) count elements of `type`."""

    tensor: str
    type: TensorType
    offset: int = 0
    stride: int = 0
    weight: bool = False


@dataclass(frozen=True)
class Operand:
    """A place as a template sees it, under the C identifier `name`."""

    name: str
    place: Place
    const: bool

    @property
    def ctype(self) -> str:
        """CUDA type of an element."""
        return self.place.type.dtype.cuda

    @property
    def dtype(self) -> str:
        """Short name of the element type."""
        return self.place.type.dtype.name

    @property
    def shape(self) -> tuple[int | str, ...]:
        return self.place.type.shape

    @property
    def width(self) -> int:
        """Elements of one row."""
        return self.place.type.width

    @property
    def stride(self) -> int:
        """Elements between the starts of consecutive rows."""
        return self.place.stride

    @property
    def parameter(self) -> str:
        """The C declaration. Only weights are __restrict__: other reads must not move ahead of the wait."""
        if not self.const:
            return f"{self.ctype}* {self.name}"
        return (
            f"const {self.ctype}* __restrict__ {self.name}"
            if self.place.weight
            else f"const {self.ctype}* {self.name}"
        )


def places_of(graph: Graph) -> dict[Value, Place]:
    """The place of every value of a block's graph. Raises CompileError for weights stacked from computed values."""
    places: dict[Value, Place] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            type_ = node.types[0]
            places[Value(node.name)] = Place(node.name, type_, 0, _row(type_), node.op.role == "weight")
            continue
        operands = graph.operands(node.name)
        if isinstance(node.op, Op) and isinstance(node.op.lowering, LoadTime):
            raise CompileError(
                f"{', '.join(node.where)}: {node.op.name} stacks weights only, not computed values"
            )
        for index, type_ in enumerate(node.types):
            value = Value(node.name, index)
            if isinstance(node.op, Op) and isinstance(node.op.lowering, View):
                base = places[operands[0]]
                start = 0
                if node.op.lowering.columns is not None:
                    call = node.op.call([graph.type(v) for v in operands], node.types, node.attrs)
                    start = node.op.lowering.columns(call)[0]
                places[value] = Place(base.tensor, type_, base.offset + start, base.stride, base.weight)
            elif index in node.op.in_place:
                places[value] = places[operands[node.op.in_place[index]]]
            else:
                name = node.name if len(node.types) == 1 else f"{node.name}.{index}"
                places[value] = Place(name, type_, 0, _row(type_))
    return places


def _row(type_: TensorType) -> int:
    """Elements of a row; 0 where a symbol decides it, which kernels are then given (the page table's max_pages)."""
    return type_.width if all(isinstance(dim, int) for dim in type_.shape[1:]) else 0
