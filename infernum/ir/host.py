"""The host of a node: the op whose kernel computes the node, and the other ops that this kernel absorbs.

A host is a product, a norm, or a fusion with its own kernels. Its kernel computes row ops in front of an operand while
it reads the operand, and pointwise ops behind the result before it writes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import (
    Call,
    Choice,
    Epilogue,
    KernelSpec,
    Library,
    Pointwise,
    Refusal,
    RowCall,
    Target,
    Template,
    View,
    choose,
)
from infernum.ir.match import why_not_replaceable
from infernum.ir.op import Fused, Op


@dataclass(frozen=True)
class Hosted:
    """The body of a node taken apart.

    body      all ops that the kernel computes
    alone     the host's call without absorbed ops, which decides which kernel computes it
    call      the host's call with absorbed ops, which decides the layout
    kernels   kernels of the host, in order of preference
    nodes     nodes of the body that belong to the host itself
    operands  values of the body that the host reads, by parameter, in front of row ops
    rows      row ops by operand, in the order of computation
    before    pointwise ops whose result the host reads
    after     pointwise ops, and slices of columns, that read the host's result
    """

    body: Graph
    alone: Call
    call: Call
    kernels: tuple[KernelSpec, ...]
    nodes: tuple[Node, ...]
    operands: Mapping[str, Value]
    rows: Mapping[str, tuple[Node, ...]]
    before: tuple[Node, ...] = ()
    after: tuple[Node, ...] = ()

    def chosen(self, target: Target) -> Choice | Refusal:
        """The kernel that computes the host."""
        return choose(self.kernels, self.alone, target)


def is_pointwise(node: Node) -> bool:
    """True for an op that works element by element."""
    return isinstance(node.op, Op) and isinstance(node.op.lowering, Pointwise)


def is_free(node: Node) -> bool:
    """True for a view, which needs no kernel."""
    return isinstance(node.op, Op) and isinstance(node.op.lowering, View)


def columns_of(node: Node, operand: TensorType) -> tuple[int, int] | None:
    """First and last column, exclusive, of a slice of columns; None for anything else."""
    op = node.op
    if not isinstance(op, Op) or not isinstance(op.lowering, View) or op.lowering.columns is None:
        return None
    return op.lowering.columns(op.call([operand], node.types, node.attrs))


def body_of(graph: Graph, node: Node) -> Graph:
    """The body of a fused node; for a primitive node, a graph of the node alone."""
    op = node.op
    if isinstance(op, Fused):
        return op.body
    operands = graph.operands(node.name)
    names: list[str] = []
    for value in operands:
        name = value.node if value.index == 0 else f"{value.node}_r{value.index}"
        while name in names:
            name += "_"
        names.append(name)
    inputs = [(Node(n, Input("stream"), (graph.type(v),)), ()) for n, v in zip(names, operands, strict=True)]
    own = Node(node.name, op, node.types, node.attrs, node.where)
    outputs = [Value(node.name, i) for i in range(len(node.types))]
    return Graph.build(node.name, [*inputs, (own, [Value(n) for n in names])], outputs)


def hosted(graph: Graph, node: Node) -> Hosted | None:
    """A node taken apart into host and absorbed ops; None if no single op can host it."""
    return _hosted(graph, node.name)


@lru_cache(maxsize=256)
def _hosted(graph: Graph, name: str) -> Hosted | None:
    node = graph.node(name)
    op = node.op
    if isinstance(op, Input) or is_free(node) or is_pointwise(node):
        return None
    body = body_of(graph, node)
    if isinstance(op, Fused) and op.kernels:
        return _with_own_kernels(node, op, body)
    return host_in(body)


def host_in(body: Graph) -> Hosted | None:
    """The body of a fusion without kernels of its own taken apart; None where no op hosts it."""
    heavy = [n for n in body.calls if not is_pointwise(n) and not is_free(n)]
    ancestors = {n.name: ancestors_of(body, n.name) for n in heavy}
    last = [n for n in heavy if not any(n.name in ancestors[other.name] for other in heavy)]
    if len(last) != 1:
        return None
    host = last[0]
    op = host.op
    assert isinstance(op, Op), "bodies hold primitive ops"
    if not isinstance(op.lowering, tuple):
        return None
    values = dict(zip(op.params, body.operands(host.name), strict=True)) if not op.variadic else {}
    rows: dict[str, tuple[Node, ...]] = {}
    for param, value in values.items():
        rows[param], values[param] = _row_ops(body, value)
    alone = op.call([body.type(v) for v in body.operands(host.name)], host.types, host.attrs)
    absorbed = {n.name for slot in rows.values() for n in slot}
    before = tuple(n for n in body.calls if n.name in ancestors[host.name] - absorbed)
    after = tuple(n for n in body.calls if n is not host and n.name not in ancestors[host.name])
    if any(not is_pointwise(n) for n in before):
        return None
    in_front = {n.name for n in before}
    if any(value.node in in_front for n in after for value in body.operands(n.name)):
        return None
    names = {param: value.node for param, value in values.items() if body.node(value.node).is_input}
    prologues = {p: tuple(_row_call(body, n, names) for n in slot) for p, slot in rows.items() if slot}
    epilogue = _epilogue(body, host, after) if after else None
    call = replace(alone, prologues=prologues, epilogue=epilogue)
    return Hosted(body, alone, call, op.lowering, (host,), values, rows, before, after)


def _with_own_kernels(node: Node, op: Fused, body: Graph) -> Hosted:
    operands = {p: body.type(Value(p)) for p in op.kernel_operands}
    alone = Call(op.name, operands, dict(zip(op.results, node.types, strict=True)), node.attrs)
    rows = {p: tuple(body.node(name) for name in names) for p, names in op.row_ops.items()}
    absorbed = {n.name for slot in rows.values() for n in slot}
    names = {p: p for p in op.kernel_operands}
    prologues = {p: tuple(_row_call(body, n, names) for n in slot) for p, slot in rows.items() if slot}
    own = tuple(n for n in body.calls if n.name not in absorbed)
    call = replace(alone, prologues=prologues)
    return Hosted(body, alone, call, op.kernels, own, {p: Value(p) for p in op.kernel_operands}, rows)


def _row_ops(body: Graph, value: Value) -> tuple[tuple[Node, ...], Value]:
    """The row ops that a value is the result of, in the order they are computed, and what the first of them reads."""
    rows: tuple[Node, ...] = ()
    while is_row_op(body.node(value.node)):
        rows = (body.node(value.node), *rows)
        value = body.operands(value.node)[0]
    return rows, value


def is_row_op(node: Node) -> bool:
    """True for an op over rows that a kernel may compute while it reads its result."""
    return isinstance(node.op, Op) and node.op.prologue is not None


def _row_call(body: Graph, node: Node, names: Mapping[str, str]) -> RowCall:
    op = node.op
    assert isinstance(op, Op) and op.prologue is not None, f"{node.name} is no row op"
    params = {input_: param for param, input_ in names.items()}
    read = dict(zip(op.params[1:], body.operands(node.name)[1:], strict=True))
    operands = {p: params.get(v.node, f"%{v.node}") for p, v in read.items()}
    return RowCall(op.name, op.prologue, operands, node.attrs)


def _epilogue(body: Graph, host: Node, after: Sequence[Node]) -> Epilogue:
    starts = {n.attrs["start"] for n in after if is_free(n)}
    inner = {n.name for n in after} | {host.name}
    reads = dict.fromkeys(v for n in after for v in body.operands(n.name) if v.node not in inner)
    ops = tuple(n.op.name for n in after if not is_free(n))
    return Epilogue(ops, max(1, len(starts)), tuple(map(body.type, reads)), body.type(body.outputs[-1]))


@dataclass(frozen=True)
class Region:
    """Pointwise ops behind a host's result.

    names      the nodes, the host among them
    output     the result of the last one
    obstacle   what forbids every kernel to compute it; None: nothing
    """

    names: frozenset[str]
    output: Value
    obstacle: str | None


def regions(graph: Graph, node: Node) -> list[Region]:
    """The regions behind a host, the smallest first. The columns of a bare product may be combined in them."""
    host = hosted(graph, node)
    if host is None or len(node.types) != 1:
        return []
    above = {node.name: frozenset((node.name,))}
    behind: list[Region] = []
    for each in graph.calls[graph.calls.index(node) + 1 :]:
        read = graph.operands(each.name)
        inside = [v.node for v in read if v.node in above]
        sliced = (
            not host.after and read == (Value(node.name),) and columns_of(each, node.types[0]) is not None
        )
        if inside and (sliced or is_pointwise(each)):
            names = above[each.name] = frozenset((each.name,)).union(*(above[name] for name in inside))
            if not sliced:
                output = Value(each.name)
                behind.append(Region(names, output, _obstacle(graph, node, names, output)))
    return behind


def _obstacle(graph: Graph, host: Node, names: frozenset[str], output: Value) -> str | None:
    """What forbids every kernel to compute a region: a value that is read elsewhere, or columns of unequal parts."""
    read = frozenset(v for n in names for v in graph.operands(n) if v.node not in names)
    reason = why_not_replaceable(graph, names, frozenset((output,)), read)
    ranges = sorted({c for n in names if (c := columns_of(graph.node(n), host.types[0]))})
    if reason or not ranges:
        return reason
    width, count = host.types[0].width, len(ranges)
    if width % count == 0 and ranges == [
        (i * width // count, (i + 1) * width // count) for i in range(count)
    ]:
        return None
    shown = ", ".join(f"{start}:{stop}" for start, stop in ranges)
    return f"columns {shown} of {host.name} are not equal parts of its {width}"


def kernel_of(graph: Graph, node: Node, target: Target) -> KernelSpec | None:
    """The kernel that was chosen for the op that hosts a node; None where there is none."""
    host = hosted(graph, node)
    choice = host.chosen(target) if host else None
    return choice.kernel if isinstance(choice, Choice) else None


def has_epilogue(graph: Graph, node: Node, target: Target) -> bool:
    """True where a node's kernel may compute pointwise ops before it writes."""
    if isinstance(node.op, Op) and not _any_epilogue(node.op):
        return False
    kernel = kernel_of(graph, node, target)
    return isinstance(kernel, Library) or (kernel is not None and kernel.epilogue)


def _any_epilogue(op: Op) -> bool:
    return isinstance(op.lowering, tuple) and any(isinstance(k, Library) or k.epilogue for k in op.lowering)


def has_slot(graph: Graph, node: Node, row_op: Node, target: Target) -> bool:
    """True where a node's kernel may compute a row op while it reads, or is the library, which says why it does not."""
    kernel, op = kernel_of(graph, node, target), row_op.op
    if not isinstance(kernel, Template) or not isinstance(op, Op) or op.prologue is None:
        return isinstance(kernel, Library)
    return any(op.prologue.kind in kinds for kinds in kernel.row_ops.values())


def why_not_planned(graph: Graph, name: str, target: Target) -> str | None:
    """Why the kernel chosen for a node's host cannot compute what the node has absorbed."""
    host = hosted(graph, graph.node(name))
    choice = host.chosen(target) if host else None
    if host is None or not isinstance(choice, Choice):
        return f"{name} reads it too, and cannot compute it for itself"
    layout = choice.kernel.plan(host.call, target)
    return (
        f"{name} is computed by {choice.kernel.name}: {layout.reason}"
        if isinstance(layout, Refusal)
        else None
    )


def is_pointwise_kernel(node: Node) -> bool:
    """True for a pointwise op and for a fusion of nothing but pointwise ops."""
    if isinstance(node.op, Fused):
        return not node.op.kernels and all(map(is_pointwise, node.op.body.calls))
    return is_pointwise(node)


def ancestors_of(body: Graph, name: str) -> set[str]:
    """The nodes that a node is computed from."""
    ancestors: set[str] = set()
    todo = [name]
    while todo:
        for value in body.operands(todo.pop()):
            if value.node not in ancestors:
                ancestors.add(value.node)
                todo.append(value.node)
    return ancestors
