"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783), and the model types of its architecture.

The blocks stand first. Below them, each further model type is a configuration: what it declares is what it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infernum.errors import ConfigError
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.models.config_fields import (
    fixed,
    flag,
    integer,
    integers,
    number,
    read_by,
    stored_dtype,
    width_per_head,
)
from infernum.models.family import Family
from infernum.models.family_config import FamilyConfig
from infernum.models.fields import Unsupported
from infernum.models.known_fields import ARCHITECTURE, SWITCHED_WINDOW
from infernum.models.rope_fields import read_rope
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
    scale,
    select_rows,
    silu,
)
from infernum.rope import Rope


@dataclass(frozen=True)
class Factors:
    """The constants by which a model multiplies: scores of attention, embeddings, what a layer adds, and logits."""

    scores: float
    embeddings: float = 1.0
    added: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class LlamaConfig(FamilyConfig):
    """The settings of a Llama, under the names that transformers gives them, with the defaults of its LlamaConfig.

    head_dim need not be hidden_size / num_attention_heads. `attention_bias` puts a bias on the q, k, v and o
    projections, `mlp_bias` on gate, up and down.
    """

    model_type: ClassVar[str] = "llama"
    normed_heads: ClassVar[bool] = False
    """True: each head of q and k is normalised before it is rotated."""
    refused = ARCHITECTURE | {
        "hidden_act": Unsupported("Llama's activation is silu", ("silu", "swish")),
        "rope_interleaved": Unsupported("heads must be rotated by halves, not by neighbours", (False,)),
        "layer_types": Unsupported("every layer must be full_attention", each=("full_attention",)),
    }
    # pretraining_tp computes products in slices and changes only the order of sums. max_window_layers has no effect
    # without a window, and windows are rejected.
    ignored = frozenset({"pretraining_tp", "max_window_layers"})

    vocab_size: int = integer()
    hidden_size: int = integer()
    intermediate_size: int = integer()
    num_hidden_layers: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    head_dim: int = integer(width_per_head, maximum=65536, even="rotary embedding turns pairs")
    rms_norm_eps: float = number(1e-6)
    max_position_embeddings: int = integer(2048)
    rope: Rope = read_by(lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings))
    attention_bias: bool = flag(False)
    mlp_bias: bool = flag(False)
    tie_word_embeddings: bool = flag(False, outside=True)
    dtype: str = stored_dtype()

    @property
    def output_bias(self) -> bool:
        """True: the o projection has a bias."""
        return self.attention_bias

    @property
    def factors(self) -> Factors:
        return Factors(scores=self.head_dim**-0.5)

    def turns(self, layer: int) -> bool:
        """True: queries and keys of this layer are rotated."""
        del layer
        return True


@block()
def embed(*, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    x = embedding(batch.token_ids, vocabulary_table("model.embed_tokens.weight", w, cfg))
    return scaled(x, cfg.factors.embeddings)


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig, rope: bool = True) -> Tensor:
    h = rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    x = add(x, scaled(self_attention(h, batch, w.under("self_attn."), cfg, turned=rope), cfg.factors.added))
    h = rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return add(x, scaled(mlp(h, w.under("mlp."), cfg), cfg.factors.added))


def self_attention(
    h: Tensor, batch: BatchInputs, w: Weights, cfg: LlamaConfig, *, turned: bool = True
) -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    q = heads(dense(h, w, "q_proj", query_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    k = heads(dense(h, w, "k_proj", kv_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    v = heads(dense(h, w, "v_proj", kv_size, bias=cfg.attention_bias), dim=cfg.head_dim)
    if cfg.normed_heads:
        q = rms_norm(q, w.tensor("q_norm.weight", cfg.head_dim), eps=cfg.rms_norm_eps)
        k = rms_norm(k, w.tensor("k_norm.weight", cfg.head_dim), eps=cfg.rms_norm_eps)
    if turned:
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
        q, kv, batch.positions, batch.sequence, batch.query_start, batch.page_table, scale=cfg.factors.scores
    )
    return dense(flatten(a), w, "o_proj", cfg.hidden_size, bias=cfg.output_bias)


def mlp(h: Tensor, w: Weights, cfg: LlamaConfig) -> Tensor:
    gate = dense(h, w, "gate_proj", cfg.intermediate_size, bias=cfg.mlp_bias)
    up = dense(h, w, "up_proj", cfg.intermediate_size, bias=cfg.mlp_bias)
    return dense(mul(silu(gate), up), w, "down_proj", cfg.hidden_size, bias=cfg.mlp_bias)


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    x = select_rows(x, batch.output_rows)
    h = rms_norm(x, w.tensor("model.norm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    table = vocabulary_table("lm_head.weight", w, cfg)
    return scaled(linear(h, table, out="f32"), cfg.factors.logits)


def scaled(x: Tensor, by: float) -> Tensor:
    """x times a constant; x itself, without an op, where the constant is 1."""
    return x if by == 1 else scale(x, by=by)


def vocabulary_table(name: str, w: Weights, cfg: LlamaConfig) -> Tensor:
    """Embedding or head [vocab_size, hidden_size]. Tied, they are one tensor, stored under either name."""
    names = ("model.embed_tokens.weight", "lm_head.weight") if cfg.tie_word_embeddings else (name,)
    return w.tensor(names[0], cfg.vocab_size, cfg.hidden_size, alternatives=names[1:])


@dataclass(frozen=True)
class GraniteConfig(LlamaConfig):
    """Granite 3 (arXiv:2408.13359): embeddings, what a layer adds, scores and logits each have a factor.

    `attention_multiplier` is the scale of the scores itself, and logits are divided by `logits_scaling`.
    """

    model_type: ClassVar[str] = "granite"

    embedding_multiplier: float = number(1.0)
    residual_multiplier: float = number(1.0)
    attention_multiplier: float = number(1.0)
    logits_scaling: float = number(1.0)

    @property
    def factors(self) -> Factors:
        added, logits = self.residual_multiplier, 1 / self.logits_scaling
        return Factors(self.attention_multiplier, self.embedding_multiplier, added, logits)


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Mistral (Jiang et al. 2023, arXiv:2310.06825). Where `sliding_window` is absent, it is 4096; null is no window.

    A window as long as the context has no effect. A shorter one is refused.
    """

    model_type: ClassVar[str] = "mistral"

    num_key_value_heads: int = integer(8, null=lambda c: c.num_attention_heads)
    attention_bias: bool = fixed(False)
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(131072)
    sliding_window: int | None = integer(4096, null=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is not None and self.sliding_window < self.max_position_embeddings:
            raise ConfigError(
                f"sliding_window = {self.sliding_window} is shorter than max_position_embeddings ="
                f" {self.max_position_embeddings}, and windows are not implemented; null is no window"
            )


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115): biases of q, k and v, and none of o.

    `sliding_window` has no effect without `use_sliding_window`.
    """

    model_type: ClassVar[str] = "qwen2"
    refused = dict(LlamaConfig.refused) | SWITCHED_WINDOW

    num_key_value_heads: int = integer(32, null=lambda c: c.num_attention_heads)
    attention_bias: bool = fixed(True)
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(32768)

    @property
    def output_bias(self) -> bool:
        return False


@dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Qwen 3 (Yang et al. 2025, arXiv:2505.09388): norms of the heads of q and k, with one weight for all heads.

    A head has 128 elements unless head_dim says otherwise. `sliding_window` has no effect without `use_sliding_window`.
    """

    model_type: ClassVar[str] = "qwen3"
    normed_heads: ClassVar[bool] = True
    refused = dict(LlamaConfig.refused) | SWITCHED_WINDOW

    num_key_value_heads: int = integer(32, null=lambda c: c.num_attention_heads)
    head_dim: int = integer(128, maximum=65536, even="rotary embedding turns pairs")
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(32768)


@dataclass(frozen=True)
class SeedOssConfig(LlamaConfig):
    """Seed-OSS: biases of q, k and v, and of o only with `attention_out_bias`. A head has 128 elements if not given."""

    model_type: ClassVar[str] = "seed_oss"
    ignored = LlamaConfig.ignored | {"residual_dropout"}

    num_key_value_heads: int = integer(8, null=lambda c: c.num_attention_heads)
    head_dim: int = integer(128, null=width_per_head, maximum=65536, even="rotary embedding turns pairs")
    attention_bias: bool = flag(True)
    attention_out_bias: bool = flag(False)
    max_position_embeddings: int = integer(524288)

    @property
    def output_bias(self) -> bool:
        return self.attention_out_bias


def rotated_layers(config: SmolLM3Config) -> tuple[int, ...]:
    """1 for each layer that is rotated; every no_rope_layer_interval-th layer, counted from 1, is not."""
    return tuple(
        int((layer + 1) % config.no_rope_layer_interval != 0) for layer in range(config.num_hidden_layers)
    )


@dataclass(frozen=True)
class SmolLM3Config(LlamaConfig):
    """SmolLM3: some layers do not rotate queries and keys. `no_rope_layers` has 1 for a layer that does, and else 0."""

    model_type: ClassVar[str] = "smollm3"
    refused = dict(LlamaConfig.refused) | SWITCHED_WINDOW

    num_key_value_heads: int = integer(4, null=lambda c: c.num_attention_heads)
    rope: Rope = read_by(
        lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings, default_theta=2e6)
    )
    tie_word_embeddings: bool = flag(True, outside=True)
    max_position_embeddings: int = integer(32768)
    no_rope_layer_interval: int = integer(4)
    no_rope_layers: tuple[int, ...] = integers(rotated_layers, length="num_hidden_layers")

    def turns(self, layer: int) -> bool:
        return bool(self.no_rope_layers[layer])


FAMILY = Family(
    configs=(
        LlamaConfig,
        GraniteConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        SeedOssConfig,
        SmolLM3Config,
    ),
    first=embed,
    layer=lambda cfg, index: decoder if cfg.turns(index) else decoder.of(rope=False),
    last=head,
)
