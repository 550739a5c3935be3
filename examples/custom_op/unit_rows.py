"""An op with a kernel of its own, unit_rows.cu.j2 beside this file, and a Llama that begins with it, as nGPT does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.kernel import Call, Target, Template
from infernum.ir.op import elements, op
from infernum.models import llama
from infernum.models.llama import LlamaConfig
from infernum.ops import embedding


def _constants(call: Call, target: Target) -> Mapping[str, int]:
    width = call.operands["x"].width
    return {"WIDTH": width, "VECTOR": next(v for v in (8, 4, 2, 1) if width % v == 0), "THREADS": 256}


@op(
    "tokens width -> tokens width",
    kernels=[
        Template(
            "unit_rows",
            grid=("tokens", 1, 1),
            block="THREADS",
            constants=_constants,
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
