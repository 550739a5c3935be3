"""Llama with another feed-forward layer: squared ReLU (Primer: So et al. 2021, arXiv:2109.08668)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.op import pointwise
from infernum.models import llama
from infernum.models.family import Family
from infernum.models.llama import LlamaConfig
from infernum.ops import add, dense, rms_norm


@pointwise("fmaxf({x}, 0.0f) * fmaxf({x}, 0.0f)", flops=2)
def relu2(x: np.ndarray) -> np.ndarray:
    """max(x, 0)²."""
    return np.square(np.maximum(x, 0))


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Relu2Config) -> Tensor:
    h = rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    x = add(x, llama.self_attention(h, batch, w.under("self_attn."), cfg))
    h = rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    up = dense(h, w, "mlp.up_proj", cfg.intermediate_size)
    return add(x, dense(relu2(up), w, "mlp.down_proj", cfg.hidden_size))


@dataclass(frozen=True)
class Relu2Config(LlamaConfig):
    """A Llama's settings; its feed-forward layer has no gate."""

    model_type: ClassVar[str] = "llama_relu2"


FAMILY = Family(configs=(Relu2Config,), first=llama.embed, layer=lambda cfg, index: decoder, last=llama.head)
