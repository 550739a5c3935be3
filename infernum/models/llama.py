"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783): model_type `llama`."""

from __future__ import annotations

from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.models.family import Family
from infernum.models.llama_config import LlamaConfig
from infernum.ops import (
    add,
    append,
    attention,
    dense,
    embedding,
    flatten,
    heads,
    linear,
    mul,
    rms_norm,
    rope,
    select_rows,
    silu,
)


@block()
def embed(*, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    return embedding(batch.token_ids, w.tensor("model.embed_tokens.weight", cfg.vocab_size, cfg.hidden_size))


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    h = rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    x = add(x, self_attention(h, batch, w.under("self_attn."), cfg))
    h = rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return add(x, mlp(h, w.under("mlp."), cfg))


def self_attention(h: Tensor, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    q = heads(dense(h, w, "q_proj", query_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    k = heads(dense(h, w, "k_proj", kv_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    v = heads(dense(h, w, "v_proj", kv_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    q, k = (rope(heads_of, batch.positions, rope=cfg.rope) for heads_of in (q, k))
    kv = append(
        batch.kv(cfg.num_key_value_heads, cfg.head_dim),
        k,
        v,
        batch.positions,
        batch.sequence,
        batch.page_table,
    )
    a = attention(
        q, kv, batch.positions, batch.sequence, batch.query_start, batch.page_table, scale=cfg.head_dim**-0.5
    )
    return dense(flatten(a), w, "o_proj", cfg.hidden_size, bias=cfg.attention_bias)


def mlp(h: Tensor, w: Weights, cfg: LlamaConfig) -> Tensor:
    gate = dense(h, w, "gate_proj", cfg.intermediate_size, bias=cfg.mlp_bias)
    up = dense(h, w, "up_proj", cfg.intermediate_size, bias=cfg.mlp_bias)
    return dense(mul(silu(gate), up), w, "down_proj", cfg.hidden_size, bias=cfg.mlp_bias)


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    x = select_rows(x, batch.output_rows)
    h = rms_norm(x, w.tensor("model.norm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    name = "model.embed_tokens.weight" if cfg.tie_word_embeddings else "lm_head.weight"
    return linear(h, w.tensor(name, cfg.vocab_size, cfg.hidden_size), out="f32")


FAMILY = Family(configs=(LlamaConfig,), first=embed, layer=lambda cfg, index: decoder, last=head)
