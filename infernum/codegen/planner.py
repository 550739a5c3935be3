"""Plans one node: which kernel computes it, with which operands, constants and grid.

A node is planned in one of three ways: a library product, a template that knows its op's operands by name, or a
template with slots that pointwise neighbours fill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infernum import bundle
from infernum.codegen.costs import bytes_moved, flops, touched_by
from infernum.codegen.places import Operand, Place, is_free
from infernum.codegen.slots import fill_slot, is_pointwise
from infernum.codegen.steps import Kernel, Product
from infernum.dims import SYMBOLS, evaluate
from infernum.dtypes import F32
from infernum.dtypes import dtype as dtype_named
from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import Call, Formula, Library, Target, Template, choose, chosen
from infernum.ir.op import Fused, Op
from infernum.ir.parameters import Parameters, settle


def _pointwise_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    del call, target
    return {"THREADS": (256, 128, 512)}


POINTWISE = Template(
    "pointwise",
    grid=("ceildiv(tokens * CHUNKS, THREADS)", 1, 1),
    block="THREADS",
    choices=_pointwise_choices,
    includes=("numeric.cuh", "programmatic.cuh"),
)
"""The kernel of every chain and DAG of pointwise ops."""


class NodePlanner:
    """Plans one node: its body (one op, or several fused) and the kernel of the op that hosts the others."""

    def __init__(
        self, graph: Graph, target: Target, places: Mapping[Value, Place], node: Node, taken: set[str]
    ) -> None:
        self.target, self.node, self.taken = target, node, set(taken)
        self.workspaces: dict[str, tuple[TensorType, str]] = {}
        self.passed_over: tuple[str, ...] = ()
        self.parameters: Parameters | None = None
        self.body = node.op.body if isinstance(node.op, Fused) else _alone(graph, node)
        outer = graph.operands(node.name)
        self.inputs = {Value(n.name): places[v] for n, v in zip(self.body.inputs, outer, strict=True)}
        self.results = [places[Value(node.name, i)] for i in range(len(node.types))]
        self.outputs = list(zip(self.body.outputs, self.results, strict=True))

    def steps(self) -> list[Kernel | Product]:
        """The node's kernels in launch order. Raises CompileError naming its DSL line when it has none."""
        op = self.node.op
        if isinstance(op, Fused) and op.kernels:
            return self._named(op.kernels, op.params, op.result_names, op.in_place, self._attrs(), op.name)
        if all(is_pointwise(n) for n in self.body.calls):
            return [self._pointwise()]
        host = self._host()
        op = host.op
        assert isinstance(op, Op) and isinstance(op.emit, tuple), f"{host.name} is not emitted by a kernel"
        types = [self.body.type(v) for v in self.body.operands(host.name)]
        call = op.call(types, host.types, host.attrs)
        choice = choose(op.emit, call, self.target)
        if isinstance(choice, str):
            raise CompileError(
                f"{', '.join(self.node.where)}: {op.name} cannot be compiled for {self.target.variant}: {choice}"
            )
        self.passed_over = choice.passed_over
        if isinstance(choice.kernel, Library):
            return [self._product(host)]
        if choice.kernel.prologue or choice.kernel.epilogue:
            return [self._with_slots(choice.kernel, host, call)]
        return self._named(op.emit, op.params, op.results, op.in_place, host.attrs, op.name, choice.kernel)

    # A template that knows its operands by the op's parameter names.

    def _named(
        self,
        kernels: Sequence[Any],
        params: Sequence[str],
        results: Sequence[str],
        in_place: Mapping[int, int],
        attrs: Mapping[str, Any],
        op: str,
        chosen: Template | None = None,
    ) -> list[Kernel | Product]:
        operand_types = {p: n.types[0] for p, n in zip(params, self.body.inputs, strict=True)}
        call = Call(op, operand_types, dict(zip(results, self.node.types, strict=True)), attrs)
        if chosen is None:
            choice = choose(tuple(kernels), call, self.target)
            if isinstance(choice, str) or isinstance(choice.kernel, Library):
                raise CompileError(f"{', '.join(self.node.where)}: {op} cannot be compiled: {choice}")
            chosen, self.passed_over = choice.kernel, choice.passed_over
        written = set(in_place.values())
        operands = [
            Operand(p, place, const=i not in written)
            for i, (p, place) in enumerate(zip(params, self.inputs.values(), strict=True))
        ]
        outs = [
            Operand(r, place, const=False)
            for i, (r, place) in enumerate(zip(results, self.results, strict=True))
            if i not in in_place
        ]
        made: list[Kernel | Product] = []
        target = self._settled(chosen, call)
        spec: Template | None = chosen
        scratch: list[Operand] = []
        while spec is not None:
            constants: dict[str, Any] = dict(spec.constants(call, target))
            self._check_accesses(constants, [*operands, *outs])
            scratch += [self._workspace(w.name, w.shape, w.dtype, constants) for w in spec.workspaces]
            everything = (*operands, *outs, *scratch)
            context = {o.name: o for o in everything} | dict(attrs) | constants
            taken = [o for o in everything if not spec.takes or o.name in spec.takes]
            made.append(self._kernel(spec, taken, context, constants, call, first=spec is chosen))
            spec = spec.then
        return made

    def _check_accesses(self, constants: Mapping[str, Any], operands: Sequence[Operand]) -> None:
        """Raise CompileError for a view whose rows do not begin where an access of VECTOR elements may."""
        vector = constants.get("VECTOR", 1)
        for operand in operands:
            place = operand.place
            if (
                place.type.dtype.is_float
                and len(operand.shape) > 1
                and (place.offset % vector or place.stride % vector)
            ):
                raise CompileError(
                    f"{', '.join(self.node.where)}: {operand.name} is a view of {place.tensor} from element "
                    f"{place.offset} on, rows {place.stride} apart; {self.node.op.name} reads {vector} elements at once"
                )

    def _workspace(
        self, name: str, shape: Sequence[Formula], dtype: str, constants: Mapping[str, Any]
    ) -> Operand:
        sizes = tuple(_dim(self._formula(dim, constants)) for dim in shape)
        type_ = TensorType(sizes, dtype_named(dtype))
        tensor = f"{self.node.name}.{name}"
        self.workspaces[tensor] = (type_, self.node.name)
        stride = 1
        for size in sizes[1:]:
            stride *= evaluate(size, {})
        return Operand(name, Place(tensor, type_, 0, stride), const=False)

    # A template with slots.

    def _with_slots(self, spec: Template, host: Node, call: Call) -> Kernel:
        constants: dict[str, Any] = dict(spec.constants(call, self._settled(spec, call)))
        op = host.op
        assert isinstance(op, Op) and spec.prologue is not None
        operands = dict(zip(op.params, self.body.operands(host.name), strict=True))
        before = [n for n in self.body.calls if n.name in _ancestors(self.body, host.name)]
        after = [n for n in self.body.calls if n is not host and n not in before]
        if after and not spec.epilogue:
            raise CompileError(
                f"{self.node.name}: the template {spec.name} has no epilogue for {after[0].op.name}"
            )
        context: dict[str, Any] = dict(host.attrs) | constants
        read: list[Operand] = []
        fixed = {p: v for p, v in operands.items() if p != spec.prologue}
        for param, value in fixed.items():
            operand = Operand(value.node, self.inputs[value], const=True)
            context[param] = operand
            read.append(operand)
        inner = [n for n in before if not is_pointwise(n)]
        context["norm"] = None
        source = operands[spec.prologue]
        if inner:
            norm = inner[0]
            assert len(inner) == 1 and before == inner, (
                f"{self.node.name}: a prologue holds one normalisation"
            )
            x, weight = self.body.operands(norm.name)
            gain = Operand(weight.node, self.inputs[weight], const=True)
            context["norm"] = {"eps": norm.attrs["eps"], "weight": gain, "comment": ", ".join(norm.where)}
            read.append(gain)
            source, before = x, []
        stored = [(v, p) for v, p in self.outputs if v.node in {n.name for n in before}]
        written = [(v, p) for v, p in self.outputs if v.node not in {n.name for n in before}]
        prologue = fill_slot(self.body, before, {}, self.inputs, self._stores(stored), frozenset((source,)))
        rows = [Operand(source.node, self.inputs[source], const=True)] if source in self.inputs else []
        context["x"] = rows[0] if rows else None
        read += rows
        context["VECTOR"] = constants["VECTOR"] = _vector(constants["VECTOR"], [*rows, *prologue.operands])
        context["prologue"] = prologue
        context["prologue_result"] = prologue.names.get(source)
        parts = self._parts(host, after)
        context["parts"] = parts
        bound = {value: f"part_{i}" for i, (value, _) in enumerate(parts)}
        code = [n for n in after if is_pointwise(n)]
        context["epilogue"] = epilogue = fill_slot(self.body, code, bound, self.inputs, self._stores(written))
        context["round_parts"] = bool(code) and host.types[0].dtype is not F32
        context["out_dtype"] = host.types[0].dtype.cuda
        context["COLUMNS"] = constants["COLUMNS"] = self.body.type(parts[0][0]).width
        everything = _unique([*read, *prologue.operands, *epilogue.operands])
        name = "_".join([*(n.op.name for n in before), self._name_with_weight(spec.name, host)])
        return self._kernel(spec, everything, context, constants, call, self._fresh(name))

    def _parts(self, host: Node, after: Sequence[Node]) -> list[tuple[Value, int]]:
        """The column ranges of the host's result that are combined element by element, each with its first column."""
        slices = [n for n in after if is_free(n)]
        if not slices:
            return [(Value(host.name), 0)]
        return sorted(((Value(n.name), int(n.attrs["start"])) for n in slices), key=lambda p: p[1])

    def _stores(self, outputs: Sequence[tuple[Value, Place]]) -> list[tuple[Value, Operand]]:
        single = len(self.outputs) == 1
        return [
            (v, Operand("out" if single else f"out_{v.node}", place, const=False)) for v, place in outputs
        ]

    def _pointwise(self) -> Kernel:
        slot = fill_slot(self.body, self.body.calls, {}, self.inputs, self._stores(self.outputs))
        if len(self.node.types[0].shape) < 2:
            raise CompileError(
                f"{', '.join(self.node.where)}: {self.node.op.name} gives {self.node.types[0]}; "
                "kernels compute rows, not vectors"
            )
        width = self.node.types[0].width
        widest = max(o.place.type.dtype.bytes for o in slot.operands)
        vector = _vector(next(v for v in (8, 4, 2, 1) if v * widest <= 16 and width % v == 0), slot.operands)
        types = {o.name: o.place.type for o in slot.operands}
        call = Call(self.node.op.name, types, {}, {})
        first = next(o for o in slot.operands if o.place.type.shape == self.node.types[0].shape)
        ordered = Call(call.op, {first.name: first.place.type, **types}, {}, {})
        values = chosen(_pointwise_choices, call, self._settled(POINTWISE, call))
        constants = {"WIDTH": width, "VECTOR": vector, "CHUNKS": width // vector, **values}
        name = "_".join(n.op.name for n in self.body.calls)
        return self._kernel(
            POINTWISE, slot.operands, {"slot": slot, **constants}, constants, ordered, self._fresh(name)
        )

    # A product left to the library.

    def _product(self, host: Node) -> Product:
        x, weight = self.body.operands(host.name)
        if x not in self.inputs:
            raise CompileError(f"{self.node.name}: a library product has no prologue")
        bias = residual = None
        for node in (n for n in self.body.calls if n is not host):
            operand = next(v for v in self.body.operands(node.name) if v in self.inputs)
            if len(self.inputs[operand].type.shape) == 1:
                assert bias is None, f"{self.node.name}: the library adds one bias"
                bias = self.inputs[operand]
            else:
                assert residual is None, f"{self.node.name}: the library adds one residual"
                residual = self.inputs[operand]
        out = self.results[0]
        place_x, place_w = self.inputs[x], self.inputs[weight]
        lead = str(out.type.shape[0])
        n, k = int(place_w.type.shape[0]), place_w.type.width
        gemm = bundle.Gemm(
            name=self._fresh(self._name_with_weight("gemm", host)),
            x=pointer(place_x),
            weight=pointer(place_w),
            out=pointer(out),
            m=lead,
            n=n,
            k=k,
            x_stride=place_x.stride,
            out_stride=out.stride,
            dtype=place_x.type.dtype.name,
            out_dtype=out.type.dtype.name,
            bias=pointer(bias) if bias else None,
            residual=pointer(residual) if residual else None,
            residual_stride=residual.stride if residual else 0,
        )
        moved = bytes_moved([*self.inputs.values(), *self.results], {})
        return Product(self.node, gemm, moved, flops(self.body, lead), self.passed_over)

    # What all of them share.

    def _settled(self, spec: Template, call: Call) -> Target:
        """The target with the values of the kernel's parameters, which are kept as `parameters`."""
        self.parameters = settle(spec, call, self.target, [n.op.name for n in self.body.calls])
        return replace(self.target, chosen=self.parameters.values) if self.parameters else self.target

    def _kernel(
        self,
        spec: Template,
        operands: Sequence[Operand],
        context: Mapping[str, Any],
        constants: Mapping[str, Any],
        call: Call,
        name: str | None = None,
        *,
        first: bool = True,
    ) -> Kernel:
        """A step. Of several kernels of one node, the `first` one is counted the node's arithmetic.

        Workspaces cost nothing: how much of them is used, and that they are, is the kernels' own affair.
        """
        lead = _leading_symbol(call)
        moved = [o.place for o in operands if o.place.tensor not in self.workspaces]
        formula = {key: self._formula(value, constants, lead) for key, value in _formulas(spec).items()}
        return Kernel(
            name=name or self._fresh(spec.name),
            template=spec,
            node=self.node,
            operands=tuple(operands),
            symbols=tuple((s, lead if s == "tokens" else s) for s in spec.symbols),
            context=context,
            grid=(formula["x"], formula["y"], formula["z"]),
            block=evaluate(formula["block"], {}),
            shared_bytes=evaluate(formula["shared"], {}),
            cluster=formula["cluster"],
            bytes=bytes_moved(moved, touched_by(self.body, self.inputs, lead)),
            flops=flops(self.body, lead) if first else 0,
            passed_over=self.passed_over if first else (),
            parameters=self.parameters,
        )

    def _formula(self, formula: Formula, constants: Mapping[str, Any], lead: str = "tokens") -> Formula:
        if isinstance(formula, int):
            return formula
        text = re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda m: str(constants[m[0]]), formula)
        text = re.sub(r"\btokens\b", lead, text)
        return int(text) if text.isdigit() else text

    def _attrs(self) -> dict[str, Any]:
        return {name: value for n in self.body.calls for name, value in n.attrs.items()}

    def _host(self) -> Node:
        hosts = [n for n in self.body.calls if not is_pointwise(n) and not is_free(n)]
        last = [h for h in hosts if not any(h.name in _ancestors(self.body, other.name) for other in hosts)]
        assert len(last) == 1, f"{self.node.name}: more than one op wants to host the kernel"
        return last[0]

    def _name_with_weight(self, template: str, host: Node) -> str:
        """The template's name, and which weight it works on."""
        weights = [
            v.node for v in self.body.operands(host.name) if v in self.inputs and self.inputs[v].weight
        ]
        return "_".join([template, *weights])

    def _fresh(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        self.taken.add(name)
        return name


def pointer(place: Place) -> bundle.Pointer:
    """A place as the manifest names it."""
    return bundle.Pointer(tensor=place.tensor, offset=place.offset * place.type.dtype.bytes)


def _alone(graph: Graph, node: Node) -> Graph:
    """The body of a primitive node: itself, over inputs named by its parameters."""
    op = node.op
    assert isinstance(op, Op)
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


def _ancestors(body: Graph, name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for value in body.operands(todo.pop()):
            if value.node not in found:
                found.add(value.node)
                todo.append(value.node)
    return found


def _vector(most: int, operands: Sequence[Operand]) -> int:
    """Elements in one access: `most`, a power of two, or what every row of every operand allows."""
    for operand in operands:
        step = int(operand.shape[0]) if len(operand.shape) == 1 else operand.stride
        while operand.place.offset % most or step % most:
            most //= 2
    return most


def _leading_symbol(call: Call) -> str:
    """What `tokens` means in a kernel's formulas: the first dim of its first operand, tokens or rows."""
    for type_ in call.operands.values():
        if type_.shape and type_.shape[0] in ("tokens", "rows"):
            return str(type_.shape[0])
    return "tokens"


def _formulas(spec: Template) -> dict[str, Formula]:
    return {
        "x": spec.grid[0],
        "y": spec.grid[1],
        "z": spec.grid[2],
        "block": spec.block,
        "shared": spec.shared_bytes,
        "cluster": spec.cluster,
    }


def _dim(formula: Formula) -> int | str:
    """A dim as an int where no symbol is left in it."""
    if isinstance(formula, int):
        return formula
    return formula if any(symbol in formula for symbol in SYMBOLS) else evaluate(formula, {})


def _unique(operands: Sequence[Operand]) -> tuple[Operand, ...]:
    found: dict[str, Operand] = {}
    for operand in operands:
        same = found.setdefault(operand.name, operand)
        assert same.place == operand.place, f"two operands of one kernel are called {operand.name}"
    return tuple(found.values())
