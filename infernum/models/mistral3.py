"""Mistral 3, which also sees images, of which only the text model is read; and Ministral 3 (arXiv:2601.08584)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from infernum.models import llama
from infernum.models.config_fields import flag, integer, number, read_by, width_per_head
from infernum.models.family_config import Nested
from infernum.models.fields import Fields
from infernum.models.llama import MistralConfig
from infernum.models.multimodal import IMAGE_FIELDS, TEXT_TENSORS
from infernum.models.rope_fields import read_rope
from infernum.rope import Rope


def rope_of_ministral3(fields: Fields, config: Any) -> Rope:
    """YaRN, and queries scaled by position, also where the fields are absent."""
    if fields.child("rope_parameters") is None and fields.child("rope_scaling") is None:
        return Rope("yarn", theta=1e6, factor=16.0, original_max_position=16384, beta=0.1)
    return read_rope(fields, config.head_dim, config.max_position_embeddings, scaled_queries=True)


@dataclass(frozen=True)
class Ministral3Config(MistralConfig):
    """Ministral 3: queries are scaled by position beyond the original context, and no window unless given."""

    model_type: ClassVar[str] = "ministral3"

    head_dim: int = integer(128, null=width_per_head, maximum=65536, even="rotary embedding turns pairs")
    rms_norm_eps: float = number(1e-5)
    max_position_embeddings: int = integer(262144)
    rope: Rope = read_by(rope_of_ministral3)
    sliding_window: int | None = integer(None)


@dataclass(frozen=True)
class Mistral3Config(MistralConfig):
    """The text model of a Mistral 3, which also sees images: a Mistral, or a Ministral 3."""

    model_type: ClassVar[str] = "mistral3"
    nested = Nested(model_types=("mistral", "ministral3"))
    tensor_beginnings = TEXT_TENSORS
    ignored = MistralConfig.ignored | IMAGE_FIELDS

    tie_word_embeddings: bool | None = flag(None, outside=True)

    @classmethod
    def from_hf(cls, fields: Mapping[str, object]) -> Self:
        """Read a config.json, with the defaults of the text model's model_type."""
        outer = fields if isinstance(fields, Fields) else Fields(fields, "config.json")
        if cls.holder(outer).get("model_type") == "ministral3":
            return cls(**vars(_TextOfMinistral3.from_hf(outer)))
        return super().from_hf(outer)


@dataclass(frozen=True)
class _TextOfMinistral3(Ministral3Config):
    model_type: ClassVar[str] = "mistral3"
    nested = Mistral3Config.nested
    tensor_beginnings = TEXT_TENSORS
    ignored = Mistral3Config.ignored

    tie_word_embeddings: bool | None = flag(None, outside=True)


FAMILY = replace(llama.FAMILY, configs=(Ministral3Config, Mistral3Config))
