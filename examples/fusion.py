"""A fusion, from its declaration to the kernel that comes of it.

A block of four ops is compiled as four kernels. A rule is registered that makes them one. The script shows graph,
kernels and CUDA before and after, forces either, shows where the rule refuses, and checks that both mean the same.

    python examples/fusion.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infernum.cache import cache_folder
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_all
from infernum.codegen.plan import BlockPlan, plan_block
from infernum.dims import evaluate
from infernum.dtypes import BF16, round_to
from infernum.fusion import add_rule, select_rules
from infernum.ir.apply import Outcome, apply_rules
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Site, fusion
from infernum.ops import add, linear, rms_norm, silu

DECODE = Target(arch=90, variant="t1", min_tokens=1, max_tokens=1, dtype=BF16)
PROMPT = Target(arch=90, variant="prefill", min_tokens=65, max_tokens=4096, dtype=BF16)


# 1. A block: a function over tensors. Running it once gives its graph.
@dataclass(frozen=True)
class Shape:
    width: int = 1024


@block(x="tokens width")
def adapter(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Shape) -> Tensor:
    h = rms_norm(x, w.tensor("norm.weight", cfg.width), eps=1e-5)
    return add(x, silu(linear(h, w.tensor("proj.weight", cfg.width, cfg.width))))


# 2. A fusion: what it says is what it looks for, and what the one kernel means. The matrix product is the host, whose
#    template takes the rest as statements behind its sum; that is the GEMV's, which serves a few tokens.
def _a_gemv_serves(site: Site) -> str | None:
    tokens = site.target.max_tokens
    return (
        None if tokens <= 8 else f"at up to {tokens} tokens the product is the library's, which knows no silu"
    )


@fusion(why="The sum is activated and added while it is in registers.", when=_a_gemv_serves)
def silu_residual(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return add(residual, silu(linear(x, weight)))


def main() -> None:
    traced = adapter.trace(Shape(), BF16)
    print("The block, decomposed\n")
    print(traced)
    decomposed = apply_rules(traced, select_rules(fuse=False), DECODE)
    show_kernels(plan_block(decomposed.graph, DECODE))

    print("\nThe same, with every rule that Infernum has\n")
    show(apply_rules(traced, select_rules(fuse=True), DECODE))

    print("\nThe same, once silu_residual is registered ahead of norm_into_gemv\n")
    add_rule(silu_residual, before="norm_into_gemv")
    fused = apply_rules(traced, select_rules(fuse=True), DECODE)
    show(fused)
    print(f"\n{fused.graph}")

    print("Its kernel, shortened\n")
    source = emit_block(plan_block(fused.graph, DECODE), "An adapter, one token.")
    show_shortened(source)
    cubin = compile_all({"adapter.cu": source}, "sm_90a", cache=cache_folder())["adapter.cu"]
    resources = cubin.kernels["gemv_mma_proj"]
    print(f"\n{resources.registers} registers, {resources.spill_bytes} bytes spilled")

    print("\nEither form can be had: the new rule alone, and all but that one\n")
    for fuse, change in (False, "+silu_residual"), (True, "-silu_residual"):
        print(f"{'--fuse' if fuse else '--no-fuse'} --rules={change}")
        show_kernels(plan_block(apply_rules(traced, select_rules(fuse, [change]), DECODE).graph, DECODE))

    print("\nIn a prompt it refuses\n")
    for refused in apply_rules(traced, [silu_residual], PROMPT).refused:
        print(f"{refused.rule} at {refused.at}: {refused.reason}")

    rng = np.random.default_rng(0)
    shapes = {"x": (5, 1024), "norm": (1024,), "proj": (1024, 1024)}
    inputs = {name: round_to(rng.standard_normal(shape, np.float32), BF16) for name, shape in shapes.items()}
    before, after = (interpret(graph, inputs)[0] for graph in (decomposed.graph, fused.graph))
    print(f"\nIn NumPy both give the same, bit for bit: {np.array_equal(before, after)}")


def show(outcome: Outcome) -> None:
    """Print which rules fired, and the kernels that are left."""
    for firing in outcome.firings:
        print(f"{firing.rule} took {firing.at} and made {firing.made}")
    show_kernels(plan_block(outcome.graph, DECODE))


def show_kernels(plan: BlockPlan) -> None:
    """Print the kernels of a plan for one token, and the bytes that they read and write."""
    moved = {step.name: evaluate(step.bytes, {"tokens": 1}) for step in plan.steps}
    for name, nbytes in moved.items():
        print(f"  {name:<14} {nbytes:>9,} bytes")
    print(f"  {len(moved)} kernel(s), {sum(moved.values()):,} bytes")


def show_shortened(source: str) -> None:
    """Print the last kernel of a source: its comments, its parameters, and what it does with a finished sum."""
    kernel = source[source.index("// ---- gemv_mma_proj") :].splitlines()[1:]
    body = next(i for i, line in enumerate(kernel) if line.endswith(") {"))
    finish = next(i for i, line in enumerate(kernel) if "float whole_0 = 0.0f" in line)
    end = next(i for i in range(finish, len(kernel)) if "= from_float<" in kernel[i])
    print("\n".join([*kernel[: body + 1], "    …", *kernel[finish : end + 1], "    …"]))


if __name__ == "__main__":
    main()
