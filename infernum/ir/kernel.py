"""How a GPU computes an op. Rules and code generation know a node through these classes only.

Pointwise    one CUDA expression; a chain or DAG of such ops is one kernel without a template of its own
View         no code at all: the result is another look at an operand's memory
LoadTime     done once to weights when a checkpoint is loaded
Template     a kernel written by hand in templates/
Library      a matrix product left to the vendor's library

A kernel's `plan(call, target)` returns its layout for a call, or a refusal with the reason; `layouts` yields further
layouts that may be timed. A call lists what the kernel must compute besides its op: prologues on operands and an
epilogue. Rules call `plan` before they fuse, so that only the kernel knows its limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from infernum.dtypes import DType
from infernum.ir.graph import TensorType

Formula = int | str


@dataclass(frozen=True)
class Tuned:
    """Values of a kernel's parameters that were chosen by timing, and a sentence that states where and how."""

    values: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class Target:
    """What a graph is compiled for.

    `arch` is the compute capability as an int (80, 86, 89, 90, 100); a variant serves steps of `min_tokens` to
    `max_tokens` tokens. `tuned` holds tuned parameters of kernels by key (`infernum.ir.parameters`). With `decodes`,
    every sequence of a step has one token. With `deterministic`, the bits of a token's result must not depend on what
    else is in the step: a kernel whose order of sums does refuses.
    """

    arch: int
    variant: str
    min_tokens: int
    max_tokens: int
    dtype: DType
    tuned: Mapping[str, Tuned] = field(default_factory=dict[str, Tuned], hash=False, repr=False)
    decodes: bool = False
    deterministic: bool = False

    @property
    def programmatic(self) -> bool:
        """True if a kernel may start before the previous kernel has ended (griddepcontrol, PTX ISA 7.8)."""
        return self.arch >= 90


@dataclass(frozen=True)
class RowCall:
    """An op over rows that a kernel computes while it reads an operand (`Op.prologue`).

    `operands` maps the op's other parameters to names of values: the name of the kernel's own operand if that is the
    same value, otherwise a name that no operand of the kernel has.
    """

    op: str
    prologue: Prologue
    operands: Mapping[str, str]
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Epilogue:
    """The pointwise ops that a kernel applies to its op's result before anything is written.

    ops     names of the ops, in order
    parts   number of equal ranges of the result's columns that the ops combine; 1: whole rows
    reads   types of the values that the ops read besides the result
    result  type of the value that is written instead of the op's result
    """

    ops: tuple[str, ...]
    parts: int
    reads: tuple[TensorType, ...]
    result: TensorType


@dataclass(frozen=True)
class Call:
    """A node as a kernel sees it: operand and result types by parameter name, attributes, and what it has absorbed.

    `prologues` lists the row ops on an operand in the order of computation; the type of such an operand is the type of
    the last row op's result.
    """

    op: str
    operands: Mapping[str, TensorType]
    results: Mapping[str, TensorType]
    attrs: Mapping[str, Any]
    prologues: Mapping[str, tuple[RowCall, ...]] = field(default_factory=dict[str, tuple[RowCall, ...]])
    epilogue: Epilogue | None = None

    @property
    def columns(self) -> int:
        """Width of the value that the kernel writes."""
        result = self.epilogue.result if self.epilogue else next(iter(self.results.values()))
        return result.width


@dataclass(frozen=True)
class Layout:
    """How a kernel computes a call: the compile-time constants that its template and its formulas see.

    `parameters` are the constants that `infernum tune` may set to other values; `constants` are all others.
    """

    constants: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parameters: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Refusal:
    """The reason why a kernel cannot serve a call, in words that a user can act on."""

    reason: str

    def __str__(self) -> str:
        return self.reason


Layouts = Callable[[Call, Target], Iterator[Layout | Refusal]]
"""The layouts of a kernel for a call, the architecture's default first.

A refusal in first place means that the kernel cannot serve the call; a later refusal rejects one combination of
parameters.
"""


def alternatives(**candidates: Sequence[int]) -> Iterator[dict[str, int]]:
    """Every combination of a kernel's parameters, beginning with the first value of each."""
    for values in product(*candidates.values()):
        yield dict(zip(candidates, values, strict=True))


def one_layout(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """The layouts of a kernel without constants, which serves every call."""
    del call, target
    yield Layout()


@dataclass(frozen=True)
class Pointwise:
    """Element by element: `expr` is a C expression in `{parameter}` and `{attribute}` placeholders, in float."""

    expr: str
    flops: int = 1


@dataclass(frozen=True)
class View:
    """The result is memory of operand 0, without a copy. `columns(call)`: its range (start, stop) of columns."""

    columns: Callable[[Call], tuple[int, int]] | None = None


@dataclass(frozen=True)
class LoadTime:
    """Stacks weights along axis 0 when a checkpoint is loaded."""


@dataclass(frozen=True)
class Prologue:
    """How a kernel computes an op over rows while it reads them: the struct of that name in `include`.

    A `norm` scales a row by one number, computed from a sum over the row, and by a vector, its second operand;
    `templates/include/rms_norm.cuh` shows the members of its struct. A `rotation` turns pairs of a head's elements.
    """

    struct: str
    include: str
    kind: Literal["norm", "rotation"] = "norm"


@dataclass(frozen=True)
class Workspace:
    """A scratch tensor between the kernels of one op: its shape in constants and symbols, and its dtype."""

    name: str
    shape: tuple[Formula, ...]
    dtype: str = "f32"


@dataclass(frozen=True)
class Template:
    """A kernel written as `templates/<name>.cu.j2`.

    layouts            generator of the layouts for a call, the default first; `plan` takes the first
    grid               thread blocks of a launch along x, y and z
    threads            threads of a thread block
    shared_bytes       dynamic shared memory of a thread block, in bytes
    cluster            thread blocks of a cluster, at most 8, side by side along z: they run at the same time and reach
                       each other's shared memory
    includes           headers of templates/include that the kernel needs, in order
    row_ops            for each operand, the kinds of row ops that the kernel can compute while it reads the operand, in
                       the order of computation
    pointwise_operand  the operand whose pointwise producers the kernel can compute while it reads the operand
    epilogue           True if the kernel can apply pointwise ops to its result before it writes the result
    reads_before_wait  operands that the kernel reads before it waits for the previous kernel; weights need no entry
    reads_cached       operands among these that a kernel of the step may be writing, while only what earlier steps have
                       written is read: the KV cache up to the first position of the step
    joins_previous     True for a `next_kernel` that runs beside the kernel before it, and reads nothing that this other
                       one writes. That one lets it start behind its own wait. It waits before it ends, and reads what
                       others have written past the L1 cache, which nothing has made to forget older values
    workspaces         scratch tensors
    next_kernel        a further kernel of the same op, launched after this one, with the same layout if it has none
    arguments          operands, results and workspaces that are passed to the kernel; empty: all of them
    symbols            symbols that are passed to the kernel, as ints
    exchanged          words that the kernel sends to each other rank; it is then given `exchange`, the `Exchange` of
                       templates/include/exchange.cuh. 0: it sends none

    `grid`, `threads`, `shared_bytes`, `cluster` and `exchanged` are formulas over symbols and the layout's constants;
    `threads` and `shared_bytes` must not depend on a symbol.
    """

    name: str
    layouts: Layouts = one_layout
    grid: tuple[Formula, Formula, Formula] = (1, 1, 1)
    threads: Formula = 256
    shared_bytes: Formula = 0
    cluster: Formula = 1
    includes: tuple[str, ...] = ()
    row_ops: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]], hash=False)
    pointwise_operand: str | None = None
    epilogue: bool = False
    reads_before_wait: tuple[str, ...] = ()
    reads_cached: tuple[str, ...] = ()
    joins_previous: bool = False
    workspaces: tuple[Workspace, ...] = ()
    next_kernel: Template | None = None
    arguments: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ("tokens",)
    exchanged: Formula = 0

    def plan(self, call: Call, target: Target) -> Layout | Refusal:
        """The kernel's default layout for a call, or the reason why it cannot serve the call."""
        return self._unfit(call) or next(iter(self.layouts(call, target)))

    def _unfit(self, call: Call) -> Refusal | None:
        """The first absorbed op that the template cannot compute, as a refusal; None if it can compute all."""
        if call.epilogue and not self.epilogue:
            return Refusal(f"{self.name} writes its result as it is: it has no epilogue")
        for operand, rows in call.prologues.items():
            kinds = iter(self.row_ops.get(operand, ()))
            for row in rows:
                if row.prologue.kind not in kinds:
                    return Refusal(f"{self.name} does not compute {row.op} while it reads {operand}")
        return None


@dataclass(frozen=True)
class Library:
    """cuBLASLt: out[tokens, n] = x[tokens, k] · weight[n, k]ᵀ (+ a vector) (+ a matrix of the result's shape)."""

    name: str = "cublaslt"
    symbols: tuple[str, ...] = ("tokens",)

    def plan(self, call: Call, target: Target) -> Layout | Refusal:
        """An empty layout, or the reason why the library cannot compute the call's epilogue."""
        if target.deterministic:
            return Refusal("the order of the library's sums depends on the number of tokens")
        if call.prologues:
            return Refusal("the library reads rows as they are: it has no prologue")
        if call.epilogue is None:
            return Layout()
        other = next((op for op in call.epilogue.ops if op != "add"), None)
        if other:
            return Refusal(f"the library can only add to a product, and {other} is no addition")
        if call.epilogue.parts > 1:
            return Refusal("the library adds to whole rows, and this is a sum of ranges of columns")
        if len(call.epilogue.ops) != len(call.epilogue.reads):
            return Refusal("the library adds each operand once, and a product is not added to itself")
        vectors = [t for t in call.epilogue.reads if len(t.shape) == 1]
        matrices = [t for t in call.epilogue.reads if len(t.shape) > 1]
        for kind, reads in (("vector", vectors), ("matrix", matrices)):
            if len(reads) > 1:
                return Refusal(f"the library adds one {kind}, and these are {len(reads)}")
        return Layout()


KernelSpec = Template | Library


@dataclass(frozen=True)
class Choice:
    """The kernel chosen for a call, and why each kernel before it in the op's list was rejected."""

    kernel: KernelSpec
    passed_over: tuple[str, ...] = field(default=())


def choose(kernels: Sequence[KernelSpec], call: Call, target: Target) -> Choice | Refusal:
    """The first kernel that serves a call, or all the reasons why none does.

    The call is the op alone: ops that are absorbed later do not change which kernel computes it.
    """
    reasons: list[str] = []
    for kernel in kernels:
        layout = kernel.plan(call, target)
        if isinstance(layout, Layout):
            return Choice(kernel, tuple(reasons))
        reasons.append(f"{kernel.name}: {layout.reason}")
    return Refusal("; ".join(reasons) if reasons else f"{call.op} has no kernel")
