"""A pointwise op without a template, and a Llama whose head caps its logits with it, as Gemma 2 does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.op import pointwise
from infernum.models import llama
from infernum.models.llama import LlamaConfig


@pointwise("{cap} * tanhf({x} / {cap})", flops=3)
def soft_cap(x: np.ndarray, *, cap: float) -> np.ndarray:
    """x held within ±cap: cap · tanh(x / cap) (Gemma Team 2024, arXiv:2408.00118)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap))


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: CappedConfig) -> Tensor:
    return soft_cap(llama.head(x, batch=batch, w=w, cfg=cfg), cap=30.0)


@dataclass(frozen=True)
class CappedConfig(LlamaConfig):
    """A Llama's settings; the cap is always 30."""

    model_type: ClassVar[str] = "llama_capped"


FAMILY = replace(llama.FAMILY, configs=(CappedConfig,), last=head)
