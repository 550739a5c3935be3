"""What a config.json of model_type "llama" means: Llama 1 to 3.2, and everything that was built like them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar, Self, cast

import msgspec

from infernum.dtypes import BF16, F16, F32, dtype
from infernum.errors import ConfigError, DTypeError
from infernum.models.fields import Fields, Unsupported
from infernum.models.known_fields import ARCHITECTURE
from infernum.models.rope_fields import read_rope
from infernum.rope import Rope

STORED = (F32, F16, BF16)

_UNSUPPORTED = ARCHITECTURE | {
    "hidden_act": Unsupported("Llama's activation is silu", ("silu", "swish")),
    "pretraining_tp": Unsupported("the products of sliced weights are not implemented; set it to 1", (1,)),
    "rope_interleaved": Unsupported("heads must be rotated by halves, not by neighbours", (False,)),
}


@dataclass(frozen=True)
class LlamaConfig:
    """The settings of a Llama, under the names that transformers gives them.

    head_dim need not be hidden_size / num_attention_heads. `attention_bias` puts a bias on the q, k, v and o
    projections, `mlp_bias` on gate, up and down. `dtype` is the short name of the type the weights are stored
    in. Raises ConfigError for sizes that do not fit together.
    """

    model_type: ClassVar[str] = "llama"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    dtype: str

    def __post_init__(self) -> None:
        for field in dataclass_fields(self):
            value: object = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{field.name} = {value} must be an integer, 1 or more")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads = {self.num_attention_heads} must be a multiple of"
                f" num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim} must be even: rotary embedding turns pairs")
        if not (self.rms_norm_eps > 0 and math.isfinite(self.rms_norm_eps)):
            raise ConfigError(f"rms_norm_eps = {self.rms_norm_eps} must be a number greater than 0")
        if self.dtype not in [d.name for d in STORED]:
            raise ConfigError(f"dtype = {self.dtype!r} must be one of {', '.join(d.name for d in STORED)}")

    @classmethod
    def from_hf(cls, fields: Mapping[str, object]) -> Self:
        """The settings in a config.json; absent fields have the defaults of transformers' LlamaConfig.

        Raises ConfigError for a missing size, a wrong type, or something asked for that is not implemented.
        """
        fields = Fields.of(fields)
        fields.refuse(_UNSUPPORTED)
        _check_layer_types(fields)
        hidden_size = fields.integer("hidden_size")
        heads = fields.integer("num_attention_heads")
        if fields.get("head_dim") is None and hidden_size % heads:
            problem = f"must be a multiple of num_attention_heads = {heads} when head_dim is not given"
            raise fields.error("hidden_size", problem)
        settings: dict[str, Any] = {
            "vocab_size": fields.integer("vocab_size"),
            "hidden_size": hidden_size,
            "intermediate_size": fields.integer("intermediate_size"),
            "num_hidden_layers": fields.integer("num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": fields.integer("num_key_value_heads", default=heads),
            "head_dim": fields.integer("head_dim", default=hidden_size // heads),
            "rms_norm_eps": fields.number("rms_norm_eps", default=1e-6),
            "rope": read_rope(fields),
            "attention_bias": fields.flag("attention_bias", default=False),
            "mlp_bias": fields.flag("mlp_bias", default=False),
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=False),
            "max_position_embeddings": fields.integer("max_position_embeddings", default=2048),
            "dtype": _stored_dtype(fields),
        }
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(f"{fields.where}: {error}") from None

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Undo `to_json`. Raises ConfigError when fields are missing, unknown or of the wrong type."""
        wanted = {field.name for field in dataclass_fields(cls)}
        if odd := set(data) ^ wanted:
            names = ", ".join(sorted(odd))
            raise ConfigError(f"model configuration: missing or unknown: {names}; compile the model again")
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"model configuration: {error}; compile the model again") from None

    def to_json(self) -> dict[str, object]:
        """All fields as plain JSON values; `rope` as an object."""
        return asdict(self)


def _check_layer_types(fields: Fields) -> None:
    kinds = fields.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or any(kind != "full_attention" for kind in cast("list[object]", kinds))
    ):
        raise fields.error("layer_types", "is not supported: every layer must be full_attention")


def _stored_dtype(fields: Fields) -> str:
    """transformers 5 writes `dtype`, which wins; 4 wrote `torch_dtype`. float32 without either."""
    names = [name for name in ("dtype", "torch_dtype") if fields.get(name) is not None]
    if not names:
        return F32.name
    try:
        found = dtype(fields.text(names[0]))
    except DTypeError:
        found = None
    if found not in STORED:
        raise fields.error(names[0], f"is not supported; use one of {', '.join(d.long_name for d in STORED)}")
    return found.name


Config = LlamaConfig
