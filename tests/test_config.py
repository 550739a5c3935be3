"""Reading model folders: what is honoured, what is refused, and that the user is told which and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from infernum.errors import ConfigError, InfernumError
from infernum.models import presets
from infernum.models.config import ModelSource, config_hash, families, find_family, read_model
from infernum.models.llama import LlamaConfig
from infernum.models.presets import PRESETS, resolve
from infernum.models.unsupported_types import NEEDS
from infernum.resources import demo_folder, templates_folder
from infernum.rope import Rope

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
LLAMA3_SCALING: dict[str, Any] = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3_ROPE = Rope("llama3", 500000.0, 32.0, 1.0, 4.0, 8192)

# Public config.json files, shortened to what is not the same in all of them.
COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "llama",
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "use_cache": True,
}
SEVEN_B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "torch_dtype": "float16",
}
LLAMA_3: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vocab_size": 128256,
}
PUBLIC: dict[str, dict[str, Any]] = {
    "llama-7b": SEVEN_B
    | {
        "architectures": ["LLaMAForCausalLM"],
        "max_sequence_length": 2048,
        "pad_token_id": -1,
        "rms_norm_eps": 1e-06,
        "vocab_size": 32000,
    },
    "Llama-2-7b-hf": SEVEN_B
    | {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "transformers_version": "4.31.0.dev0",
        "vocab_size": 32000,
    },
    "vicuna-7b-v1.5-16k": SEVEN_B
    | {
        "max_position_embeddings": 4096,
        "max_sequence_length": 16384,
        "num_key_value_heads": 32,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "vocab_size": 32000,
    },
    "CodeLlama-7b-hf": SEVEN_B
    | {
        "max_position_embeddings": 16384,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "vocab_size": 32016,
    },
    "deepseek-coder-6.7b-base": SEVEN_B
    | {
        "bos_token_id": 32013,
        "eos_token_id": 32014,
        "max_position_embeddings": 16384,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
        "vocab_size": 32256,
    },
    "Yi-6B": SEVEN_B
    | {
        "max_position_embeddings": 4096,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_theta": 5000000.0,
        "torch_dtype": "bfloat16",
        "vocab_size": 64000,
    },
    "TinyLlama-1.1B-Chat-v1.0": {
        "attention_bias": False,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
    "SmolLM2-135M": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "vocab_size": 49152,
    },
    "SmolLM2-1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 130000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    },
    "Meta-Llama-3-8B": LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rope_scaling": None,
    },
    "Llama-3.1-8B": LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rope_scaling": LLAMA3_SCALING | {"factor": 8.0},
    },
    "Llama-3.2-1B": LLAMA_3
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "rope_scaling": LLAMA3_SCALING,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B": LLAMA_3
    | {
        "head_dim": 128,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
        "rope_scaling": LLAMA3_SCALING,
        "tie_word_embeddings": True,
    },
    "saved-by-transformers-5": LLAMA_3
    | {
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0},
        "rope_theta": None,
        "torch_dtype": None,
        "pad_token_id": None,
    },
}


def model_folder(folder: Path, config: object, generation: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def read(folder: Path, generation: object = None, **changes: object) -> ModelSource:
    """The tiny model with `changes`; a field changed to Ellipsis is left out."""
    fields = {k: v for k, v in (TINY | changes).items() if v is not ...}
    return read_model(model_folder(folder, fields, generation))


def llama(folder: Path, **changes: object) -> LlamaConfig:
    config = read(folder, **changes).config
    assert isinstance(config, LlamaConfig)
    return config


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_are_read_without_a_warning(tmp_path: Path, name: str) -> None:
    fields = COMMON | PUBLIC[name]
    found = read_model(model_folder(tmp_path, fields))
    assert found.warnings == ()
    assert found.family == "llama"
    for field in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ):
        assert getattr(found.config, field) == fields[field]
    assert found.generation.eos_token_ids == (fields["eos_token_id"],)


@pytest.mark.parametrize(
    ("preset", "public"),
    [("llama", "Llama-3.2-1B"), ("llama-3.2-3b", "Llama-3.2-3B"), ("llama-3.1-8b", "Llama-3.1-8B")],
)
def test_a_preset_has_the_shape_of_the_public_model(tmp_path: Path, preset: str, public: str) -> None:
    source = resolve(preset)
    assert source.config == read_model(model_folder(tmp_path, COMMON | PUBLIC[public])).config
    assert source.generation.bos_token_id == 128000
    assert (source.name, source.family, source.folder, source.warnings) == (preset, "llama", None, ())


def test_absent_fields_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    optional = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "torch_dtype")
    config = llama(tmp_path, **dict.fromkeys((*optional, "tie_word_embeddings"), ...))
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (4, 16, 2048)
    assert (config.rms_norm_eps, config.rope, config.dtype) == (1e-6, Rope(theta=10000.0), "f32")
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)


def test_null_means_absent(tmp_path: Path) -> None:
    config = llama(
        tmp_path, num_key_value_heads=None, head_dim=None, pretraining_tp=None, sliding_window=None
    )
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)


def test_head_dim_may_differ_from_width_by_heads(tmp_path: Path) -> None:
    assert llama(tmp_path, head_dim=24, hidden_size=62).head_dim == 24


@pytest.mark.parametrize(
    ("spelling", "short"),
    [
        ({"torch_dtype": "float16"}, "f16"),
        ({"dtype": "float32"}, "f32"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "f16"),
        ({"torch_dtype": "torch.bfloat16"}, "bf16"),
    ],
)
def test_both_spellings_of_the_dtype_are_read(tmp_path: Path, spelling: dict[str, str], short: str) -> None:
    assert llama(tmp_path, **({"torch_dtype": ...} | spelling)).dtype == short


SILENT: list[dict[str, object]] = [
    {"torch_dtype": ...},
    {"torch_dtype": None},
    {"torch_dtype": ..., "dtype": None},
    {"torch_dtype": "auto"},
    {"torch_dtype": None, "dtype": "auto"},
]


@pytest.mark.parametrize("silent", SILENT)
@pytest.mark.parametrize(
    ("large", "small", "short"),
    [
        (ml_dtypes.bfloat16, np.float32, "bf16"),
        (np.float16, np.float32, "f16"),
        (np.float32, np.float16, "f32"),
        (np.int32, np.float16, "f16"),
    ],
)
def test_where_config_json_is_silent_the_dtype_is_that_of_most_bytes_stored(
    tmp_path: Path, silent: dict[str, object], large: Any, small: Any, short: str
) -> None:
    tensors = {"many": np.zeros(64, large), "few": np.zeros(8, small)}
    save_file(tensors, tmp_path / "model.safetensors")
    source = read(tmp_path, **silent)
    assert source.config.dtype == short
    assert source.dtype_reason == "as most bytes of the weights are stored, since config.json does not say"


def test_the_dtype_that_config_json_names_wins_over_the_weights(tmp_path: Path) -> None:
    save_file({"all": np.zeros(64, np.float32)}, tmp_path / "model.safetensors")
    source = read(tmp_path, torch_dtype="float16")
    assert (source.config.dtype, source.dtype_reason) == ("f16", "as config.json says")


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_without_weights_that_can_be_read_the_dtype_is_float32(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    source = read(tmp_path, torch_dtype=None)
    assert source.config.dtype == "f32"
    assert source.dtype_reason == "since neither config.json nor weights say"


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000, "rope_scaling": LLAMA3_SCALING},
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING | {"type": "llama3"}},
        {"rope_theta": ..., "rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_parameters": LLAMA3_SCALING, "rope_scaling": LLAMA3_SCALING},
        {
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 8192,
            "rope_scaling": {
                k: v for k, v in LLAMA3_SCALING.items() if k != "original_max_position_embeddings"
            },
        },
    ],
)
def test_all_spellings_of_llama3_scaling_mean_the_same(tmp_path: Path, spelling: dict[str, Any]) -> None:
    found = read(tmp_path, **spelling)
    assert isinstance(found.config, LlamaConfig)
    assert found.config.rope == LLAMA3_ROPE
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"type": "linear", "factor": 2}, Rope("linear", 10000.0, 2.0)),
        ({"rope_type": "default"}, Rope()),
        ({"type": "dynamic", "factor": 4.0}, Rope()),
        ({}, Rope()),
        (None, Rope()),
    ],
)
def test_other_scalings_are_read(tmp_path: Path, scaling: object, rope: Rope) -> None:
    assert llama(tmp_path, rope_scaling=scaling).rope == rope


def test_a_rope_field_that_is_not_known_is_reported(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0, "attention_factor": 1.5}
    (warning,) = read(tmp_path, rope_scaling=scaling).warnings
    assert "rope_scaling.attention_factor = 1.5" in warning


@pytest.mark.parametrize("model_type", NEEDS)
def test_a_known_model_type_is_refused_with_what_it_needs(model_type: str, tmp_path: Path) -> None:
    assert model_type not in families()
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, model_type=model_type)
    said = f'model_type "{model_type}" is not supported: it needs {NEEDS[model_type]}; supported: '
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_field_that_is_not_known_is_reported_and_ignored(tmp_path: Path) -> None:
    found = read(tmp_path, brand_new_field=[1, 2])
    assert found.config == read(tmp_path).config
    (warning,) = found.warnings
    assert "brand_new_field = [1, 2]" in warning
    assert "config.json" in warning


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen9"}, r'model_type "qwen9" is not supported; supported: .*llama'),
        ({"model_type": ...}, "model_type is missing"),
        ({"model_type": 3}, "model_type = 3 must be a string"),
        ({"model_type": "../llama"}, "is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only language models"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of strings"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, 'hidden_size = "64" must be an integer'),
        ({"hidden_size": 64.0}, "hidden_size = 64.0 must be an integer"),
        ({"hidden_size": True}, "hidden_size = true must be an integer"),
        ({"hidden_size": 0}, "hidden_size = 0 must be an integer from 1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers = -2 must be an integer from 1"),
        ({"vocab_size": 10**400}, "must be an integer from 1 to 2147483647"),
        ({"intermediate_size": []}, "must be an integer"),
        ({"hidden_size": 66}, "hidden_size = 66 must be a multiple of num_attention_heads = 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 must be a multiple of num_key_value_heads = 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"head_dim": 15}, "head_dim = 15 must be even"),
        ({"hidden_size": 4 * 7}, "head_dim = 7 must be even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 must be a number, greater than 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1 must be true or false"),
        ({"attention_bias": "no"}, "must be true or false"),
        ({"torch_dtype": "float64"}, "torch_dtype = .float64. is not supported; use one of float32"),
        ({"dtype": "int32"}, "dtype = .int32. is not supported"),
        ({"dtype": 16}, "dtype = 16 must be a string"),
        ({"hidden_act": "xielu"}, "hidden_act = .xielu. must be one of gelu, "),
        ({"rope_interleaved": True}, "rope_interleaved = true is not supported"),
        ({"sliding_window": 255}, "sliding_window = 255 is not supported"),
        ({"sliding_window": 255, "use_sliding_window": True}, "sliding_window = 255 is not supported"),
        ({"sliding_window": True}, "sliding_window = true is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window = true is not supported"),
        ({"sliding_window": 4096, "max_position_embeddings": ...}, "sliding_window = 4096 is not supported"),
        ({"attention_chunk_size": 128}, "attention_chunk_size = 128 is not supported"),
        ({"num_experts_per_tok": 2}, "num_experts_per_tok = 2 is not supported"),
        ({"num_experts_per_tok": 2, "num_experts": 4}, "num_experts = 4 is not supported"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar = 64 is not supported"),
        ({"attention_multiplier": 0.5}, "attention_multiplier = 0.5 is not supported"),
        ({"rotary_dim": 8}, "rotary_dim = 8 is not supported"),
        (
            {
                "quantization_config": {
                    "quant_method": "bitsandbytes",
                    "load_in_4bit": True,
                    "load_in_8bit": False,
                }
            },
            "quantization_config .*quantized",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "every layer must be full_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config .*awq.* quantized"),
        ({"num_local_experts": 8}, "num_local_experts = 8 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor = 0.5"),
        ({"rope_theta": 0}, "rope_theta = 0 must be"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling = .linear. must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor = 0"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "rope_scaling.factor = -2.0"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type is missing"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling.factor is missing"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}},
            "rope_scaling.alpha = 1000.0 is not supported: a fixed alpha",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"}}, "beta_fast = .32. must"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate = 1 must be true"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.short_factor is missing"),
        ({"rope_scaling": LONGROPE | {"long_factor": None}}, "rope_scaling.long_factor is missing"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0] * 7}}, "short_factor .* must have 8 numbers"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0] * 7 + [0]}}, "long_factor .* must be a list of"),
        ({"rope_scaling": LONGROPE | {"long_factor": 2.0}}, "long_factor = 2.0 must be a list of numbers"),
        ({"rope_scaling": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta = 0.1 is not supported"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral. is not supported: this kind"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type = 3 must be a string"),
        (
            {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2}},
            "contradicts type = 'linear'",
        ),
        (
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"type": "linear", "factor": 2}},
            "rope_scaling = .* contradicts rope_parameters",
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5}},
            "rope_theta = 10000.0 contradicts rope_parameters.rope_theta",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 5e5}},
            "rope_scaling = .* contradicts rope_parameters",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 5e5}}},
            "rope_parameters = .* has no full_attention",
        ),
        ({"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": 4.0}}, "high_freq_factor 4.0 must be greater"),
        (
            {"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": None}},
            "high_freq_factor is missing",
        ),
        (
            {"rope_scaling": LLAMA3_SCALING | {"original_max_position_embeddings": None}},
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": LLAMA3_SCALING, "original_max_position_embeddings": 4096}, "= 8192 contradicts"),
        ({"eos_token_id": "</s>"}, "eos_token_id .*must be a token id"),
        ({"eos_token_id": [1, -2]}, "eos_token_id .*must be a token id"),
        ({"bos_token_id": 1.5}, "bos_token_id = 1.5 must be a token id"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        read(tmp_path, **changes)
    assert str(refused.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2},
        {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1},
        {"sliding_window": 8, "use_sliding_window": False, "layer_types": None},
        {"sliding_window": 256},  # as long as the context
        {"sliding_window": 4096, "use_sliding_window": True},
        {"sliding_window": None, "use_sliding_window": True},
        {"attention_chunk_size": 8192},
        {"num_local_experts": 1, "num_experts_per_tok": 2, "num_experts": None},
        {
            "num_experts": 0,
            "num_experts_per_tok": 8,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.1,
        },
        {"query_pre_attn_scalar": 16, "attention_multiplier": 0.25, "rotary_dim": 16},
        {"head_dim": 32, "query_pre_attn_scalar": 32},
        {"quantization_config": None},
        {"quantization_config": {}},
        {
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": False,
                "load_in_8bit": False,
            }
        },
        {"text_config": {}, "vision_config": {}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "factor": None}},
        {"rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": 1.0},
        {
            "attention_dropout": 0.1,
            "hidden_dropout": 0.1,
            "dropout": 0.1,
            "mlp_dropout": 0.1,
            "use_cache": False,
        },
        {"attention_bias": None, "mlp_bias": False, "num_key_value_heads": None, "head_dim": None},
        {"attn_implementation": "sdpa", "_name_or_path": "org/name", "cache_implementation": "static"},
    ],
)
def test_what_changes_nothing_or_is_switched_off_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = read(tmp_path, **changes)
    assert source.warnings == ()
    assert source.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"model_type": "llama",}', "not valid JSON .*line 1, column"),
        (b"[1, 2]", "holds .* not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"model_type": "ll\xe4ma"}', "not UTF-8 text .byte 18"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'{"a":' * 100_000, "JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (model_folder(tmp_path, TINY) / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        read_model(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / name))
    assert len(str(refused.value)) < 400


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        read_model(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        read_model(tmp_path)
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="Meta's own format"):
        read_model(tmp_path)


def test_generation_config_overrides_config(tmp_path: Path) -> None:
    generation = {"eos_token_id": [7, 8, 7], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "top_k": 0}
    found = read(tmp_path, generation, bos_token_id=1).generation
    assert (found.eos_token_ids, found.bos_token_id) == ((7, 8), 1)
    assert found.do_sample is True
    assert found.sampling == {"temperature": 0.6, "top_p": 0.9, "top_k": 0}


def test_generation_config_without_token_ids_leaves_those_of_config(tmp_path: Path) -> None:
    found = read(tmp_path, {"eos_token_id": None}, eos_token_id=[5, 6], bos_token_id=0).generation
    assert (found.eos_token_ids, found.bos_token_id) == ((5, 6), 0)


def test_a_model_without_an_end_token_is_reported(tmp_path: Path) -> None:
    (warning,) = read(tmp_path, eos_token_id=None).warnings
    assert "eos_token_id is missing" in warning


@pytest.mark.parametrize(
    "field", [{"temperature": "hot"}, {"top_k": 1.5}, {"do_sample": 1}, {"eos_token_id": "x"}]
)
def test_a_malformed_generation_config_is_refused(tmp_path: Path, field: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read(tmp_path, field)


def test_settings_survive_json(tmp_path: Path) -> None:
    config = llama(tmp_path, rope_theta=5e5, rope_scaling=LLAMA3_SCALING, attention_bias=True)
    assert LlamaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "many"},
        {"vocab_size": -1},
        {"rope": {"kind": "yarn"}},
        {"extra": 1},
        {"num_key_value_heads": 3},
    ],
)
def test_settings_that_were_tampered_with_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LlamaConfig.from_json(llama(tmp_path).to_json() | change)


def test_settings_that_lack_a_field_are_refused(tmp_path: Path) -> None:
    data = llama(tmp_path).to_json()
    del data["head_dim"]
    with pytest.raises(ConfigError, match="head_dim"):
        LlamaConfig.from_json(data)


def test_the_hash_changes_with_the_mathematics_and_not_with_the_stored_type(tmp_path: Path) -> None:
    reference = config_hash(llama(tmp_path))
    assert config_hash(llama(tmp_path, torch_dtype="float32", use_cache=False)) == reference
    changed = [
        llama(tmp_path, rms_norm_eps=2e-5),
        llama(tmp_path, rope_theta=20000.0),
        llama(tmp_path, mlp_bias=True),
        llama(tmp_path, tie_word_embeddings=True),
        llama(tmp_path, vocab_size=129),
    ]
    assert len({reference, *map(config_hash, changed)}) == 6
    assert len(reference) == 64


def test_a_family_is_found_by_its_model_type() -> None:
    assert "llama" in families()
    assert find_family("llama").config_of("llama") is LlamaConfig
    with pytest.raises(ConfigError, match="supported: gemma, gemma2, gemma3, gemma3_text, granite, llama"):
        find_family("config")


@pytest.mark.parametrize("wrong", ["lama", "Llama", "llama3.1-8b"])
def test_a_misspelt_preset_gets_a_suggestion(wrong: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'llama") as refused:
        resolve(wrong)
    assert all(name in str(refused.value) for name in PRESETS)


@pytest.mark.parametrize(
    "wrong", ["", " ", "zzz", "meta-llama/Llama-3.2-1B", "nul\0", "~nobody-of-this-name/x"]
)
def test_what_is_neither_a_preset_nor_a_folder_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b"):
        resolve(wrong)


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    source = resolve(str(model_folder(tmp_path / "mine", TINY)))
    assert (source.name, source.folder) == ("mine", tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a file"):
        resolve(str(tmp_path / "mine" / "config.json"))


@pytest.mark.parametrize("name", ["dante", "dante-chat"])
def test_a_demo_is_the_preset_of_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "demo_folder", lambda name: model_folder(tmp_path / f"of_{name}", TINY))
    source = resolve(name)
    assert (source.name, source.folder, source.config.vocab_size) == (name, tmp_path / f"of_{name}", 128)


def test_resources_lie_in_the_package_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infernum.resources.PACKAGE", tmp_path / "infernum")
    with pytest.raises(InfernumError, match="templates is missing"):
        templates_folder()
    (tmp_path / "templates").mkdir()
    (tmp_path / "examples" / "dante").mkdir(parents=True)
    (tmp_path / "examples" / "dante_chat").mkdir()
    assert templates_folder() == tmp_path / "templates"
    assert demo_folder() == tmp_path / "examples" / "dante"
    assert demo_folder("dante-chat") == tmp_path / "examples" / "dante_chat"
    (tmp_path / "infernum" / "templates").mkdir(parents=True)
    (tmp_path / "infernum" / "demo" / "dante").mkdir(parents=True)
    assert templates_folder() == tmp_path / "infernum" / "templates"
    assert demo_folder() == tmp_path / "infernum" / "demo" / "dante"


def test_unscaled_frequencies_are_powers_of_theta() -> None:
    inv_freq = Rope(theta=10000.0).inv_freq(8)
    assert inv_freq.dtype == np.float32
    np.testing.assert_allclose(inv_freq, [1.0, 0.1, 0.01, 0.001], rtol=1e-7)


def test_linear_scaling_divides_every_frequency() -> None:
    np.testing.assert_allclose(
        Rope("linear", 10000.0, 4.0).inv_freq(8), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-7
    )


def test_llama3_scaling_keeps_high_blends_middle_and_divides_low_frequencies() -> None:
    """Llama 3.2 1B: frequency i is f = 500000 ** (-i / 32), its wavelength 2π / f.

    Wavelengths up to 2048 are kept (i ≤ 14), those over 8192 divided by 32 (i ≥ 18). Frequency 16 is
    500000 ** -0.5 = 1.41421356e-3: wavelength 4442.8829, blend (8192 / 4442.8829 - 1) / 3 = 0.28128262,
    so 0.71871738 · 1.41421356e-3 / 32 + 0.28128262 · 1.41421356e-3 = 4.2955692e-4.
    """
    scaled = LLAMA3_ROPE.inv_freq(64)
    plain = Rope(theta=500000.0).inv_freq(64)
    np.testing.assert_array_equal(scaled[:15], plain[:15])
    np.testing.assert_array_equal(scaled[18:], plain[18:] / 32)
    np.testing.assert_allclose(scaled[[0, 1, 14]], [1.0, 0.66360, 3.2108e-3], rtol=2e-3)
    np.testing.assert_allclose(scaled[16], 4.2955692e-4, rtol=1e-6)
    assert np.all(scaled[15:18] < plain[15:18])
    assert np.all(scaled[15:18] > plain[15:18] / 32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "yarn"},
        {"theta": 0.0},
        {"theta": float("inf")},
        {"kind": "linear", "factor": -1.0},
        {"kind": "llama3", "factor": 8.0},
        {"kind": "llama3", "original_max_position": 8192, "low_freq_factor": 4.0},
    ],
)
def test_a_rope_that_gives_no_frequencies_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Rope(**wrong)
