"""Ops: a NumPy function is the meaning, its signature the types, and a list of kernels how it is computed on a GPU.

    @op("tokens width, width -> tokens width", kernels=[...])
    def rms_norm(x, weight, *, eps): ...

In a signature, words are dims that must agree wherever they occur (integers stand for themselves), and a dtype name
before the dims fixes an operand's type; operands without one share one floating type with the results.
Positional parameters are operands, keyword-only ones are attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from infernum.dims import Dim
from infernum.dtypes import DTYPES, DType, round_to
from infernum.errors import DTypeError, ShapeError
from infernum.ir.graph import Graph, TensorType
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Call, Formula, KernelSpec, LoadTime, Pointwise, Prologue, View
from infernum.ir.trace import Tensor, caller

Array = np.ndarray
Infer = Callable[..., tuple[TensorType, ...]]
"""Result types from operand types (positional) and attributes (keyword). Raises ShapeError or DTypeError."""


@dataclass(frozen=True)
class Term:
    """One operand or result of a signature: its dims, and its dtype where the signature fixes it."""

    dims: tuple[str, ...]
    dtype: DType | None

    @staticmethod
    def parse(text: str) -> Term:
        words = text.split()
        fixed = DTYPES.get(words[0]) if words else None
        return Term(tuple(words[1:] if fixed else words), fixed)


@dataclass(frozen=True)
class Signature:
    """Operand and result types of an op, as in `"tokens width, width -> tokens width"`."""

    operands: tuple[Term, ...]
    results: tuple[Term, ...]

    @staticmethod
    def parse(text: str) -> Signature:
        left, _, right = text.partition("->")
        return Signature(tuple(map(Term.parse, left.split(","))), tuple(map(Term.parse, right.split(","))))

    def infer(self, op: str, params: Sequence[str], types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Result types for operands of the given types. Raises ShapeError or DTypeError naming the operand."""
        dims: dict[str, Dim] = {}
        shared: DType | None = None
        for param, term, type_ in zip(params, self.operands, types, strict=True):
            if len(type_.shape) != len(term.dims):
                raise ShapeError(f"{op}: {param} is {type_}, expected [{', '.join(term.dims)}]")
            for dim, size in zip(term.dims, type_.shape, strict=True):
                expected = int(dim) if dim.isdigit() else dims.setdefault(dim, size)
                if expected != size:
                    raise ShapeError(f"{op}: {param} is {type_}, but {dim} is {expected}")
            if term.dtype is not None and type_.dtype is not term.dtype:
                raise DTypeError(f"{op}: {param} is {type_}, expected {term.dtype}")
            if term.dtype is None:
                shared = shared or type_.dtype
                if type_.dtype is not shared or not type_.dtype.is_float:
                    raise DTypeError(
                        f"{op}: {param} is {type_}, expected a floating type equal to {shared}; use cast"
                    )
        results: list[TensorType] = []
        for term in self.results:
            result_dtype = term.dtype or shared
            assert result_dtype is not None, f"{op}: the dtype of a result cannot be told from its signature"
            results.append(
                TensorType(tuple(int(d) if d.isdigit() else dims[d] for d in term.dims), result_dtype)
            )
        return tuple(results)


@dataclass(frozen=True)
class Op:
    """One primitive operation. Calling it with traced tensors adds a node to their graph.

    meaning      the NumPy function that defines the op
    params       names of its operands, by slot
    results      names of its results, by index
    infer_types  result types from operand types and attributes
    lowering     how a GPU computes it: an expression, a view, work at load time, or kernels in order of preference
    attrs        names of its attributes, and `defaults` their default values
    variadic     True if it takes any number of operands
    commutative  True if its operands may be swapped
    batched      the same function, faster over many rows, where the bits of a row may depend on the other rows
    prologue     for ops over rows: how another kernel computes the op while it reads the op's result
    in_place     index of a result -> slot of the operand whose memory the result takes over
    flops        floating-point operations of a call, as a formula
    moved_bytes  bytes actually read or written, as formulas by operand, for operands that are not moved exactly once in
                 full (a cache, a gathered table)
    signature    operand and result types, where `@op` was given a signature
    collective   True if the meaning takes its operands of all ranks, stacked along a new first axis, whose length is
                 the attribute `ranks`; evaluated for a single rank, the others have the same values
    """

    name: str
    meaning: Callable[..., Any]
    params: tuple[str, ...]
    results: tuple[str, ...]
    infer_types: Infer
    lowering: Pointwise | View | LoadTime | tuple[KernelSpec, ...]
    attrs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    variadic: bool = False
    commutative: bool = False
    batched: Callable[..., Any] | None = None
    prologue: Prologue | None = None
    in_place: Mapping[int, int] = field(default_factory=dict[int, int])
    flops: Callable[[Call], Formula] = lambda call: 0
    moved_bytes: Callable[[Call], Mapping[str, Formula]] = lambda call: {}
    signature: Signature | None = None
    collective: bool = False

    @property
    def doc(self) -> str:
        """The first line of the op's documentation."""
        return (self.meaning.__doc__ or "").strip().split("\n")[0]

    def evaluate(
        self,
        operands: Sequence[Array],
        attrs: Mapping[str, Any],
        types: Sequence[TensorType],
        *,
        batched: bool = False,
    ) -> list[Array]:
        """The op's meaning on float32 (or integer) arrays, each result rounded to what its type can store.

        A result that takes over an operand's memory is that operand, whose other elements are rounded already.
        `batched`: by the function that is faster, if the op has one; for what is compared under a tolerance.
        """
        function = self.batched if batched and self.batched else self.meaning
        if self.collective:
            operands = [np.broadcast_to(each, (attrs["ranks"], *each.shape)) for each in operands]
        results = as_tuple(function(*operands, **attrs))
        return [
            r if i in self.in_place else round_to(np.asarray(r), t.dtype)
            for i, (r, t) in enumerate(zip(results, types, strict=True))
        ]

    def call(
        self, operands: Sequence[TensorType], results: Sequence[TensorType], attrs: Mapping[str, Any]
    ) -> Call:
        """This op applied to operands of the given types, as its kernels see it."""
        params = [f"{self.params[0]}{i}" for i in range(len(operands))] if self.variadic else self.params
        return Call(
            self.name,
            dict(zip(params, operands, strict=True)),
            dict(zip(self.results, results, strict=True)),
            attrs,
        )

    def __call__(self, *operands: Tensor, **attrs: Any) -> Any:
        """Add a call of this op to the graph that its operands belong to.

        Raises ShapeError or DTypeError at the DSL line.
        """
        problem = self._misuse(operands, attrs)
        if problem:
            raise ShapeError(f"{caller()}: {self.name} {problem}")
        settings = {a: _python(attrs.get(a, self.defaults.get(a))) for a in self.attrs}
        results = operands[0].trace.add(self, self.infer_types, operands, settings)
        return results if len(self.results) > 1 else results[0]

    def _misuse(self, operands: Sequence[object], attrs: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments of a call, types aside."""
        if not self.variadic and len(operands) != len(self.params):
            return f"takes {', '.join(self.params)}; {len(operands)} operands were given"
        wrong = [o for o in operands if not isinstance(o, Tensor)]
        if wrong or not operands:
            return f"takes tensors of a block, not {type(wrong[0]).__name__ if wrong else 'nothing'}"
        unknown = set(attrs) - set(self.attrs)
        if unknown:
            return f"has no attribute {', '.join(sorted(unknown))}; it has {', '.join(self.attrs) or 'none'}"
        missing = set(self.attrs) - set(attrs) - set(self.defaults)
        return f"needs the attribute {', '.join(sorted(missing))}" if missing else None


@dataclass(frozen=True)
class Fused:
    """Several primitive ops that one kernel computes.

    body             the ops as a graph, which is their meaning; its inputs, in order, are the operands of the node
    rules            the rules that made the fusion, in order
    kernels          kernels of the fusion itself; empty: a kernel of the body's host op computes the whole body
    result_names     names of the results in the templates of `kernels`
    kernel_operands  inputs of the body that the templates of `kernels` know by name
    row_ops          for each kernel operand, the nodes of the body that a kernel computes while it reads the operand,
                     in the order of computation

    The attributes of a node with `kernels` are the attribute variables of the rule's pattern.
    """

    name: str
    body: Graph
    rules: tuple[str, ...]
    kernels: tuple[KernelSpec, ...] = ()
    result_names: tuple[str, ...] = ()
    kernel_operands: tuple[str, ...] = ()
    row_ops: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(n.name for n in self.body.inputs)

    @property
    def results(self) -> tuple[str, ...]:
        return self.result_names or tuple(f"out{i}" for i in range(len(self.body.outputs)))

    @property
    def commutative(self) -> bool:
        return False

    @property
    def in_place(self) -> Mapping[int, int]:
        """Results that take over an operand's memory, through the ops of the body."""
        names = [n.name for n in self.body.inputs]
        slots: dict[int, int] = {}
        for i, output in enumerate(self.body.outputs):
            value = output
            while not self.body.node(value.node).is_input:
                op = self.body.node(value.node).op
                assert isinstance(op, Op), "bodies hold primitive ops"
                slot = op.in_place.get(value.index)
                if slot is None:
                    break
                value = self.body.operands(value.node)[slot]
            else:
                slots[i] = names.index(value.node)
        return slots

    def evaluate(
        self,
        operands: Sequence[Array],
        attrs: Mapping[str, Any],
        types: Sequence[TensorType],
        *,
        batched: bool = False,
    ) -> list[Array]:
        """The results of the body, as of `Op.evaluate`."""
        del attrs, types
        return interpret(self.body, dict(zip(self.params, operands, strict=True)), batched=batched)


OPS: dict[str, Op] = {}
"""Every primitive op by name."""


def register(new: Op) -> Op:
    """Add an op to the registry. Raises ValueError for a name that is taken by another op."""
    if new.name in OPS and OPS[new.name].meaning.__module__ != new.meaning.__module__:
        raise ValueError(f"an op named {new.name!r} exists already, in {OPS[new.name].meaning.__module__}")
    OPS[new.name] = new
    return new


def op(
    signature: str | None = None,
    *,
    kernels: Sequence[KernelSpec] = (),
    view: View | None = None,
    load_time: bool = False,
    infer: Infer | None = None,
    results: Sequence[str] = ("out",),
    commutative: bool = False,
    batched: Callable[..., Any] | None = None,
    prologue: Prologue | None = None,
    in_place: Mapping[int, int] | None = None,
    flops: Callable[[Call], Formula] = lambda call: 0,
    moved_bytes: Callable[[Call], Mapping[str, Formula]] = lambda call: {},
    collective: bool = False,
) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op from its NumPy meaning. `infer` is for types that a signature cannot say.

    Raises ValueError for a norm that does not take the rows and a vector.
    """

    def declare(meaning: Callable[..., Any]) -> Op:
        params, attrs, defaults, variadic = _parameters(meaning)
        if prologue is not None and prologue.kind == "norm" and len(params) != 2:
            raise ValueError(
                f"{meaning.__name__} takes {', '.join(params)}; a norm that other kernels compute takes the rows and "
                "the vector that scales them"
            )
        parsed = Signature.parse(signature) if signature else None

        def from_signature(*types: TensorType, **_: Any) -> tuple[TensorType, ...]:
            assert parsed is not None, f"{meaning.__name__}: an op needs a signature or infer="
            return parsed.infer(meaning.__name__, params, types)

        return register(
            Op(
                name=meaning.__name__,
                meaning=meaning,
                params=params,
                results=tuple(results),
                infer_types=infer or from_signature,
                lowering=view or (LoadTime() if load_time else tuple(kernels)),
                attrs=attrs,
                defaults=defaults,
                variadic=variadic,
                commutative=commutative,
                batched=batched,
                prologue=prologue,
                in_place=in_place or {},
                flops=flops,
                moved_bytes=moved_bytes,
                signature=parsed,
                collective=collective,
            )
        )

    return declare


def pointwise(
    expr: str, *, flops: int = 1, commutative: bool = False, infer: Infer | None = None
) -> Callable[[Callable[..., Any]], Op]:
    """Declare an element-by-element op: one CUDA expression in float, of `{parameter}` and `{attribute}` placeholders.

    Operands have one shape, or are vectors matching the last dim of the widest.
    """

    def declare(meaning: Callable[..., Any]) -> Op:
        params, attrs, defaults, _ = _parameters(meaning)
        name = meaning.__name__

        def broadcast(*types: TensorType, **_: Any) -> tuple[TensorType, ...]:
            return (_broadcast(name, params, types),)

        return register(
            Op(
                name=name,
                meaning=meaning,
                params=params,
                results=("out",),
                infer_types=infer or broadcast,
                lowering=Pointwise(expr, flops),
                attrs=attrs,
                defaults=defaults,
                commutative=commutative,
                flops=lambda call: f"{flops} * {elements(next(iter(call.results.values())))}",
            )
        )

    return declare


def as_tuple(returned: Any) -> tuple[Any, ...]:
    """What a function returned, as the tuple of its results."""
    return cast("tuple[Any, ...]", returned) if isinstance(returned, tuple) else (returned,)


def _python(value: Any) -> Any:
    """A number of NumPy as one of Python, so that it can be printed in a graph; anything else as it is."""
    return cast("np.generic[Any]", value).item() if isinstance(value, np.generic) else value


def elements(tensor: TensorType) -> str:
    """Number of elements of a tensor, as a formula."""
    return " * ".join(f"({d})" if isinstance(d, str) and " " in d else str(d) for d in tensor.shape)


def _broadcast(op: str, params: Sequence[str], types: Sequence[TensorType]) -> TensorType:
    widest = max(types, key=lambda t: len(t.shape))
    for param, type_ in zip(params, types, strict=True):
        if type_.dtype is not widest.dtype or not type_.dtype.is_float:
            raise DTypeError(f"{op}: {param} is {type_}, the other operand {widest}; use cast")
        if type_.shape not in (widest.shape, widest.shape[-1:]):
            raise ShapeError(f"{op}: {param} is {type_}, which neither equals {widest} nor is its last dim")
    return widest


def _parameters(meaning: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], bool]:
    parameters = inspect.signature(meaning).parameters.values()
    attrs = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    operands = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in attrs if p.default is not p.empty}
    variadic = any(p.kind is p.VAR_POSITIONAL for p in operands)
    return tuple(p.name for p in operands), tuple(p.name for p in attrs), defaults, variadic
