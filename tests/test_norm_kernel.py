"""The emitted kernel of a norm, with ops in front of it and behind it, compiled for the host against its meaning."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_bench import COMPILER, kernels_for_host

from infernum import ops
from infernum.codegen.emit import emit_block
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.weights import fold_weights
from infernum.dtypes import F32
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import Block, Tensor, block
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
TARGET = Target(80, "prefill", 65, 4096, F32)
RNG = np.random.default_rng(3)


def declared(width: int, meaning: Callable[..., Tensor]) -> Block:
    @block(x="tokens hidden_size", y="tokens hidden_size")
    def normed(x: Tensor, y: Tensor, *, batch: Any, w: Any, cfg: Any) -> Tensor:
        return meaning(x, y, lambda of: ops.rms_norm(of, w.tensor("norm", width), eps=1e-6, offset=1.0), w)

    return normed


def by_head(x: Tensor, y: Tensor, norm: Callable[[Tensor], Tensor], w: Any) -> Tensor:
    gain = w.tensor("gain", 24)
    return ops.flatten(ops.add(ops.heads(y, dim=24), ops.mul(norm(ops.heads(x, dim=24)), gain)))


MEANINGS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "a residual behind": (3000, lambda x, y, norm, w: ops.add(y, norm(x))),
    "its own operand behind": (96, lambda x, y, norm, w: ops.add(x, ops.mul(norm(x), y))),
    "a vector and a residual behind": (
        96,
        lambda x, y, norm, w: ops.add(y, ops.gelu_tanh(ops.mul(norm(x), w.tensor("gain", 96)))),
    ),
    "heads, with a vector of one head behind": (24, by_head),
}


@pytest.mark.parametrize("what", MEANINGS)
def test_a_norm_computes_what_stands_behind_it_in_one_kernel(what: str, tmp_path: Path) -> None:
    width, meaning = MEANINGS[what]
    columns = 3000 if width == 3000 else 96
    graph = declared(width, meaning).trace(SimpleNamespace(hidden_size=columns), F32)
    fused = apply_rules(graph, RULES, TARGET, normalise=fold_weights).graph
    plan = plan_block(fused, TARGET)
    (step,) = plan.steps
    assert isinstance(step, KernelStep) and step.template.name == "norm"
    arrays = {
        n.name: RNG.standard_normal([5 if d == "tokens" else int(d) for d in n.types[0].shape], np.float32)
        for n in graph.inputs
    }
    (expected,) = interpret(graph, arrays)
    out = np.full_like(expected, np.nan)
    operands = [arrays.get(operand.place.tensor, out) for operand in step.operands]
    launch = getattr(kernels_for_host(emit_block(plan, "g"), tmp_path), f"host_{step.name}")
    pointers = [array.ctypes.data for array in operands]
    grid = (ctypes.c_int * 3)(5, int(step.grid[1]), 1)
    launch(grid, step.threads, (ctypes.c_uint64 * (len(pointers) + 1))(*pointers, 5))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
