"""The steps of a block: kernels to render and launch, and products left to the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infernum.codegen.places import Operand
from infernum.ir.graph import Node
from infernum.ir.kernel import Formula, Template
from infernum.ir.parameters import ParameterSpace
from infernum.manifest import Gemm


@dataclass(frozen=True)
class KernelStep:
    """One kernel to render and launch. `context` holds the variables of its template besides name and signature."""

    name: str
    template: Template
    includes: tuple[str, ...]
    node: Node
    operands: tuple[Operand, ...]
    symbols: tuple[tuple[str, str], ...]
    context: Mapping[str, Any]
    grid: tuple[Formula, Formula, Formula]
    threads: int
    shared_bytes: int
    cluster: Formula
    exchanged: Formula
    bytes: Formula
    flops: Formula
    passed_over: tuple[str, ...] = ()
    parameters: ParameterSpace | None = None

    @property
    def writes(self) -> frozenset[str]:
        """The tensors that it writes."""
        return frozenset(operand.place.tensor for operand in self.operands if not operand.const)

    @property
    def signature(self) -> str:
        """The C parameters, one to a line."""
        names = [operand.parameter for operand in self.operands]
        names += ["Exchange* exchange"] if self.exchanged else []
        names += [f"int {name}" for name, _ in self.symbols]
        return ",\n    ".join(["\n    " + names[0], *names[1:]]) if names else ""


@dataclass(frozen=True)
class ProductStep:
    """One library product, with the node it computes."""

    node: Node
    gemm: Gemm
    bytes: Formula
    flops: Formula
    passed_over: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.gemm.name

    @property
    def writes(self) -> frozenset[str]:
        """The tensors that it writes."""
        return frozenset((self.gemm.out.tensor,))
