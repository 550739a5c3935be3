"""How an op asks to be emitted: the vocabulary through which code generation knows a node.

Pointwise    one CUDA expression; a chain or DAG of such ops is one kernel without a template of its own
View         no code at all: the result is another look at an operand's memory
LoadTime     done once to weights when a checkpoint is loaded
Template     a kernel written by hand in templates/
Library      a matrix product left to the vendor's library
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from infernum.dtypes import DType
from infernum.ir.graph import TensorType

Formula = int | str


@dataclass(frozen=True)
class Tuned:
    """Values of a kernel's parameters that were found by timing, and the sentence that says where and how."""

    values: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class Target:
    """What a graph is compiled for.

    `arch` is the compute capability as an int (80, 86, 89, 90, 100); a variant serves steps of `min_tokens` to
    `max_tokens` tokens. `tuned`: what is known of kernels by their key (`infernum.ir.parameters`); `chosen`: the values
    of the parameters of the kernel that is being planned.
    """

    arch: int
    variant: str
    min_tokens: int
    max_tokens: int
    dtype: DType
    tuned: Mapping[str, Tuned] = field(default_factory=dict[str, Tuned], hash=False, repr=False)
    chosen: Mapping[str, int] = field(default_factory=dict[str, int], hash=False, repr=False)

    @property
    def programmatic(self) -> bool:
        """True where a kernel may start before the one before it has ended (griddepcontrol, PTX ISA 7.8)."""
        return self.arch >= 90


@dataclass(frozen=True)
class Call:
    """A node as its op's kernels see it: operand and result types by parameter name, and attributes."""

    op: str
    operands: Mapping[str, TensorType]
    results: Mapping[str, TensorType]
    attrs: Mapping[str, Any]


Condition = Callable[[Call, Target], str | None]
"""None when a kernel can serve a call; otherwise why not, in words a user can act on."""

Constants = Callable[[Call, Target], Mapping[str, int | float | str | bool | list[Any]]]
"""The compile-time constants of a kernel: tile sizes and the like, visible to its template and its formulas.

Those of a template with `choices` begin with `chosen(choices, call, target)`.
"""

Choices = Callable[[Call, Target], Mapping[str, tuple[int, ...]]]
"""The parameters of a kernel that `infernum tune` may set: candidates by name, first the architecture's default."""


def always(call: Call, target: Target) -> str | None:
    """The condition of a kernel that serves every call."""
    del call, target
    return None


def no_constants(call: Call, target: Target) -> Mapping[str, int | float | str | bool | list[Any]]:
    """The constants of a kernel that needs none."""
    del call, target
    return {}


def no_choices(call: Call, target: Target) -> Mapping[str, tuple[int, ...]]:
    """The parameters of a kernel that has none to set."""
    del call, target
    return {}


def chosen(choices: Choices, call: Call, target: Target) -> dict[str, int]:
    """The values of a kernel's parameters: those that `target` names, and the first candidates of all others."""
    return {
        name: target.chosen.get(name, candidates[0]) for name, candidates in choices(call, target).items()
    }


@dataclass(frozen=True)
class Pointwise:
    """Element by element: `expr` is a C expression in `{parameter}` and `{attribute}` placeholders, in float."""

    expr: str
    flops: int = 1


@dataclass(frozen=True)
class View:
    """The result is operand 0 seen otherwise. `columns` says which columns of its rows: (start, stop) by attrs."""

    columns: Callable[[Call], tuple[int, int]] | None = None


@dataclass(frozen=True)
class LoadTime:
    """Stacks weights along axis 0 when a checkpoint is loaded."""


@dataclass(frozen=True)
class Workspace:
    """A scratch tensor between the kernels of one op: its shape in constants and symbols, and its dtype."""

    name: str
    shape: tuple[Formula, ...]
    dtype: str = "f32"


@dataclass(frozen=True)
class Template:
    """A kernel written as `templates/<name>.cu.j2`.

    `grid` and `shared_bytes` are formulas over symbols and the names that `constants` returns (which are
    substituted at compile time); shared memory depends on no symbol. `includes` are files of templates/include the
    kernel needs, in order. `prologue` names the operand that may be computed while it is read; `epilogue` says whether
    pointwise ops may be applied to the result before it is written. `then` is a second kernel of the same op,
    launched after this one.
    `cluster`: so many blocks, up to 8 and side by side along z, run at the same time and reach each other's shared
    memory.
    `takes` names the operands, results and workspaces that are its parameters; none: all of them.
    `choices` are the parameters that may be tuned, its own and those of the kernels after it; `feasible` says, given
    `Target.chosen`, why a combination of them cannot work, where that is known before it is compiled.
    """

    name: str
    grid: tuple[Formula, Formula, Formula] = (1, 1, 1)
    block: Formula = 256
    shared_bytes: Formula = 0
    cluster: Formula = 1
    when: Condition = always
    constants: Constants = no_constants
    choices: Choices = no_choices
    feasible: Condition = always
    includes: tuple[str, ...] = ()
    prologue: str | None = None
    epilogue: bool = False
    workspaces: tuple[Workspace, ...] = ()
    then: Template | None = None
    takes: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ("tokens",)


@dataclass(frozen=True)
class Library:
    """cuBLASLt: out[tokens, n] = x[tokens, k] · weight[n, k]ᵀ."""

    when: Condition = always
    epilogue: bool = True
    symbols: tuple[str, ...] = ("tokens",)


KernelSpec = Template | Library


class Cost(Protocol):
    """FLOPs of one call, as a formula over symbols."""

    def __call__(self, call: Call) -> Formula: ...


@dataclass(frozen=True)
class Choice:
    """The kernel chosen for a call, and why the ones before it in the op's list were passed over."""

    kernel: KernelSpec
    passed_over: tuple[str, ...] = field(default=())


def choose(kernels: tuple[KernelSpec, ...], call: Call, target: Target) -> Choice | str:
    """The first kernel whose condition holds, or all the reasons why none does."""
    reasons: list[str] = []
    for kernel in kernels:
        reason = kernel.when(call, target)
        if reason is None:
            return Choice(kernel, tuple(reasons))
        reasons.append(f"{kernel.name if isinstance(kernel, Template) else 'cublaslt'}: {reason}")
    return "; ".join(reasons) if reasons else f"{call.op} has no kernel"
