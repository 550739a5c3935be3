"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): norms stand behind the layers, and over all heads of q and of k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.models.config_fields import fixed, number
from infernum.models.family import Family
from infernum.models.llama import LlamaConfig, attended, embed, head, mlp
from infernum.ops import add, dense, heads, rms_norm, turn


@dataclass(frozen=True)
class Olmo2Config(LlamaConfig):
    """The settings of an OLMo 2: a Llama's, with another default."""

    model_type: ClassVar[str] = "olmo2"

    rms_norm_eps: float = number(1e-5)
    mlp_bias: bool = fixed(False)


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Olmo2Config) -> Tensor:
    a = self_attention(x, batch, w.under("self_attn."), cfg)
    x = add(x, normed(a, "post_attention_layernorm", w, cfg))
    return add(x, normed(mlp(x, w.under("mlp."), cfg), "post_feedforward_layernorm", w, cfg))


def self_attention(x: Tensor, batch: BatchInputs, w: Weights, cfg: Olmo2Config) -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    q = normed(dense(x, w, "q_proj", query_size, bias=cfg.attention_bias), "q_norm", w, cfg)
    k = normed(dense(x, w, "k_proj", kv_size, bias=cfg.attention_bias), "k_norm", w, cfg)
    v = dense(x, w, "v_proj", kv_size, bias=cfg.attention_bias)
    q, k, v = (heads(part, dim=cfg.head_dim) for part in (q, k, v))
    q, k = turn(q, batch, cfg.rope), turn(k, batch, cfg.rope.of_keys)
    return dense(attended(q, k, v, batch, cfg, 0), w, "o_proj", cfg.hidden_size, bias=cfg.attention_bias)


def normed(x: Tensor, name: str, w: Weights, cfg: Olmo2Config) -> Tensor:
    width = x.shape[-1]
    assert isinstance(width, int)
    return rms_norm(x, w.tensor(f"{name}.weight", width), eps=cfg.rms_norm_eps)


FAMILY = Family(configs=(Olmo2Config,), first=embed, layer=lambda cfg, index: decoder, last=head)
