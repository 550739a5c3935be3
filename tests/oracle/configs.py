"""The tiny models whose logits transformers has computed for us: what each is, and what it is there to catch.

A configuration is a plain dict, exactly what the checkpoint's `config.json` holds. Both spellings that
transformers has used occur: `rope_theta` + `rope_scaling` and `torch_dtype` (up to version 4),
`rope_parameters` and `dtype` (from version 5). Between them the cases cover 1, 2, 4 and 7 query heads per
KV head, head sizes from 16 to 128 and widths that are no multiple of any tile. transformers itself demands
that `hidden_size` be a multiple of the number of heads, even where `head_dim` is given and the two have
nothing to do with each other.
"""

from dataclasses import dataclass
from typing import Any, Literal

Config = dict[str, Any]
StorageDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class OracleCase:
    """One tiny model and how its checkpoint is stored."""

    name: str
    covers: str
    config: Config
    tokens: int  # length of the sequence: more than three pages of 64
    dtype: StorageDtype = "float32"
    shards: int = 1


def _llama(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    vocab: int,
    kv_heads: int | None = None,
    **rest: Any,
) -> Config:
    """The fields every case has; `rest` are further fields of config.json, under their own names.

    Without `kv_heads`, num_key_value_heads is absent.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **({} if kv_heads is None else {"num_key_value_heads": kv_heads}),
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **rest,
    }


def _model(architecture: str, model_type: str, **fields: Any) -> Config:
    """The fields of a model of Llama's architecture, under another model type."""
    return _llama(**fields) | {"architectures": [f"{architecture}ForCausalLM"], "model_type": model_type}


# 200 tokens with these values reach all three of llama3's bands: kept, blended and divided frequencies.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

CASES: tuple[OracleCase, ...] = (
    OracleCase(
        "plain",
        "one query head per KV head, untied; its config does not mention rope, head_dim or ties",
        _llama(
            hidden=120,
            intermediate=172,
            layers=2,
            heads=4,
            kv_heads=4,
            vocab=131,
            rms_norm_eps=1e-6,
            torch_dtype="float32",
        ),
        tokens=200,
    ),
    OracleCase(
        "llama31",
        "Llama 3.1's spelling: 4 query heads per KV head of 64, llama3 rope in rope_scaling, several EOS",
        _llama(
            hidden=128,
            intermediate=256,
            layers=2,
            heads=8,
            kv_heads=2,
            vocab=257,
            head_dim=64,
            rope_theta=500000.0,
            rope_scaling=_LLAMA3,
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=False,
            eos_token_id=[2, 3, 5],
            torch_dtype="float32",
        ),
        tokens=210,
    ),
    OracleCase(
        "llama32_tied",
        "as Llama 3.2: tied, 3 layers, llama3 rope in rope_parameters, dtype, as transformers 5 writes them",
        _llama(
            hidden=128,
            intermediate=172,
            layers=3,
            heads=4,
            kv_heads=1,
            vocab=1000,
            head_dim=64,
            rope_parameters={**_LLAMA3, "rope_theta": 500000.0},
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            dtype="float32",
        ),
        tokens=220,
    ),
    OracleCase(
        "seven_to_one",
        "7 query heads share one KV head of 64; query width 448 from hidden 112; llama3 rope",
        _llama(
            hidden=112,
            intermediate=100,
            layers=2,
            heads=7,
            kv_heads=1,
            vocab=131,
            head_dim=64,
            rope_parameters={**_LLAMA3, "rope_theta": 10000.0},
            dtype="float32",
        ),
        tokens=205,
    ),
    OracleCase(
        "fourteen_to_two",
        "14 query heads on 2 KV heads of 16, attention biases (o_proj's too), hidden 84 and intermediate 100",
        _llama(
            hidden=84,
            intermediate=100,
            layers=2,
            heads=14,
            kv_heads=2,
            vocab=257,
            head_dim=16,
            rope_theta=1000000.0,
            rope_scaling=None,
            attention_bias=True,
            torch_dtype="float32",
        ),
        tokens=217,
    ),
    OracleCase(
        "head_80",
        "heads of 80, linear rope in the oldest spelling (`type`), biases in the MLP only",
        _llama(
            hidden=120,
            intermediate=172,
            layers=2,
            heads=4,
            kv_heads=1,
            vocab=131,
            head_dim=80,
            rope_theta=10000.0,
            rope_scaling={"type": "linear", "factor": 2.5},
            attention_bias=False,
            mlp_bias=True,
            torch_dtype="float32",
        ),
        tokens=200,
    ),
    OracleCase(
        "head_128_tied",
        "heads of 128 from hidden 72, tied, linear rope in rope_parameters",
        _llama(
            hidden=72,
            intermediate=100,
            layers=2,
            heads=4,
            kv_heads=1,
            vocab=131,
            head_dim=128,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0},
            tie_word_embeddings=True,
            dtype="float32",
        ),
        tokens=230,
    ),
    OracleCase(
        "all_biases",
        "biases on all seven projections, 2 query heads per KV head, a large rms_norm_eps, default rope",
        _llama(
            hidden=64,
            intermediate=144,
            layers=2,
            heads=4,
            kv_heads=2,
            vocab=131,
            head_dim=64,
            rms_norm_eps=1e-2,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
            attention_bias=True,
            mlp_bias=True,
            dtype="float32",
        ),
        tokens=199,
    ),
    # Up to max_position_embeddings dynamic NTK scaling is the identity. transformers computes the base as
    # theta * (factor * n / max - (factor - 1)) ** (dim / (dim - 2)) with n = max(tokens, max): it is theta
    # then. A runtime that refuses longer sequences may therefore treat it as the default.
    OracleCase(
        "dynamic_in_range",
        "dynamic NTK rope below max_position_embeddings, where it equals the default; small heads of 32",
        _llama(
            hidden=96,
            intermediate=100,
            layers=2,
            heads=4,
            kv_heads=1,
            vocab=131,
            head_dim=32,
            max_position_embeddings=256,
            rope_theta=10000.0,
            rope_scaling={"rope_type": "dynamic", "factor": 4.0},
            torch_dtype="float32",
        ),
        tokens=224,
    ),
    OracleCase(
        "sharded",
        "three safetensors files behind an index, 3 layers, heads of 128 shared by 4",
        _llama(
            hidden=72,
            intermediate=136,
            layers=3,
            heads=8,
            kv_heads=2,
            vocab=257,
            head_dim=128,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            dtype="float32",
        ),
        tokens=201,
        shards=3,
    ),
    OracleCase(
        "stored_float16",
        "weights stored in float16; head_dim is hidden_size / heads and is not written down",
        _llama(
            hidden=128,
            intermediate=172,
            layers=2,
            heads=4,
            kv_heads=1,
            vocab=131,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            torch_dtype="float16",
        ),
        tokens=203,
        dtype="float16",
    ),
    OracleCase(
        "stored_bfloat16",
        "weights stored in bfloat16, llama3 rope, 7 query heads on each of 2 KV heads, two shards",
        _llama(
            hidden=112,
            intermediate=224,
            layers=2,
            heads=14,
            kv_heads=2,
            vocab=257,
            head_dim=64,
            rope_parameters={**_LLAMA3, "rope_theta": 500000.0},
            tie_word_embeddings=False,
            dtype="bfloat16",
        ),
        tokens=222,
        dtype="bfloat16",
        shards=2,
    ),
    OracleCase(
        "head_80_mha_tied",
        "one query head per KV head of 80, tied, all biases, llama3 rope with other factors",
        _llama(
            hidden=80,
            intermediate=100,
            layers=3,
            heads=2,
            kv_heads=2,
            vocab=131,
            head_dim=80,
            rope_theta=20000.0,
            rope_scaling={**_LLAMA3, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 6.0},
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            torch_dtype="float32",
        ),
        tokens=195,
    ),
    OracleCase(
        "granite",
        "Granite with four factors, all far from 1; 4 query heads per KV head",
        _model(
            "Granite",
            "granite",
            hidden=128,
            intermediate=172,
            layers=2,
            heads=8,
            kv_heads=2,
            vocab=131,
            embedding_multiplier=3.0,
            residual_multiplier=0.22,
            attention_multiplier=0.4,
            logits_scaling=0.3,
            rope_theta=10000.0,
            attention_bias=False,
            mlp_bias=False,
            torch_dtype="float32",
        ),
        tokens=204,
    ),
    OracleCase(
        "granite_tied",
        "Granite as transformers 5 writes it: tied, all biases, logits divided, attention_multiplier absent: 1",
        _model(
            "Granite",
            "granite",
            hidden=96,
            intermediate=100,
            layers=3,
            heads=4,
            kv_heads=4,
            vocab=257,
            embedding_multiplier=12,
            residual_multiplier=1.5,
            logits_scaling=1.5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            dtype="float32",
        ),
        tokens=196,
    ),
    OracleCase(
        "mistral",
        "Mistral with neither num_key_value_heads, which is 8 then, nor a window; heads of 24 from hidden 128",
        _model(
            "Mistral",
            "mistral",
            hidden=128,
            intermediate=172,
            layers=2,
            heads=16,
            vocab=131,
            head_dim=24,
            max_position_embeddings=8192,
            rope_theta=1000000.0,
            sliding_window=None,
            torch_dtype="float32",
        ),
        tokens=201,
    ),
    OracleCase(
        "mistral_window",
        "Mistral in the spelling of transformers 5, without sliding_window: 4096, which is no less than the context",
        _model(
            "Mistral",
            "mistral",
            hidden=96,
            intermediate=100,
            layers=2,
            heads=4,
            kv_heads=1,
            vocab=257,
            head_dim=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            dtype="float32",
        ),
        tokens=207,
    ),
    OracleCase(
        "qwen2",
        "Qwen 2: biases of q, k and v alone, 7 query heads on one KV head, a window that is not on",
        _model(
            "Qwen2",
            "qwen2",
            hidden=112,
            intermediate=172,
            layers=2,
            heads=7,
            kv_heads=1,
            vocab=131,
            rope_theta=1000000.0,
            sliding_window=16,
            use_sliding_window=False,
            max_window_layers=1,
            torch_dtype="float32",
        ),
        tokens=203,
    ),
    OracleCase(
        "qwen2_tied",
        "Qwen 2 as transformers 5 writes it: tied, one query head per KV head of 32",
        _model(
            "Qwen2",
            "qwen2",
            hidden=96,
            intermediate=100,
            layers=3,
            heads=3,
            kv_heads=3,
            vocab=257,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            layer_types=["full_attention"] * 3,
            sliding_window=None,
            use_sliding_window=False,
            tie_word_embeddings=True,
            dtype="float32",
        ),
        tokens=194,
    ),
    OracleCase(
        "qwen3",
        "Qwen 3 without head_dim, which is 128 then; 2 query heads per KV head, a window that is not on",
        _model(
            "Qwen3",
            "qwen3",
            hidden=64,
            intermediate=100,
            layers=2,
            heads=4,
            kv_heads=2,
            vocab=131,
            rope_theta=1000000,
            rope_scaling=None,
            sliding_window=16,
            use_sliding_window=False,
            max_window_layers=1,
            torch_dtype="float32",
        ),
        tokens=205,
    ),
    OracleCase(
        "qwen3_tied",
        "Qwen 3 as transformers 5 writes it: tied, heads of 48 from hidden 72, biases of q, k, v and o",
        _model(
            "Qwen3",
            "qwen3",
            hidden=72,
            intermediate=136,
            layers=3,
            heads=6,
            kv_heads=1,
            vocab=257,
            head_dim=48,
            rms_norm_eps=1e-2,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            attention_bias=True,
            layer_types=["full_attention"] * 3,
            sliding_window=None,
            tie_word_embeddings=True,
            dtype="float32",
        ),
        tokens=198,
    ),
)


def case(name: str) -> OracleCase:
    """The case called `name`."""
    found = {case.name: case for case in CASES}
    assert name in found, f"no oracle case is called {name!r}; there are {', '.join(found)}"
    return found[name]
