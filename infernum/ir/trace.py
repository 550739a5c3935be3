"""A graph under construction: each call of an op on its tensors adds a node, with the line of Python that made it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infernum.dims import Dim
from infernum.dtypes import DType
from infernum.errors import InfernumError, ShapeError
from infernum.ir.graph import Input, Node, Operation, TensorType, Value

_PACKAGE = Path(__file__).resolve().parents[1]
_INTERNAL = tuple(str(_PACKAGE / part) for part in ("ir", "ops"))


class Trace:
    """A graph under construction, which each of `ranks` ranks runs.

    `typed` is False for patterns, whose values have no types.
    """

    def __init__(self, *, typed: bool = True, where: tuple[str, ...] | None = None, ranks: int = 1) -> None:
        self.typed = typed
        self.ranks = ranks
        self.where = where
        self.entries: dict[str, tuple[Node, tuple[Value, ...]]] = {}

    def input(self, name: str, role: Input, type_: TensorType | None) -> Tensor:
        """A graph input; asking twice for the same one gives the same value.

        Raises ShapeError for two different ones of one name.
        """
        if name not in self.entries:
            self.entries[name] = (Node(name, role, (type_,) if type_ else ()), ())
        node = self.entries[name][0]
        if node.op != role or (type_ and node.types != (type_,)):
            present = f"{node.op.name} {node.types[0]}" if node.types else node.op.name
            raise ShapeError(
                f"{caller()}: %{name} is a {present} already, and cannot be a {role.name} {type_} too"
            )
        return Tensor(self, Value(name))

    def add(
        self,
        op: Operation,
        infer_types: Callable[..., tuple[TensorType, ...]],
        operands: Sequence[Tensor],
        attrs: Mapping[str, Any],
    ) -> tuple[Tensor, ...]:
        """Add a call of `op`; its results. `infer_types` gives their types (as `Op.infer_types`).

        Raises ShapeError or DTypeError with the DSL line in front.
        """
        where = self.where if self.where is not None else (caller(),)
        types: tuple[TensorType, ...] = ()
        if self.typed:
            try:
                types = infer_types(*(o.type for o in operands), **attrs)
            except InfernumError as error:
                raise type(error)(f"{', '.join(where)}: {error}") from error
        node = Node(self.fresh(op.name), op, types, dict(attrs), where)
        self.entries[node.name] = (node, tuple(o.value for o in operands))
        return tuple(Tensor(self, Value(node.name, i)) for i in range(len(op.results)))

    def fresh(self, stem: str) -> str:
        count = 1
        while f"{stem}_{count}" in self.entries:
            count += 1
        return f"{stem}_{count}"


@dataclass(frozen=True)
class Tensor:
    """A value of a block being traced: what the functions of the DSL take and return."""

    trace: Trace
    value: Value

    @property
    def type(self) -> TensorType:
        return self.trace.entries[self.value.node][0].types[self.value.index]

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


def caller() -> str:
    """`file:line` of the innermost frame outside the ir and ops packages: the user's line of a block."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{shown_path(frame.f_code.co_filename)}:{frame.f_lineno}"


def shown_path(file: str) -> str:
    """A file as errors and origins name it: by its path within the package, elsewhere by its name."""
    path = Path(file)
    return (path.relative_to(_PACKAGE) if path.is_relative_to(_PACKAGE) else Path(path.name)).as_posix()
