"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219, arXiv:2412.08905): fused projections, LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.models.activations import ACTIVATIONS
from infernum.models.config_fields import fixed, integer, number, read_by
from infernum.models.family import Family
from infernum.models.fields import Fields
from infernum.models.llama import WindowConfig, attended, embed, head
from infernum.models.rope_fields import read_rope
from infernum.ops import add, dense, heads, linear, mul, rms_norm, turn
from infernum.rope import Rope


def rope_of_phi3(fields: Fields, config: Any) -> Rope:
    """The rotary embedding. LongRoPE needs the original context beside its object: transformers reads no other."""
    rope = read_rope(fields, config.head_dim, config.max_position_embeddings, default_partial=1.0)
    if rope.kind == "longrope" and fields.get("original_max_position_embeddings") is None:
        raise fields.missing("original_max_position_embeddings")
    return rope


@dataclass(frozen=True)
class Phi3Config(WindowConfig):
    """The settings of a Phi-3. Where `sliding_window` is absent, there is no window."""

    model_type: ClassVar[str] = "phi3"
    ignored = WindowConfig.ignored | {"auto_map", "original_max_position_embeddings"}

    rms_norm_eps: float = number(1e-5)
    max_position_embeddings: int = integer(4096)
    rope: Rope = read_by(rope_of_phi3)
    attention_bias: bool = fixed(False)
    mlp_bias: bool = fixed(False)
    sliding_window: int | None = integer(None)


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Phi3Config, window: int = 0) -> Tensor:
    h = rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    x = add(x, self_attention(h, batch, w.under("self_attn."), cfg, window))
    h = rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return add(x, mlp(h, w.under("mlp."), cfg))


def self_attention(h: Tensor, batch: BatchInputs, w: Weights, cfg: Phi3Config, window: int) -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    sizes = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
    parts = fused(h, w, "qkv_proj", sizes, heads=dict.fromkeys(("k_proj", "v_proj"), cfg.num_key_value_heads))
    q, k, v = (heads(part, dim=cfg.head_dim) for part in parts)
    q, k = turn(q, batch, cfg.rope), turn(k, batch, cfg.rope.of_keys)
    return dense(attended(q, k, v, batch, cfg, window), w, "o_proj", cfg.hidden_size, shard="columns")


def mlp(h: Tensor, w: Weights, cfg: Phi3Config) -> Tensor:
    act = ACTIVATIONS[cfg.hidden_act]
    sizes = {"gate_proj": cfg.intermediate_size, "up_proj": cfg.intermediate_size}
    gate, up = fused(h, w, "gate_up_proj", sizes)
    return dense(mul(act(gate), up), w, "down_proj", cfg.hidden_size, shard="columns")


def fused(
    h: Tensor, w: Weights, name: str, sizes: Mapping[str, int], heads: Mapping[str, int] | None = None
) -> list[Tensor]:
    """A product with each part of the tensor `name`, whose rows are parts of these names and `sizes`, in order.

    Each part is divided among the ranks. `heads`: number of heads of the parts that are heads of keys or values.
    """
    ends = pairwise(accumulate(sizes.values(), initial=0))
    shape, whole = (sum(sizes.values()), int(h.shape[-1])), heads or {}
    return [
        linear(
            h,
            w.rows(
                part, f"{name}.weight", *shape, start=start, stop=stop, shard="rows", heads=whole.get(part, 0)
            ),
        )
        for part, (start, stop) in zip(sizes, ends, strict=True)
    ]


def layer_of(cfg: Phi3Config, index: int) -> Block:
    return decoder.of(window=window) if (window := cfg.window(index)) else decoder


FAMILY = Family(configs=(Phi3Config,), first=embed, layer=layer_of, last=head)
