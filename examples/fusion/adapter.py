"""What the rules do with a block of six ops, and a fusion that they do not have, from declaration to kernel.

The script shows the kernels without rules, with Infernum's rules, and with one more rule, and the CUDA of the two
kernels that are left. It forces either form, shows what rules do in a prompt and why one refuses there, and checks that
the forms mean the same.

    python examples/fusion/adapter.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infernum.cache import cache_folder
from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import compile_all
from infernum.codegen.plan import BlockPlan, plan_block
from infernum.codegen.templates import add_folder
from infernum.dims import evaluate
from infernum.dtypes import BF16, round_to
from infernum.fusion import add_rule, select_rules
from infernum.ir.apply import Outcome, apply_rules
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template
from infernum.ir.rewrite import fusion
from infernum.ir.text import print_graph
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
    h = silu(linear(h, w.tensor("proj.weight", cfg.width, cfg.width)))
    x = add(x, rms_norm(h, w.tensor("post_norm.weight", cfg.width), eps=1e-5))
    return rms_norm(x, w.tensor("next_norm.weight", cfg.width), eps=1e-5)


# 2. A fusion with a kernel of its own, norm_add_norm.cu.j2 beside this file. What the function says is what the rule
#    looks for, and what the one kernel means. `layouts` says how the kernel computes a call, or why it cannot.
def _row_layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    x = call.operands["x"]
    if x.width % 8:
        yield Refusal(f"x is {x}: a thread reads 8 elements of a row at once")
        return
    yield Layout({"WIDTH": x.width, "VECTOR": 8, "THREADS": 128})


NORM_ADD_NORM = Template(
    "norm_add_norm",
    layouts=_row_layouts,
    grid=("tokens", 1, 1),
    threads="THREADS",
    includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh"),
    symbols=(),
)


@fusion(
    why="A row is added to the residual, and the sum normalised, where it is.",
    kernels=[NORM_ADD_NORM],
    results=["out"],
)
def norm_add_norm(x: Tensor, weight: Tensor, residual: Tensor, next_weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(add(residual, rms_norm(x, weight, eps=eps)), next_weight, eps=eps)


def main() -> None:
    traced = adapter.trace(Shape(), BF16)
    print("The block, decomposed\n")
    print(print_graph(traced))
    decomposed = apply_rules(traced, select_rules(fuse=False), DECODE)
    show_kernels(plan_block(decomposed.graph, DECODE))

    print("\nThe same, with every rule that Infernum has\n")
    show(apply_rules(traced, select_rules(fuse=True), DECODE))

    print("\nThe same, once norm_add_norm is registered\n")
    add_folder(Path(__file__).parent)
    add_rule(norm_add_norm, before="into_epilogue")
    fused = apply_rules(traced, select_rules(fuse=True), DECODE)
    show(fused)
    print(f"\n{print_graph(fused.graph)}")

    print("Its kernels, the product shortened\n")
    source = emit_block(plan_block(fused.graph, DECODE), "An adapter, one token.")
    show_shortened(source)
    cubin = compile_all([("adapter.cu", source)], "sm_90a", cache=cache_folder())["adapter.cu"]
    for name, resources in cubin.kernels.items():
        print(f"\n{name}: {resources.registers} registers, {resources.spill_bytes} bytes spilled", end="")

    print("\n\nEither form can be had: the new rule alone, and all but that one\n")
    for fuse, change in (False, "+norm_add_norm"), (True, "-norm_add_norm"):
        print(f"{'--fuse' if fuse else '--no-fuse'} --rules={change}")
        show_kernels(plan_block(apply_rules(traced, select_rules(fuse, [change]), DECODE).graph, DECODE))

    print("\nIn a prompt the product is the library's, and other rules fire\n")
    prompt = apply_rules(traced, select_rules(fuse=True), PROMPT)
    for firing in prompt.firings:
        print(f"{firing.rule} took {firing.at} and made {firing.made}")
    for refused in prompt.refused:
        print(f"{refused.rule} refused at {refused.at}: {refused.reason}")

    rng = np.random.default_rng(0)
    shapes = {
        "x": (5, 1024),
        "norm": (1024,),
        "proj": (1024, 1024),
        "post_norm": (1024,),
        "next_norm": (1024,),
    }
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
        print(f"  {name:<18} {nbytes:>9,} bytes")
    print(f"  {len(moved)} kernel(s), {sum(moved.values()):,} bytes")


def show_shortened(source: str) -> None:
    """Print both kernels of a source; of the product its comments, parameters, and what it does with a sum."""
    product, norm = source[source.index("// ---- gemv_mma_proj") :].split("\n// ---- ")
    lines = product.splitlines()[1:]
    body = next(i for i, line in enumerate(lines) if line.endswith(") {"))
    normalise = next(i for i, line in enumerate(lines) if "rows.normalise" in line)
    finish = next(i for i, line in enumerate(lines) if "float whole_0 = 0.0f" in line)
    end = next(i for i in range(finish, len(lines)) if "= from_float<" in lines[i])
    parts = [lines[: body + 1], lines[normalise : normalise + 1], lines[finish : end + 1], []]
    print("\n    …\n".join("\n".join(part) for part in parts))
    print(norm[norm.index("\n") + 1 :].rstrip())


if __name__ == "__main__":
    main()
