"""Plans one node: which kernel computes it, with which operands, constants and grid.

A node is planned in one of three ways: a library product, a template that knows its op's operands by name, or a
template with slots that pointwise neighbours fill.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infernum.codegen.costs import bytes_moved, flops, partly_moved_by
from infernum.codegen.identifiers import identifiers
from infernum.codegen.places import Operand, Place
from infernum.codegen.pointwise_code import literal, pointwise_code
from infernum.codegen.steps import KernelStep, ProductStep
from infernum.dims import SYMBOLS, evaluate
from infernum.dtypes import F32
from infernum.dtypes import dtype as dtype_named
from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.host import Hosted, body_of, hosted, is_free, is_pointwise
from infernum.ir.kernel import (
    Call,
    Formula,
    Layout,
    Library,
    Pointwise,
    Refusal,
    Target,
    Template,
    alternatives,
    one_layout,
)
from infernum.ir.op import Op
from infernum.ir.parameters import ParameterSpace, settle
from infernum.manifest import Gemm, Pointer


def _pointwise_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    del target
    result = next(iter(call.results.values()))
    widest = max(t.dtype.bytes for t in (*call.operands.values(), *call.results.values()))
    vector = next(v for v in (8, 4, 2, 1) if v * widest <= 16 and result.width % v == 0)
    for values in alternatives(THREADS=(256, 128, 512)):
        yield Layout({"WIDTH": result.width, "VECTOR": vector}, values)


POINTWISE = Template(
    "pointwise",
    layouts=_pointwise_layouts,
    grid=("ceildiv(tokens * CHUNKS, THREADS)", 1, 1),
    threads="THREADS",
    includes=("numeric.cuh", "programmatic.cuh"),
)
"""The kernel of every chain and DAG of pointwise ops."""


class NodePlanner:
    """Plans one node: its body (one op, or several fused) and the kernel of the op that hosts the others."""

    def __init__(
        self, graph: Graph, target: Target, places: Mapping[Value, Place], node: Node, names_in_use: set[str]
    ) -> None:
        self.graph, self.target, self.node, self.names_in_use = graph, target, node, set(names_in_use)
        self.workspaces: dict[str, tuple[TensorType, str]] = {}
        self.passed_over: tuple[str, ...] = ()
        self.parameters: ParameterSpace | None = None
        self.body = body_of(graph, node)
        outer = graph.operands(node.name)
        self.inputs = {Value(n.name): places[v] for n, v in zip(self.body.inputs, outer, strict=True)}
        self.results = [places[Value(node.name, i)] for i in range(len(node.types))]
        self.outputs = list(zip(self.body.outputs, self.results, strict=True))

    def steps(self) -> list[KernelStep | ProductStep]:
        """The node's kernels in launch order. Raises CompileError naming its DSL line when it has none."""
        if all(is_pointwise(n) for n in self.body.calls):
            return [self._pointwise()]
        host = hosted(self.graph, self.node)
        if host is None:
            raise CompileError(
                f"{self._where()}: {self.node.op.name} cannot be compiled: no op of it has a kernel"
            )
        choice = host.chosen(self.target)
        if isinstance(choice, Refusal):
            raise CompileError(
                f"{self._where()}: {host.alone.op} cannot be compiled for {self.target.variant}: {choice.reason}"
            )
        self.passed_over = choice.passed_over
        if isinstance(choice.kernel, Library):
            return [self._product(host)]
        if choice.kernel.epilogue or choice.kernel.pointwise_operand:
            return [self._with_slots(choice.kernel, host)]
        return self._by_name(choice.kernel, host)

    def _where(self) -> str:
        return ", ".join(self.node.where)

    # A template that knows its operands by the op's parameter names.

    def _by_name(self, kernel: Template, host: Hosted) -> list[KernelStep | ProductStep]:
        op, call = self.node.op, host.call
        assert not isinstance(op, Input), f"{self.node.name} is an input"
        written = {op.params[slot] for slot in op.in_place.values()}
        operands = [
            Operand(param, self.inputs[value], const=param not in written)
            for param, value in host.operands.items()
        ]
        outs = [
            Operand(r, place, const=False)
            for i, (r, place) in enumerate(zip(call.results, self.results, strict=True))
            if i not in op.in_place
        ]
        names = self._identifiers(kernel, [*call.results, *(w.name for w in kernel.workspaces)])
        prologues, row_op_operands = self._prologues(host, kernel, names)
        constants = self._settled(kernel, call)
        self._check_accesses(constants, [*operands, *outs])
        steps: list[KernelStep | ProductStep] = []
        scratch: list[Operand] = []
        counted: list[Operand] = []
        spec: Template | None = kernel
        while spec is not None:
            if spec is not kernel and spec.layouts is not one_layout:
                constants = self._settled(spec, call)
            scratch += [self._workspace(w.name, w.shape, w.dtype, constants) for w in spec.workspaces]
            everything = (*operands, *outs, *scratch)
            context = {o.name: o for o in everything} | prologues | dict(call.attrs) | constants
            arguments = [o for o in everything if not spec.arguments or o.name in spec.arguments]
            arguments += row_op_operands if spec is kernel else []
            steps.append(self._kernel(spec, arguments, context, constants, call, counted=counted))
            counted += arguments
            spec = spec.next_kernel
        return steps

    def _identifiers(self, kernel: Template, parameters: Sequence[str] = ()) -> Mapping[str, str]:
        """C identifiers of the body's nodes in a kernel's code; none of them is one of `parameters`."""
        code = [*kernel.symbols, *parameters]
        for op in (n.op for n in self.body.calls):
            assert isinstance(op, Op), "bodies hold primitive ops"
            code += [op.lowering.expr] if isinstance(op.lowering, Pointwise) else []
            code += [op.prologue.struct] if op.prologue else []
        return identifiers(kernel.name, self.target.arch, (n.name for n in self.body.nodes), code)

    def _prologues(
        self, host: Hosted, kernel: Template, names: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[Operand]]:
        """A template's context of the row ops it computes, as `OPERAND_KIND`, and the operands that only row ops read.

        The value of a kind that the template could compute, and that is absent from this body, is None.
        """
        row_ops: dict[str, Any] = {
            f"{o}_{kind}": None for o, kinds in kernel.row_ops.items() for kind in kinds
        }
        row_op_operands: list[Operand] = []
        for operand, rows in host.rows.items():
            for node in rows:
                op = node.op
                assert isinstance(op, Op) and op.prologue is not None, f"{node.name} is no row op"
                params = zip(op.params[1:], host.body.operands(node.name)[1:], strict=True)
                read = {
                    param: Operand(names[v.node], self.inputs[v], const=True)
                    for param, v in params
                    if v not in host.operands.values()
                }
                row_op_operands += [o for o in read.values() if o not in row_op_operands]
                row_ops[f"{operand}_{op.prologue.kind}"] = {
                    "struct": op.prologue.struct,
                    "arguments": ", ".join(
                        literal(v) for v in node.attrs.values() if isinstance(v, int | float)
                    ),
                    "attrs": node.attrs,
                    "operands": read,
                    "gain": next(iter(read.values()), None),
                    "comment": ", ".join(node.where),
                }
        return row_ops, row_op_operands

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

    def _with_slots(self, kernel: Template, host: Hosted) -> KernelStep:
        """The step of a template that computes absorbed ops while it reads rows and before it writes its result."""
        (node,), call = host.nodes, host.call
        slot = kernel.pointwise_operand or next(iter(kernel.row_ops or host.operands))
        names = self._identifiers(kernel)
        context, row_op_operands = self._prologues(host, kernel, names)
        constants = self._settled(kernel, call)
        context |= dict(call.attrs) | constants
        fixed = {param: value for param, value in host.operands.items() if param != slot}
        read = [Operand(names[v.node], self.inputs[v], const=True) for v in fixed.values()]
        context |= dict(zip(fixed, read, strict=True))
        read += row_op_operands
        source = host.operands[slot]
        inside = {n.name for n in host.before}
        prologue = pointwise_code(
            self.body,
            host.before,
            {},
            self.inputs,
            self._stores([(v, p) for v, p in self.outputs if v.node in inside]),
            names,
            frozenset((source,)),
        )
        rows = [Operand(names[source.node], self.inputs[source], const=True)] if source in self.inputs else []
        read += rows
        context[slot] = rows[0] if rows else None
        context["prologue"], context["prologue_result"] = prologue, prologue.names.get(source)
        context["VECTOR"] = constants["VECTOR"] = _vector(constants["VECTOR"], [*rows, *prologue.operands])
        parts, bound = self._parts(node, host.after)
        code = [n for n in host.after if is_pointwise(n)]
        written = [(v, p) for v, p in self.outputs if v.node not in inside]
        context["epilogue"] = epilogue = pointwise_code(
            self.body, code, bound, self.inputs, self._stores(written), names
        )
        context["EPILOGUE_VECTOR"] = _vector(4, epilogue.operands)
        context["parts"] = parts
        context["round_parts"] = bool(code) and node.types[0].dtype is not F32
        context["out_dtype"] = node.types[0].dtype.cuda
        op = node.op
        assert isinstance(op, Op), "a host is a primitive op"
        if op.prologue is not None:
            context["norm"] = {
                "struct": op.prologue.struct,
                "arguments": ", ".join(literal(v) for v in node.attrs.values() if isinstance(v, int | float)),
            }
        everything = _unique([*read, *prologue.operands, *epilogue.operands])
        stem = self._name_with_weight(op.name if kernel.pointwise_operand else kernel.name, node)
        stem = "_".join([*(n.op.name for n in host.before), stem])
        return self._kernel(kernel, everything, context, constants, call, self._fresh(stem))

    def _parts(self, host: Node, after: Sequence[Node]) -> tuple[list[int], dict[Value, str]]:
        """First columns of the ranges of the host's result that are combined, and what their values are called."""
        slices = {Value(host.name): 0} | {Value(n.name): int(n.attrs["start"]) for n in after if is_free(n)}
        starts = sorted(set(slices.values()))
        return starts, {value: f"part_{starts.index(start)}" for value, start in slices.items()}

    def _stores(self, outputs: Sequence[tuple[Value, Place]]) -> list[tuple[Value, Operand]]:
        single = len(self.outputs) == 1
        return [
            (v, Operand("out" if single else f"out_{v.node}", place, const=False)) for v, place in outputs
        ]

    def _pointwise(self) -> KernelStep:
        names = self._identifiers(POINTWISE)
        slot = pointwise_code(self.body, self.body.calls, {}, self.inputs, self._stores(self.outputs), names)
        result = self.node.types[0]
        if len(result.shape) < 2:
            raise CompileError(
                f"{self._where()}: {self.node.op.name} gives {result}; kernels compute rows, not vectors"
            )
        types = {o.name: o.place.type for o in slot.operands}
        first = next(o for o in slot.operands if o.place.type.shape == result.shape)
        call = Call(self.node.op.name, {first.name: first.place.type, **types}, {"out": result}, {})
        constants = self._settled(POINTWISE, call)
        vector = _vector(constants["VECTOR"], slot.operands)
        constants |= {"VECTOR": vector, "CHUNKS": result.width // vector}
        stem = "_".join(n.op.name for n in self.body.calls)
        return self._kernel(
            POINTWISE, slot.operands, {"slot": slot, **constants}, constants, call, self._fresh(stem)
        )

    # A product left to the library.

    def _product(self, host: Hosted) -> ProductStep:
        x, weight = host.operands.values()
        bias = residual = None
        for node in filter(is_pointwise, host.after):
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
        gemm = Gemm(
            name=self._fresh(self._name_with_weight("gemm", host.nodes[0])),
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
        return ProductStep(self.node, gemm, moved, flops(self.body, lead), self.passed_over)

    # What all of them share.

    def _settled(self, kernel: Template, call: Call) -> dict[str, Any]:
        """The constants of a kernel's layout; sets `self.parameters` to the ones that may be tuned."""
        layout, self.parameters = settle(kernel, call, self.target, [n.op.name for n in self.body.calls])
        if isinstance(layout, Refusal):
            raise CompileError(
                f"{self._where()}: {kernel.name} cannot compute {self.node.name}: {layout.reason}"
            )
        return {**layout.constants, **layout.parameters}

    def _kernel(
        self,
        spec: Template,
        operands: Sequence[Operand],
        context: Mapping[str, Any],
        constants: Mapping[str, Any],
        call: Call,
        name: str | None = None,
        *,
        counted: Sequence[Operand] = (),
    ) -> KernelStep:
        """A step. Of several kernels of one node, the first one is counted the node's arithmetic.

        What a kernel moves are its operands without those that the kernels before it have `counted`. Workspaces cost
        nothing: how much of them is used, and that they are, is the kernels' own affair.
        """
        lead = _leading_symbol(call)
        if lead not in SYMBOLS and "tokens" in f"{spec.grid} {spec.symbols}":
            raise CompileError(
                f"{self._where()}: {self.node.op.name} has {lead} rows; the rows of a kernel are counted by a symbol, "
                f"one of {', '.join(SYMBOLS)}"
            )
        moved = [o.place for o in operands if o.place.tensor not in self.workspaces and o not in counted]
        formula = {key: self._formula(value, constants, lead) for key, value in _formulas(spec).items()}
        return KernelStep(
            name=name or self._fresh(spec.name),
            template=spec,
            includes=self._includes(spec, call),
            node=self.node,
            operands=tuple(operands),
            symbols=tuple((s, lead if s == "tokens" else s) for s in spec.symbols),
            context=context,
            grid=(formula["x"], formula["y"], formula["z"]),
            threads=evaluate(formula["threads"], {}),
            shared_bytes=evaluate(formula["shared"], {}),
            cluster=formula["cluster"],
            exchanged=formula["exchanged"],
            bytes=bytes_moved(moved, partly_moved_by(self.body, self.inputs, lead)),
            flops=0 if counted else flops(self.body, lead),
            passed_over=() if counted else self.passed_over,
            parameters=self.parameters,
        )

    def _includes(self, spec: Template, call: Call) -> tuple[str, ...]:
        """The headers of a kernel: its own, and behind them those of the row ops that it computes."""
        rows = [row.prologue.include for slot in call.prologues.values() for row in slot]
        host = (
            next((n.op for n in self.body.calls if n.op.name == call.op), None)
            if spec.pointwise_operand
            else None
        )
        own = [host.prologue.include] if isinstance(host, Op) and host.prologue else []
        return tuple(dict.fromkeys((*spec.includes, *rows, *own)))

    def _formula(self, formula: Formula, constants: Mapping[str, Any], lead: str = "tokens") -> Formula:
        if isinstance(formula, int):
            return formula
        text = re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda m: str(constants[m[0]]), formula)
        text = re.sub(r"\btokens\b", lead, text)
        return int(text) if text.isdigit() else text

    def _name_with_weight(self, template: str, host: Node) -> str:
        """A kernel's name: the template and the weights that the host reads."""
        weights = [
            v.node for v in self.body.operands(host.name) if v in self.inputs and self.inputs[v].weight
        ]
        return "_".join([template, *weights])

    def _fresh(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.names_in_use:
            count += 1
            name = f"{stem}_{count}"
        self.names_in_use.add(name)
        return name


def pointer(place: Place) -> Pointer:
    """A place as the manifest names it."""
    return Pointer(tensor=place.tensor, offset=place.offset * place.type.dtype.bytes)


def _vector(most: int, operands: Sequence[Operand]) -> int:
    """Elements in one access: `most`, a power of two, or what every row of every operand allows."""
    for operand in operands:
        step = int(operand.shape[0]) if len(operand.shape) == 1 else operand.stride
        while operand.place.offset % most or step % most:
            most //= 2
    return most


def _leading_symbol(call: Call) -> str:
    """What `tokens` means in a kernel's formulas: the first dim of an operand, tokens or rows if there are any."""
    leading = [t.shape[0] for t in call.operands.values() if t.shape and isinstance(t.shape[0], str)]
    return next((dim for dim in leading if dim in ("tokens", "rows")), leading[0] if leading else "tokens")


def _formulas(spec: Template) -> dict[str, Formula]:
    return {
        "x": spec.grid[0],
        "y": spec.grid[1],
        "z": spec.grid[2],
        "threads": spec.threads,
        "shared": spec.shared_bytes,
        "cluster": spec.cluster,
        "exchanged": spec.exchanged,
    }


def _dim(formula: Formula) -> int | str:
    """A dim as an int where no symbol is left in it."""
    if isinstance(formula, int):
        return formula
    return formula if any(symbol in formula for symbol in SYMBOLS) else evaluate(formula, {})


def _unique(operands: Sequence[Operand]) -> tuple[Operand, ...]:
    by_name: dict[str, Operand] = {}
    for operand in operands:
        same = by_name.setdefault(operand.name, operand)
        assert same.place == operand.place, f"two operands of one kernel are called {operand.name}"
    return tuple(by_name.values())
