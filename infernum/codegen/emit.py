"""From a plan to one self-contained `.cu` file: a header with the graph, helpers, kernels in launch order."""

from __future__ import annotations

from infernum.codegen.ahead import check_ahead
from infernum.codegen.plan import BlockPlan
from infernum.codegen.pointwise_code import literal
from infernum.codegen.steps import KernelStep
from infernum.codegen.templates import include_text, render
from infernum.dims import COSTS, evaluate
from infernum.ir.fuse import made_by
from infernum.ir.kernel import Target
from infernum.ir.op import Fused
from infernum.ir.text import print_graph
from infernum.roofline import CONTEXT, GPUS, floor_seconds, step_symbols


def emit_block(plan: BlockPlan, title: str) -> str:
    """The CUDA source of a block. Same plan, same text."""
    kernels = [step for step in plan.steps if isinstance(step, KernelStep)]
    includes = list(dict.fromkeys(name for kernel in kernels for name in kernel.includes))
    parts = [_header(plan, title)]
    parts += [f"// ---- {name}\n{include_text(name).rstrip()}\n" for name in includes]
    parts += [
        f"// ---- {kernel.name}\n{_comment(kernel, plan.target)}{_render(kernel, plan)}" for kernel in kernels
    ]
    return "\n".join(parts)


def _header(plan: BlockPlan, title: str) -> str:
    lines = [title, "", *print_graph(plan.graph).rstrip().splitlines()]
    return "".join(f"// {line}".rstrip() + "\n" for line in lines)


def _render(kernel: KernelStep, plan: BlockPlan) -> str:
    context = {
        **kernel.context,
        "name": kernel.name,
        "signature": kernel.signature,
        "arch": plan.target.arch,
        "literal": literal,
    }
    text = render(kernel.template.name, context, arch=plan.target.arch).rstrip() + "\n"
    if plan.target.programmatic:
        check_ahead(plan, kernel, text)
    return text


def _comment(kernel: KernelStep, target: Target) -> str:
    """What the kernel computes, which rule made it, the lines of Python it came from, and what it must cost."""
    op = kernel.node.op
    ops = [n.op.name for n in op.body.calls] if isinstance(op, Fused) else [op.name]
    rules = f", by {', '.join(made_by(kernel.node))}" if made_by(kernel.node) else ""
    symbols = step_symbols(target.max_tokens, decodes=target.decodes)
    moved, computed = evaluate(kernel.bytes, symbols), evaluate(kernel.flops, symbols)
    cached = any(symbol in f"{kernel.bytes} {kernel.flops}" for symbol in COSTS)
    context = CONTEXT if target.decodes else max(CONTEXT, target.max_tokens)
    behind = f" at context {context}" if cached else ""
    floor = floor_seconds(f"sm_{target.arch}", moved, computed) * 1e6
    return (
        f"// {' -> '.join(ops)}{rules}\n"
        f"// from {', '.join(kernel.node.where)}\n"
        f"// {target.max_tokens} token(s){behind}: {_si(moved)}B, {_si(computed)}FLOP; "
        f"at least {floor:.2f} us on one {GPUS[target.arch].name}\n"
    )


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f} "
