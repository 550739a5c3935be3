"""What a kernel may do before it waits for the previous kernel (programmatic dependent launch).

A kernel may start while earlier kernels of the step are still running: before it waits, it may only read tensors that
none of them writes. A template declares these operands (`Template.reads_before_wait`); `check_ahead` rejects a kernel
whose code reads others.
"""

from __future__ import annotations

import re

from infernum.codegen.plan import BlockPlan
from infernum.codegen.steps import KernelStep
from infernum.errors import CompileError
from infernum.ir.graph import Input
from infernum.step import INPUTS

WAIT = "wait_for_previous_kernel();"
"""What every kernel calls before its first dependent read and before any write (see include/programmatic.cuh)."""

START = "let_next_kernel_start();"
"""From this call of all its blocks on, the next kernel may start."""

_NO_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
"""Comments and strings."""


def check_ahead(plan: BlockPlan, kernel: KernelStep, text: str) -> None:
    """Raise CompileError for a kernel that does not wait, or reads before it waits what others may be writing."""
    code = _NO_CODE.sub(" ", text)
    body = code[code.index("{", code.index(f"{kernel.name}(")) :]
    before, wait, _ = body.partition(WAIT)
    template = f"templates/{kernel.template.name}.cu.j2"
    following = kernel.template.next_kernel
    if following is not None and following.joins_previous and START in before:
        raise CompileError(
            f"{kernel.name}: {following.name} runs beside it and relies on its wait; move {START[:-1]} behind "
            f"{WAIT[:-1]} in {template}"
        )
    if not wait:
        raise CompileError(
            f"{kernel.name}: a kernel that may start early must call {WAIT[:-1]} before it reads what others write; "
            f"see include/programmatic.cuh, and mend {template}"
        )
    if kernel.template.joins_previous:
        _check_joining(plan, kernel)
        before = ""
    for operand in (o for o in kernel.operands if not o.place.weight):
        if not re.search(rf"(?<![\w.]){operand.name}\b", before):
            continue
        if operand.name not in kernel.template.reads_before_wait:
            raise CompileError(
                f"{kernel.name}: {template} uses {operand.name} ahead of {WAIT[:-1]} without declaring it; move it "
                "behind the wait or, if no kernel of a step writes it, add it to the template's reads_before_wait="
            )
        writers = _writers(plan, kernel, operand.place.tensor)
        if writers and operand.name not in kernel.template.reads_cached:
            raise CompileError(
                f"{kernel.name}: reads {operand.name} ahead of {WAIT[:-1]}, but {writers} may still be writing it"
            )
    for operand in (o for o in kernel.operands if not o.const):
        if operand.place.tensor in _AHEAD and START in body:
            raise CompileError(
                f"{kernel.name}: writes {operand.name}, which kernels of the next step read ahead of their wait; take "
                f"{START[:-1]} out of {template}"
            )


def _check_joining(plan: BlockPlan, kernel: KernelStep) -> None:
    """Raise CompileError unless a kernel that runs beside the one before it needs none of that one's results."""
    other = plan.steps[plan.steps.index(kernel) - 1]
    assert isinstance(other, KernelStep) and other.node is kernel.node, "it is a next kernel"
    read = {operand.place.tensor for operand in kernel.operands if operand.const}
    if written := sorted(read & other.writes):
        raise CompileError(
            f"{kernel.name}: runs beside {other.name}, which writes {', '.join(written)}, and reads that"
        )


_AHEAD = frozenset(item.name for item in INPUTS if item.ahead)


def _writers(plan: BlockPlan, kernel: KernelStep, tensor: str) -> str:
    """What may be writing a tensor when a kernel starts early; "": nothing."""
    roles = {n.name: n.op.role for n in plan.graph.inputs if isinstance(n.op, Input)}
    match roles.get(tensor):
        case "batch":
            return "" if tensor in _AHEAD else "the sampler of the step before"
        case "stream":
            return "the block before"
        case _:
            return ", ".join(s.name for s in plan.steps if s is not kernel and tensor in s.writes)
