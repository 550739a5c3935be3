"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783), and the model types of its architecture.

The blocks stand first. Below them, each further model type is a configuration: what it declares is what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from infernum.errors import ConfigError
from infernum.ir.block import BatchInputs, Block, Shard, Tensor, Weights, block
from infernum.models.activations import ACTIVATIONS
from infernum.models.config_fields import (
    fixed,
    flag,
    integer,
    integers,
    number,
    read_by,
    stored_dtype,
    text,
    texts,
    width_per_head,
)
from infernum.models.family import Family
from infernum.models.family_config import FamilyConfig
from infernum.models.fields import Fields, Unsupported
from infernum.models.known_fields import ARCHITECTURE
from infernum.models.rope_fields import read_rope
from infernum.ops import (
    add,
    append,
    attention,
    dense,
    embedding,
    flatten,
    gathered,
    heads,
    linear,
    mul,
    rms_norm,
    scale,
    select_rows,
    turn,
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
        "rope_interleaved": Unsupported("heads must be rotated by halves, not by neighbours", (False,)),
        "layer_types": Unsupported("every layer must be full_attention", each=("full_attention",)),
    }
    # pretraining_tp computes products in slices and changes only the order of sums. max_window_layers has no effect
    # without a window.
    ignored = frozenset({"pretraining_tp", "max_window_layers"})

    vocab_size: int = integer()
    hidden_size: int = integer()
    intermediate_size: int = integer()
    num_hidden_layers: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    head_dim: int = integer(width_per_head, maximum=65536, even="rotary embedding turns pairs")
    hidden_act: str = text("silu", one_of=tuple(ACTIVATIONS))
    rms_norm_eps: float = number(1e-6)
    max_position_embeddings: int = integer(2048)
    rope: Rope = read_by(lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings))
    attention_bias: bool = flag(False)
    mlp_bias: bool = flag(False)
    tie_word_embeddings: bool | None = flag(False, outside=True)
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

    def window(self, layer: int) -> int:
        """Number of tokens that a token of this layer attends to, itself among them; 0: all tokens before it."""
        del layer
        return 0


@block()
def embed(*, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    x = embedding(batch.token_ids, vocabulary_table("model.embed_tokens.weight", w, cfg))
    return scaled(x, cfg.factors.embeddings)


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(
    x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig, rope: bool = True, window: int = 0
) -> Tensor:
    h = rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    a = self_attention(h, batch, w.under("self_attn."), cfg, turned=rope, window=window)
    x = add(x, scaled(a, cfg.factors.added))
    h = rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return add(x, scaled(mlp(h, w.under("mlp."), cfg), cfg.factors.added))


def self_attention(
    h: Tensor, batch: BatchInputs, w: Weights, cfg: LlamaConfig, *, turned: bool = True, window: int = 0
) -> Tensor:
    query_size, kv_size = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    q = dense(h, w, "q_proj", query_size, bias=cfg.attention_bias, shard="rows")
    k = dense(h, w, "k_proj", kv_size, bias=cfg.attention_bias, shard="rows", heads=cfg.num_key_value_heads)
    v = dense(h, w, "v_proj", kv_size, bias=cfg.attention_bias, shard="rows", heads=cfg.num_key_value_heads)
    q, k, v = (heads(part, dim=cfg.head_dim) for part in (q, k, v))
    if cfg.normed_heads:
        q = rms_norm(q, w.tensor("q_norm.weight", cfg.head_dim), eps=cfg.rms_norm_eps)
        k = rms_norm(k, w.tensor("k_norm.weight", cfg.head_dim), eps=cfg.rms_norm_eps)
    if turned:
        q = turn(q, batch, cfg.rope)
        k = turn(k, batch, cfg.rope.of_keys)
    a = attended(q, k, v, batch, cfg, window)
    return dense(a, w, "o_proj", cfg.hidden_size, bias=cfg.output_bias, shard="columns")


def attended(q: Tensor, k: Tensor, v: Tensor, batch: BatchInputs, cfg: LlamaConfig, window: int) -> Tensor:
    """Attention of q [tokens, heads, dim] to the cache, to which k and v are appended -> [tokens, heads * dim]."""
    cache = batch.kv(int(k.shape[1]), cfg.head_dim)
    kv = append(cache, k, v, batch.positions, batch.sequence, batch.page_table)
    facts = batch.positions, batch.sequence, batch.query_start, batch.page_table
    return flatten(attention(q, kv, *facts, scale=cfg.factors.scores, window=window))


def mlp(h: Tensor, w: Weights, cfg: LlamaConfig) -> Tensor:
    act = ACTIVATIONS[cfg.hidden_act]
    gate = dense(h, w, "gate_proj", cfg.intermediate_size, bias=cfg.mlp_bias, shard="rows")
    up = dense(h, w, "up_proj", cfg.intermediate_size, bias=cfg.mlp_bias, shard="rows")
    return dense(mul(act(gate), up), w, "down_proj", cfg.hidden_size, bias=cfg.mlp_bias, shard="columns")


def layer_of(cfg: LlamaConfig, index: int) -> Block:
    """The decoder of a layer: one compiled block for all layers of a kind."""
    rope = {} if cfg.turns(index) else {"rope": False}
    window = {"window": length} if (length := cfg.window(index)) else {}
    return decoder.of(**rope, **window)


@block(x="tokens hidden_size")
def head(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: LlamaConfig) -> Tensor:
    x = select_rows(x, batch.output_rows)
    h = rms_norm(x, w.tensor("model.norm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    table = vocabulary_table("lm_head.weight", w, cfg, shard="rows")
    return gathered(scaled(linear(h, table, out="f32"), cfg.factors.logits), cfg.vocab_size)


def scaled(x: Tensor, by: float) -> Tensor:
    """x times a constant; x itself, without an op, where the constant is 1."""
    return x if by == 1 else scale(x, by=by)


def vocabulary_table(name: str, w: Weights, cfg: Any, shard: Shard | None = None) -> Tensor:
    """Embedding or head [vocab_size, hidden_size]. Tied, they are one tensor, stored under either name.

    Where config.json does not say, they are tied unless the checkpoint has both. A vocabulary that does not divide
    among the ranks is whole on each.
    """
    shard = shard if cfg.vocab_size % w.ranks == 0 else None
    match cfg.tie_word_embeddings:
        case True:
            names = ("model.embed_tokens.weight", "lm_head.weight")
        case False:
            names = (name,)
        case _:
            names = tuple(dict.fromkeys((name, "model.embed_tokens.weight")))
    return w.tensor(names[0], cfg.vocab_size, cfg.hidden_size, alternatives=names[1:], shard=shard)


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


def _has_no_window(value: object, fields: Mapping[str, object]) -> bool:
    """True where the window is null, so that no other field about windows has an effect."""
    del value
    return "sliding_window" in fields and fields["sliding_window"] is None


@dataclass(frozen=True)
class WindowConfig(LlamaConfig):
    """A model whose tokens attend to the last `sliding_window` tokens, themselves among them; null: to all.

    A window as long as the context has no effect.
    """

    refused = dict(LlamaConfig.refused) | {
        "layer_types": Unsupported(
            "all layers of this model type have the window; in a ministral they may differ",
            each=("sliding_attention",),
            unless=_has_no_window,
        ),
        "use_sliding_window": Unsupported(
            "in this model type, null in sliding_window is no window", (True,), unless=_has_no_window
        ),
    }

    sliding_window: int | None = integer(4096, null=None)

    def slides(self, layer: int) -> bool:
        """True: this layer has the window."""
        del layer
        return True

    def window(self, layer: int) -> int:
        length = self.sliding_window
        return length if length and length < self.max_position_embeddings and self.slides(layer) else 0


@dataclass(frozen=True)
class MistralConfig(WindowConfig):
    """Mistral (Jiang et al. 2023, arXiv:2310.06825). Where `sliding_window` is absent, it is 4096."""

    model_type: ClassVar[str] = "mistral"

    num_key_value_heads: int = integer(8, null=lambda c: c.num_attention_heads)
    attention_bias: bool = fixed(False)
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(131072)


@dataclass(frozen=True)
class LayerTypesConfig(WindowConfig):
    """A model in which some layers have the window: those that `layer_types` calls "sliding_attention"."""

    layer_types: tuple[str, ...] | None = texts(
        None, one_of=("full_attention", "sliding_attention"), length="num_hidden_layers"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is None and "sliding_attention" in (self.layer_types or ()):
            raise ConfigError(
                "layer_types has sliding_attention, but there is no sliding_window, or it is switched off"
            )

    def slides(self, layer: int) -> bool:
        return (
            self.layer_types[layer] == "sliding_attention" if self.layer_types else self.slides_unnamed(layer)
        )

    def slides_unnamed(self, layer: int) -> bool:
        """True: this layer has the window where `layer_types` is absent."""
        del layer
        return True


@dataclass(frozen=True)
class MinistralConfig(LayerTypesConfig):
    """Ministral: a Mistral whose layers may differ. Where `layer_types` is absent, all have the window."""

    model_type: ClassVar[str] = "ministral"

    num_key_value_heads: int = integer(8, null=lambda c: c.num_attention_heads)
    attention_bias: bool = fixed(False)
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(131072)


def window_of_qwen(fields: Fields, config: object) -> int | None:
    """The window where `use_sliding_window` is true: 4096 where it is absent, and none where it is null."""
    del config
    return None if _has_no_window(None, fields) else fields.integer("sliding_window", 4096)


@dataclass(frozen=True)
class QwenConfig(LayerTypesConfig):
    """What Qwen 2 and 3 share: layers from `max_window_layers` on have a window, where `use_sliding_window` is true."""

    num_key_value_heads: int = integer(32, null=lambda c: c.num_attention_heads)
    mlp_bias: bool = fixed(False)
    max_position_embeddings: int = integer(32768)
    sliding_window: int | None = read_by(window_of_qwen, None, when="use_sliding_window")
    max_window_layers: int = integer(28, minimum=0)

    def slides_unnamed(self, layer: int) -> bool:
        return layer >= self.max_window_layers


@dataclass(frozen=True)
class Qwen2Config(QwenConfig):
    """Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115): biases of q, k and v, and none of o."""

    model_type: ClassVar[str] = "qwen2"

    attention_bias: bool = fixed(True)

    @property
    def output_bias(self) -> bool:
        return False


@dataclass(frozen=True)
class Qwen3Config(QwenConfig):
    """Qwen 3 (Yang et al. 2025, arXiv:2505.09388): norms of the heads of q and k, with one weight for all heads.

    A head has 128 elements unless head_dim says otherwise.
    """

    model_type: ClassVar[str] = "qwen3"
    normed_heads: ClassVar[bool] = True

    head_dim: int = integer(128, maximum=65536, even="rotary embedding turns pairs")


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
class SmolLM3Config(LayerTypesConfig):
    """SmolLM3: some layers do not rotate queries and keys. `no_rope_layers` has 1 for a layer that does, and else 0.

    Where `use_sliding_window` is true, the layers that do not rotate have the window, unless `layer_types` says else.
    """

    model_type: ClassVar[str] = "smollm3"

    num_key_value_heads: int = integer(4, null=lambda c: c.num_attention_heads)
    rope: Rope = read_by(
        lambda fields, c: read_rope(fields, c.head_dim, c.max_position_embeddings, default_theta=2e6)
    )
    tie_word_embeddings: bool | None = flag(True, outside=True)
    max_position_embeddings: int = integer(32768)
    sliding_window: int | None = integer(None, when="use_sliding_window")
    no_rope_layer_interval: int = integer(4)
    no_rope_layers: tuple[int, ...] = integers(rotated_layers, length="num_hidden_layers")

    def turns(self, layer: int) -> bool:
        return bool(self.no_rope_layers[layer])

    def slides_unnamed(self, layer: int) -> bool:
        return not self.turns(layer)


FAMILY = Family(
    configs=(
        LlamaConfig,
        GraniteConfig,
        MinistralConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        SeedOssConfig,
        SmolLM3Config,
    ),
    first=embed,
    layer=layer_of,
    last=head,
)
