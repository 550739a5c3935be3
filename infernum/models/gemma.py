"""Gemma (Gemma Team 2024, arXiv:2403.08295), Gemma 2 (arXiv:2408.00118) and Gemma 3 (2025, arXiv:2503.19786).

The blocks stand first. Below them, each model type is a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from infernum.dtypes import round_to
from infernum.errors import ConfigError
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.models.activations import ACTIVATIONS
from infernum.models.config_fields import fixed, flag, integer, number, read_by, stored_dtype, text, texts
from infernum.models.family import Family
from infernum.models.family_config import FamilyConfig, Nested
from infernum.models.fields import Unsupported
from infernum.models.known_fields import ARCHITECTURE
from infernum.models.llama import vocabulary_table
from infernum.models.multimodal import IMAGE_FIELDS, TEXT_TENSORS
from infernum.models.rope_fields import read_rope
from infernum.ops import (
    add,
    append,
    attention,
    dense,
    embedding,
    flatten,
    gathered,
    gelu_tanh,
    heads,
    linear,
    mul,
    rms_norm,
    scale,
    select_rows,
    softcap,
    turn,
)
from infernum.rope import Rope

KINDS = {"full_attention": "full", "sliding_attention": "sliding"}
"""The kinds of layers, by their names in `layer_types`."""


@block()
def embed(*, batch: BatchInputs, w: Weights, cfg: GemmaConfig) -> Tensor:
    """Embeddings times √hidden_size, which is rounded to the type of the model, as the model was trained."""
    x = embedding(batch.token_ids, vocabulary_table("model.embed_tokens.weight", w, cfg))
    (root,) = round_to(np.array([cfg.hidden_size**0.5], np.float32), w.dtype).tolist()
    return scale(x, by=root)


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: GemmaConfig) -> Tensor:
    """A layer of Gemma 1."""
    x = add(x, self_attention(norm(x, w, "input_layernorm", cfg), batch, w.under("self_attn."), cfg))
    return add(x, mlp(norm(x, w, "post_attention_layernorm", cfg), w.under("mlp."), cfg))


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def normed_decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: GemmaConfig, kind: str) -> Tensor:
    """A layer of Gemma 2 and 3, of the kind "full" or "sliding": norms stand before and behind both parts."""
    a = self_attention(norm(x, w, "input_layernorm", cfg), batch, w.under("self_attn."), cfg, kind)
    x = add(x, norm(a, w, "post_attention_layernorm", cfg))
    h = mlp(norm(x, w, "pre_feedforward_layernorm", cfg), w.under("mlp."), cfg)
    return add(x, norm(h, w, "post_feedforward_layernorm", cfg))


def norm(x: Tensor, w: Weights, name: str, cfg: GemmaConfig) -> Tensor:
    """x at unit root-mean-square, times 1 + weight."""
    return rms_norm(x, w.tensor(f"{name}.weight", int(x.shape[-1])), eps=cfg.rms_norm_eps, offset=1.0)


def self_attention(h: Tensor, batch: BatchInputs, w: Weights, cfg: GemmaConfig, kind: str = "full") -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    q = dense(h, w, "q_proj", query_size, bias=cfg.attention_bias, shard="rows")
    k = dense(h, w, "k_proj", kv_size, bias=cfg.attention_bias, shard="rows", heads=cfg.num_key_value_heads)
    v = dense(h, w, "v_proj", kv_size, bias=cfg.attention_bias, shard="rows", heads=cfg.num_key_value_heads)
    q, k, v = (heads(part, dim=cfg.head_dim) for part in (q, k, v))
    if cfg.normed_heads:
        q, k = norm(q, w, "q_norm", cfg), norm(k, w, "k_norm", cfg)
    rope = cfg.rope_of(kind)
    q, k = turn(q, batch, rope), turn(k, batch, rope.of_keys)
    cache = batch.kv(int(k.shape[1]), cfg.head_dim)
    kv = append(cache, k, v, batch.positions, batch.sequence, batch.page_table)
    step = batch.positions, batch.sequence, batch.query_start, batch.page_table
    a = attention(q, kv, *step, scale=cfg.score_scale, window=cfg.window(kind), softcap=cfg.caps[0])
    return dense(flatten(a), w, "o_proj", cfg.hidden_size, bias=cfg.attention_bias, shard="columns")


def mlp(h: Tensor, w: Weights, cfg: GemmaConfig) -> Tensor:
    gate = cfg.activations[cfg.activation](dense(h, w, "gate_proj", cfg.intermediate_size, shard="rows"))
    up = dense(h, w, "up_proj", cfg.intermediate_size, shard="rows")
    return dense(mul(gate, up), w, "down_proj", cfg.hidden_size, shard="columns")


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: GemmaConfig) -> Tensor:
    h = norm(select_rows(x, batch.output_rows), w, "model.norm", cfg)
    logits = linear(h, vocabulary_table("lm_head.weight", w, cfg, shard="rows"), out="f32")
    return gathered(softcap(logits, cap=cfg.caps[1]) if cfg.caps[1] else logits, cfg.vocab_size)


@dataclass(frozen=True)
class GemmaConfig(FamilyConfig):
    """The settings of a Gemma, with the defaults of transformers' GemmaConfig.

    Old files call the activation "gelu" and mean its approximation by a hyperbolic tangent.
    """

    model_type: ClassVar[str] = "gemma"
    activations: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = ACTIVATIONS | {"gelu": gelu_tanh}
    normed_heads: ClassVar[bool] = False
    """True: each head of q and k is normalised before it is rotated."""
    refused = ARCHITECTURE | {
        "use_bidirectional_attention": Unsupported("tokens attend to those before them only", (False,)),
        "hidden_activation": Unsupported("the activation is hidden_act", ("gelu_pytorch_tanh",)),
    }

    vocab_size: int = integer(256000)
    hidden_size: int = integer(3072)
    intermediate_size: int = integer(24576)
    num_hidden_layers: int = integer(28)
    num_attention_heads: int = integer(16, multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(16)
    head_dim: int = integer(256, maximum=65536, even="rotary embedding turns pairs")
    activation: str = text("gelu_pytorch_tanh", one_of=tuple(ACTIVATIONS), spelled=("hidden_act",))
    max_position_embeddings: int = integer(8192)
    rms_norm_eps: float = number(1e-6)
    rope: Rope = read_by(lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings))
    attention_bias: bool = flag(False)
    tie_word_embeddings: bool = flag(True, outside=True)
    dtype: str = stored_dtype()

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def caps(self) -> tuple[float, float]:
        """The caps of scores and of logits; 0: none."""
        return 0.0, 0.0

    def rope_of(self, kind: str) -> Rope:
        del kind
        return self.rope

    def window(self, kind: str) -> int:
        """Number of tokens that a token attends to in layers of a kind, itself among them; 0: all before it."""
        del kind
        return 0

    def layer(self, index: int) -> Block:
        del index
        return decoder


def alternating(config: Gemma2Config) -> tuple[str, ...]:
    """The type of each layer: every layer but each `sliding_window_pattern`-th, counted from 1, has the window."""
    sliding = [(layer + 1) % config.sliding_window_pattern for layer in range(config.num_hidden_layers)]
    return tuple("sliding_attention" if window else "full_attention" for window in sliding)


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """Gemma 2: every other layer has a window, scores and logits have caps, and norms stand behind both parts too."""

    model_type: ClassVar[str] = "gemma2"
    activations: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = ACTIVATIONS
    ignored = frozenset({"hidden_act", "_sliding_window_pattern"})

    hidden_size: int = integer(2304)
    intermediate_size: int = integer(9216)
    num_hidden_layers: int = integer(26)
    num_attention_heads: int = integer(8, multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(4)
    activation: str = text("gelu_pytorch_tanh", one_of=tuple(ACTIVATIONS), spelled=("hidden_activation",))
    query_pre_attn_scalar: float = number(256.0)
    sliding_window: int | None = integer(4096, null=None)
    sliding_window_pattern: int = fixed(2)
    layer_types: tuple[str, ...] = texts(alternating, one_of=tuple(KINDS), length="num_hidden_layers")
    attn_logit_softcapping: float | None = number(50.0, null=None)
    final_logit_softcapping: float | None = number(30.0, null=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is None and "sliding_attention" in self.layer_types:
            raise ConfigError(
                "sliding_window is null, but layer_types has sliding_attention; give the window"
            )

    @property
    def score_scale(self) -> float:
        return self.query_pre_attn_scalar**-0.5

    @property
    def caps(self) -> tuple[float, float]:
        return self.attn_logit_softcapping or 0.0, self.final_logit_softcapping or 0.0

    def window(self, kind: str) -> int:
        length = self.sliding_window or 0
        return length if kind == "sliding" and length < self.max_position_embeddings else 0

    def layer(self, index: int) -> Block:
        return normed_decoder.of(kind=KINDS[self.layer_types[index]])


@dataclass(frozen=True)
class Gemma3TextConfig(Gemma2Config):
    """Gemma 3: layers with a window have a rotary embedding of their own; the heads of q and k are normalised."""

    model_type: ClassVar[str] = "gemma3_text"
    normed_heads: ClassVar[bool] = True

    vocab_size: int = integer(262208)
    max_position_embeddings: int = integer(131072)
    rope: Rope = read_by(
        lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings, default_theta=1e6)
    )
    sliding_window_pattern: int = integer(6)
    attn_logit_softcapping: float | None = fixed(None)
    final_logit_softcapping: float | None = number(None)
    sliding_rope: Rope = read_by(
        lambda fields, c: read_rope(
            fields,
            c.head_dim,
            c.max_position_embeddings,
            layer_type="sliding_attention",
            theta="rope_local_base_freq",
            scaled=False,
        )
    )

    def rope_of(self, kind: str) -> Rope:
        return self.sliding_rope if kind == "sliding" else self.rope


@dataclass(frozen=True)
class Gemma3Config(Gemma3TextConfig):
    """The text model of a Gemma 3 that also sees images."""

    model_type: ClassVar[str] = "gemma3"
    nested = Nested("text_config", ("gemma3_text",))
    ignored = Gemma3TextConfig.ignored | IMAGE_FIELDS
    tensor_beginnings = TEXT_TENSORS

    final_logit_softcapping: float | None = fixed(None)


FAMILY = Family(
    configs=(GemmaConfig, Gemma2Config, Gemma3TextConfig, Gemma3Config),
    first=embed,
    layer=lambda cfg, index: cfg.layer(index),
    last=head,
)
