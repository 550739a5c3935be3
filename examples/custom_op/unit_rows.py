"""An op with a kernel of its own, unit_rows.cu.j2 beside this file, and a Llama that begins with it, as nGPT does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, alternatives
from infernum.ir.op import elements, op
from infernum.models import llama
from infernum.models.llama import LlamaConfig
from infernum.ops import embedding


def _layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
    """The threads of a block: 256 unless `infernum tune` finds another number faster."""
    width = call.operands["x"].width
    vector = next(v for v in (8, 4, 2, 1) if width % v == 0)
    for values in alternatives(THREADS=(256, 128, 512)):
        yield Layout({"WIDTH": width, "VECTOR": vector}, values)


@op(
    "tokens width -> tokens width",
    kernels=[
        Template(
            "unit_rows",
            layouts=_layouts,
            grid=("tokens", 1, 1),
            threads="THREADS",
            includes=("numeric.cuh", "reduce.cuh", "programmatic.cuh"),
            symbols=(),
        )
    ],
    flops=lambda call: f"3 * {elements(call.operands['x'])}",
)
def unit_rows(x: np.ndarray, *, eps: float = 1e-12) -> np.ndarray:
    """Scale each row of x [tokens, width] to unit length (nGPT: Loshchilov et al. 2024, arXiv:2410.01131)."""
    return x / np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True) + np.float32(eps))


@block()
def embed(*, batch: BatchInputs, w: Weights, cfg: UnitConfig) -> Tensor:
    table = w.tensor("model.embed_tokens.weight", cfg.vocab_size, cfg.hidden_size)
    return unit_rows(embedding(batch.token_ids, table))


@dataclass(frozen=True)
class UnitConfig(LlamaConfig):
    """A Llama's settings."""

    model_type: ClassVar[str] = "llama_unit"


FAMILY = replace(llama.FAMILY, configs=(UnitConfig,), first=embed)
