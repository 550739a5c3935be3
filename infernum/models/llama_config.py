"""What a config.json of model_type "llama" means: Llama 1 to 3.2, and everything that was built like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infernum.models.config_fields import flag, integer, number, read_by, stored_dtype, width_per_head
from infernum.models.family_config import FamilyConfig
from infernum.models.fields import Unsupported
from infernum.models.known_fields import ARCHITECTURE
from infernum.models.rope_fields import read_rope
from infernum.rope import Rope


@dataclass(frozen=True)
class LlamaConfig(FamilyConfig):
    """The settings of a Llama, under the names that transformers gives them, with the defaults of its LlamaConfig.

    head_dim need not be hidden_size / num_attention_heads. `attention_bias` puts a bias on the q, k, v and o
    projections, `mlp_bias` on gate, up and down.
    """

    model_type: ClassVar[str] = "llama"
    refused = ARCHITECTURE | {
        "hidden_act": Unsupported("Llama's activation is silu", ("silu", "swish")),
        "pretraining_tp": Unsupported(
            "the products of sliced weights are not implemented; set it to 1", (1,)
        ),
        "rope_interleaved": Unsupported("heads must be rotated by halves, not by neighbours", (False,)),
        "layer_types": Unsupported("every layer must be full_attention", each=("full_attention",)),
    }

    vocab_size: int = integer()
    hidden_size: int = integer()
    intermediate_size: int = integer()
    num_hidden_layers: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    head_dim: int = integer(width_per_head, even="rotary embedding turns pairs")
    rms_norm_eps: float = number(1e-6)
    rope: Rope = read_by(lambda fields, c: read_rope(fields))
    attention_bias: bool = flag(False)
    mlp_bias: bool = flag(False)
    tie_word_embeddings: bool = flag(False, outside=True)
    max_position_embeddings: int = integer(2048)
    dtype: str = stored_dtype()
