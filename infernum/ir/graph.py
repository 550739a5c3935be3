"""The dataflow graph: a networkx MultiDiGraph whose nodes are op calls and whose edges are operand slots.

An edge from producer to consumer is keyed by the consumer's operand slot and carries the producer's result index,
so that a value is always (node, index). Graphs are values: passes return new ones and never change their input.

networkx is imported when the first graph is built: a file of a family declares blocks beside its configuration, and
reading a configuration, as running a bundle on a GPU does, builds no graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from infernum.dims import Dim
from infernum.dtypes import DType
from infernum.recipes import Recipe

if TYPE_CHECKING:
    import networkx as nx

Role = Literal["stream", "batch", "state", "weight"]
"""Kinds of graph inputs: a value that flows between blocks, an input of the step, the KV cache, a weight."""


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a value; a dim is an int or a symbol of `infernum.dims`."""

    shape: tuple[Dim, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def width(self) -> int:
        """Elements of one row: the product of every dim but the first. All of them are static."""
        count = 1
        for dim in self.shape[1:]:
            assert isinstance(dim, int), f"{self}: only the first dim of a tensor may be a symbol"
            count *= dim
        return count


@dataclass(frozen=True, order=True)
class Value:
    """One result of one node."""

    node: str
    index: int = 0

    def __str__(self) -> str:
        return f"%{self.node}" if self.index == 0 else f"%{self.node}.{self.index}"


@dataclass(frozen=True)
class Input:
    """A graph input. `recipe`, for weights only, names the tensors of the checkpoint and how they are combined."""

    role: Role
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        return self.role


class Operation(Protocol):
    """What a call computes: a primitive op or several fused ones (`Op` and `Fused` of `infernum.ir.op`)."""

    @property
    def name(self) -> str: ...

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the operands, by slot."""
        ...

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results, by index."""
        ...

    @property
    def in_place(self) -> Mapping[int, int]:
        """Results that take over the memory of an operand: index of the result -> slot of the operand."""
        ...

    def evaluate(
        self,
        operands: Sequence[np.ndarray],
        attrs: Mapping[str, Any],
        types: Sequence[TensorType],
        *,
        batched: bool = False,
    ) -> list[np.ndarray]:
        """The results in NumPy, each rounded to its type."""
        ...


@dataclass(frozen=True)
class Node:
    """A call of an op, or a graph input.

    types   types of the results
    where   lines of Python that the call comes from, as `file:line`
    origin  nodes of the traced graph whose work this node does; None: the node itself
    rules   rewrites that created the node
    """

    name: str
    op: Operation | Input
    types: tuple[TensorType, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    where: tuple[str, ...] = ()
    origin: tuple[str, ...] | None = None
    rules: tuple[str, ...] = ()

    @property
    def origins(self) -> tuple[str, ...]:
        """The nodes of the traced graph whose work this one does."""
        return (self.name,) if self.origin is None else self.origin

    @property
    def is_input(self) -> bool:
        return isinstance(self.op, Input)


class Graph:
    """An immutable dataflow graph. All data is in `nx`, a networkx graph; the properties below read it."""

    def __init__(self, name: str, data: nx.MultiDiGraph[str], outputs: Sequence[Value]) -> None:
        import networkx as nx

        self.name = name
        self.nx: nx.MultiDiGraph[str] = nx.freeze(data)
        self.outputs = tuple(outputs)

    @staticmethod
    def build(name: str, nodes: Iterable[tuple[Node, Sequence[Value]]], outputs: Sequence[Value]) -> Graph:
        """A graph of the given nodes with their operands. The order of `nodes` decides ties in printing."""
        import networkx as nx

        data: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for place, (node, operands) in enumerate(nodes):
            assert node.name not in data or "node" not in data.nodes[node.name], (
                f"{name}: two nodes named {node.name}"
            )
            data.add_node(node.name, node=node, place=place)
            for slot, operand in enumerate(operands):
                data.add_edge(operand.node, node.name, key=slot, result=operand.index)
        missing = [n for n, d in data.nodes(data=True) if "node" not in d]
        assert not missing, f"{name}: operands {missing} are not in the graph"
        graph = Graph(name, data, outputs)
        try:
            assert graph.order is not None
        except nx.NetworkXUnfeasible as error:
            raise AssertionError(f"{name}: the graph has a cycle") from error
        return graph

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Node names, operands before users; ties in the order of declaration."""
        import networkx as nx

        place = {n: d["place"] for n, d in self.nx.nodes(data=True)}
        return tuple(nx.lexicographical_topological_sort(self.nx, key=place.__getitem__))

    def node(self, name: str) -> Node:
        return self.nx.nodes[name]["node"]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in `order`."""
        return tuple(self.node(name) for name in self.order)

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """The graph's inputs, in order of declaration."""
        inputs = [n for n in self.nodes if n.is_input]
        return tuple(sorted(inputs, key=lambda n: self.nx.nodes[n.name]["place"]))

    @cached_property
    def calls(self) -> tuple[Node, ...]:
        """Every node that computes something."""
        return tuple(n for n in self.nodes if not n.is_input)

    def operands(self, name: str) -> tuple[Value, ...]:
        """The values that a node reads, by slot."""
        return self._operands[name]

    @cached_property
    def _operands(self) -> Mapping[str, tuple[Value, ...]]:
        read: dict[str, dict[int, Value]] = {name: {} for name in self.nx}
        for producer, user, slot, edge in self.nx.edges(keys=True, data=True):
            read[user][int(slot)] = Value(producer, edge["result"])
        return {name: tuple(slots[i] for i in sorted(slots)) for name, slots in read.items()}

    @cached_property
    def _users(self) -> Mapping[Value, tuple[tuple[str, int], ...]]:
        users: dict[Value, list[tuple[str, int]]] = {}
        for name in self.order:
            for slot, value in enumerate(self._operands[name]):
                users.setdefault(value, []).append((name, slot))
        return {value: tuple(reads) for value, reads in users.items()}

    @cached_property
    def rank(self) -> Mapping[str, int]:
        """Position of every node in `order`."""
        return {name: i for i, name in enumerate(self.order)}

    def calls_of(self, op: str) -> tuple[Node, ...]:
        """The calls of a primitive op, in order."""
        return self._by_op.get(op, ())

    @cached_property
    def _by_op(self) -> Mapping[str, tuple[Node, ...]]:
        calls: dict[str, list[Node]] = {}
        for node in self.calls:
            calls.setdefault(node.op.name, []).append(node)
        return {op: tuple(nodes) for op, nodes in calls.items()}

    def users(self, value: Value) -> tuple[tuple[str, int], ...]:
        """(node, slot) of every read of a value, in graph order."""
        return self._users.get(value, ())

    def readers(self, value: Value) -> tuple[Node, ...]:
        """The nodes that read a value, in graph order, each once."""
        return tuple(self.node(name) for name in dict.fromkeys(name for name, _ in self.users(value)))

    def is_weight(self, value: Value) -> bool:
        """True for a weight of the block."""
        op = self.node(value.node).op
        return isinstance(op, Input) and op.role == "weight"

    def type(self, value: Value) -> TensorType:
        return self.node(value.node).types[value.index]

    def is_output(self, value: Value) -> bool:
        return value in self.outputs

    def entries(self) -> list[tuple[Node, tuple[Value, ...]]]:
        """All nodes with their operands, as `build` takes them."""
        return [(node, self.operands(node.name)) for node in self.nodes]

    def fresh(self, stem: str, reserved: Iterable[str] = ()) -> str:
        """A node name not in use: `stem`, or `stem_2`, `stem_3` …"""
        in_use = set(self.nx.nodes) | set(reserved)
        if stem not in in_use:
            return stem
        return next(f"{stem}_{i}" for i in range(2, len(in_use) + 3) if f"{stem}_{i}" not in in_use)

    def fresh_call(self, op: str, reserved: Iterable[str] = ()) -> str:
        """A name for another call of `op`: `op_1`, `op_2` …"""
        in_use = set(self.nx.nodes) | set(reserved)
        return next(f"{op}_{i}" for i in range(1, len(in_use) + 2) if f"{op}_{i}" not in in_use)

    def replaced(
        self,
        removed: Iterable[str],
        added: Sequence[tuple[Node, Sequence[Value]]],
        values: Mapping[Value, Value],
    ) -> Graph:
        """This graph without `removed`, with `added`, and with every read of a key of `values` redirected.

        Added nodes take the place, in print order, of the first node removed; inputs and calls that nothing uses
        any more are dropped.
        """
        removed_names = set(removed)
        at = next((i for i, n in enumerate(self.nodes) if n.name in removed_names), len(self.nodes))
        redirected = [
            (node, tuple(values.get(v, v) for v in operands))
            for node, operands in self.entries()
            if node.name not in removed_names
        ]
        before = sum(1 for n in self.nodes[:at] if n.name not in removed_names)
        entries = [*redirected[:before], *((n, tuple(o)) for n, o in added), *redirected[before:]]
        outputs = [values.get(v, v) for v in self.outputs]
        return Graph.build(self.name, _live(entries, outputs), outputs)

    def live(self) -> Graph:
        """This graph without the calls and weights that no output depends on."""
        return Graph.build(self.name, _live(self.entries(), self.outputs), self.outputs)

    def renamed(self, name: str) -> Graph:
        return Graph(name, self.nx, self.outputs)


def _live(
    entries: Sequence[tuple[Node, Sequence[Value]]], outputs: Sequence[Value]
) -> list[tuple[Node, Sequence[Value]]]:
    """The entries that some output depends on; stream, batch and state inputs are always kept."""
    operands = {node.name: ops for node, ops in entries}
    needed: set[str] = set()
    todo = [v.node for v in outputs]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo.extend(v.node for v in operands[name])

    def is_live(node: Node) -> bool:
        return node.name in needed or (isinstance(node.op, Input) and node.op.role != "weight")

    return [(node, ops) for node, ops in entries if is_live(node)]
