"""A norm that brings its own struct, include/offset_norm.cuh, and a Llama whose last norm it is, as in Gemma."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.kernel import Prologue
from infernum.ir.op import elements, op
from infernum.models import llama
from infernum.models.llama import LlamaConfig
from infernum.ops import linear, select_rows
from infernum.ops.norm import NORM, norm_types


@op(
    infer=norm_types,
    kernels=[NORM],
    prologue=Prologue("OffsetNorm", "offset_norm.cuh"),
    flops=lambda call: f"5 * {elements(call.operands['x'])}",
)
def offset_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """Scale each row of x to unit root-mean-square, then by 1 + weight (Gemma Team 2024, arXiv:2403.08295)."""
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * (1 + weight)


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: OffsetConfig) -> Tensor:
    x = select_rows(x, batch.output_rows)
    h = offset_norm(x, w.tensor("model.norm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return linear(h, w.tensor("lm_head.weight", cfg.vocab_size, cfg.hidden_size), out="f32")


@dataclass(frozen=True)
class OffsetConfig(LlamaConfig):
    """A Llama's settings."""

    model_type: ClassVar[str] = "llama_offset"


FAMILY = replace(llama.FAMILY, configs=(OffsetConfig,), last=head)
