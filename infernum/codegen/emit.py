"""From a plan to one self-contained `.cu` file: a header with the graph, helpers, kernels in launch order."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.codegen.plan import BlockPlan
from infernum.codegen.steps import Kernel
from infernum.codegen.templates import include_text, render
from infernum.dims import evaluate
from infernum.errors import CompileError
from infernum.ir.kernel import Target
from infernum.ir.op import Fused

WAIT = "wait_for_previous_kernel()"
"""What every kernel calls before its first dependent read and before any write (see include/programmatic.cuh)."""


@dataclass(frozen=True)
class Machine:
    """A GPU of an architecture, by whose speed the floors in comments are given."""

    name: str
    bytes_per_second: float
    flops_per_second: float


MAX_ROWS = 256
"""Largest number of logit rows, and of sequences that comments reckon with, in one step."""

MACHINES: dict[int, Machine] = {
    80: Machine("A100 80GB", 2.0e12, 312e12),
    86: Machine("RTX A6000", 0.77e12, 155e12),
    89: Machine("L40S", 0.86e12, 362e12),
    90: Machine("H200", 4.71e12, 804e12),
    100: Machine("B200", 7.7e12, 2250e12),
}
"""Vendors' figures, dense bf16; the H200's are measured: a read-only stream, and an 8192³ product by cuBLAS."""


def emit_block(plan: BlockPlan, title: str) -> str:
    """The CUDA source of a block. Same plan, same text."""
    kernels = [step for step in plan.steps if isinstance(step, Kernel)]
    includes = list(dict.fromkeys(name for kernel in kernels for name in kernel.template.includes))
    parts = [_header(plan, title)]
    parts += [f"// ---- {name}\n{include_text(name).rstrip()}\n" for name in includes]
    parts += [
        f"// ---- {kernel.name}\n{_comment(kernel, plan.target)}{_render(kernel, plan.target)}"
        for kernel in kernels
    ]
    return "\n".join(parts)


def _header(plan: BlockPlan, title: str) -> str:
    lines = [title, "", *str(plan.graph).rstrip().splitlines()]
    return "".join(f"// {line}".rstrip() + "\n" for line in lines)


def _render(kernel: Kernel, target: Target) -> str:
    context = {
        **kernel.context,
        "name": kernel.name,
        "signature": kernel.signature,
        "arch": target.arch,
        "float_literal": float_literal,
    }
    text = render(kernel.template.name, context, arch=target.arch).rstrip() + "\n"
    if target.programmatic and WAIT not in text:
        raise CompileError(
            f"{kernel.name}: a kernel that may start early must call {WAIT} before it reads what others write; "
            f"see include/programmatic.cuh, and mend templates/{kernel.template.name}.cu.j2"
        )
    return text


def _comment(kernel: Kernel, target: Target) -> str:
    """What the kernel computes, which rule made it, the lines of Python it came from, and what it must cost."""
    op = kernel.node.op
    ops = [n.op.name for n in op.body.calls] if isinstance(op, Fused) else [op.name]
    rules = f", by {', '.join(op.rules)}" if isinstance(op, Fused) else ""
    tokens = target.max_tokens
    symbols = {
        "tokens": tokens,
        "rows": min(tokens, MAX_ROWS),
        "seqs": min(tokens, MAX_ROWS),
        "max_pages": 1,
        "pages": 1,
        "sms": 1,
    }
    moved, computed = evaluate(kernel.bytes, symbols), evaluate(kernel.flops, symbols)
    cache = " and the KV cache" if any("pages" in o.shape for o in kernel.operands) else ""
    machine = MACHINES[target.arch]
    floor = max(moved / machine.bytes_per_second, computed / machine.flops_per_second) * 1e6
    return (
        f"// {' -> '.join(ops)}{rules}\n"
        f"// from {', '.join(kernel.node.where)}\n"
        f"// {tokens} token(s): {_si(moved)}B{cache}, {_si(computed)}FLOP; "
        f"at least {floor:.2f} us on one {machine.name}\n"
    )


def float_literal(value: float) -> str:
    """A float constant as C writes it."""
    return f"{float(value)!r}f"


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f} "
