"""Looks up a model by the name of a preset or by its folder; presets are models without weights, and the demos."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from infernum.errors import ConfigError
from infernum.model_folder.problems import is_listed
from infernum.models.config import ModelSource, read_model, understand
from infernum.models.fields import Fields
from infernum.resources import demo_folder


def resolve(model: str) -> ModelSource:
    """The preset called `model`, or the model in the folder `model`.

    A preset wins over a folder of the same name (`./llama` is the folder). Raises ConfigError.
    """
    if model in _DEMOS:
        return replace(read_model(demo_folder(model)), name=model)
    if model in _MODELS:
        return understand(Fields(_MODELS[model], model))
    folder = _expand(model)
    if folder is None or not is_listed(folder):
        raise _unknown(model)
    return read_model(folder)


def _expand(model: str) -> Path | None:
    """`model` as a path; None when it is not a valid path."""
    if not model.strip() or "\0" in model:
        return None
    try:
        return Path(model).expanduser()
    except RuntimeError:
        return None


def _unknown(model: str) -> ConfigError:
    presets = f"the presets are {', '.join(PRESETS)}"
    if "/" in model or "\\" in model:
        return ConfigError(
            f"{model}: no such folder; models are not downloaded, give a local folder ({presets})"
        )
    near = difflib.get_close_matches(model.lower(), PRESETS, n=1)
    hint = f"did you mean {near[0]!r}? ({presets})" if near else presets
    return ConfigError(f"{model!r} is neither a folder nor a preset; {hint}")


_ROPE: dict[str, object] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The public config.json of meta-llama/Llama-3.2-1B.
_LLAMA_3_2_1B: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _ROPE,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

# The public config.json of google/gemma-2-9b.
_GEMMA_2_9B: dict[str, object] = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
    "bos_token_id": 2,
    "eos_token_id": 1,
}
# The public config.json of google/gemma-3-1b-it.
_GEMMA_3_1B: dict[str, object] = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
}


def _gemma_3(**text: object) -> dict[str, object]:
    """The public config.json of a larger Gemma 3, which leaves most fields of the text model to their defaults."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    return {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "rope_scaling": scaling, "sliding_window": 1024, **text},
        "dtype": "bfloat16",
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
    }


# The public config.json of ibm-granite/granite-3.3-8b-instruct.
_GRANITE_3_3_8B: dict[str, object] = {
    "model_type": "granite",
    "vocab_size": 49159,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0078125,
    "logits_scaling": 16.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# The public config.json of mistralai/Mistral-Small-24B-Instruct-2501.
_MISTRAL_SMALL_24B: dict[str, object] = {
    "model_type": "mistral",
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000000.0,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The public config.json of mistralai/Mistral-7B-v0.1, whose window is shorter than its context; later ones have none.
_MISTRAL_7B: dict[str, object] = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The public config.json of microsoft/phi-4.
_PHI_4: dict[str, object] = {
    "model_type": "phi3",
    "vocab_size": 100352,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "rms_norm_eps": 1e-5,
    "rope_theta": 250000.0,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "dtype": "bfloat16",
    "bos_token_id": 100257,
    "eos_token_id": 100265,
}
# The public config.json of microsoft/Phi-4-mini-instruct.
_PHI_4_MINI: dict[str, object] = {
    "model_type": "phi3",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [
            *(1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
            *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845),
            *(5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158),
            *(11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105),
            *(25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71),
            *(32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
        ],
    },
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "sliding_window": 262144,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "dtype": "bfloat16",
    "bos_token_id": 199999,
    "eos_token_id": 199999,
}
# The public config.json of Qwen/Qwen2.5-7B-Instruct.
_QWEN_2_5_7B: dict[str, object] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
# The public config.json of Qwen/Qwen3-0.6B.
_QWEN_3: dict[str, object] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
    "dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}

# The public config.json of HuggingFaceTB/SmolLM3-3B.
_SMOLLM_3_3B: dict[str, object] = {
    "model_type": "smollm3",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "tie_word_embeddings": True,
    "max_position_embeddings": 65536,
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128012,
}

_MODELS: dict[str, dict[str, object]] = {
    "llama": _LLAMA_3_2_1B,
    "llama-3.2-1b": _LLAMA_3_2_1B,
    "llama-3.2-3b": _LLAMA_3_2_1B
    | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
    "llama-3.1-8b": _LLAMA_3_2_1B
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "rope_parameters": _ROPE | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
    "llama-3.3-70b": _LLAMA_3_2_1B
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "head_dim": 128,
        "rope_parameters": _ROPE | {"factor": 8.0},
        "tie_word_embeddings": False,
        "eos_token_id": [128001, 128008, 128009],
    },
    "gemma-2-9b": _GEMMA_2_9B,
    "gemma-3-1b": _GEMMA_3_1B,
    "gemma-3-4b": _gemma_3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34),
    "gemma-3-12b": _gemma_3(
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "gemma-3-27b": _gemma_3(
        hidden_size=5376,
        intermediate_size=21504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
    ),
    "granite-3.3-8b": _GRANITE_3_3_8B,
    "mistral-7b": _MISTRAL_7B,
    "mistral-small-24b": _MISTRAL_SMALL_24B,
    "mistral-large-123b": _MISTRAL_7B
    | {
        "vocab_size": 32768,
        "hidden_size": 12288,
        "intermediate_size": 28672,
        "num_hidden_layers": 88,
        "num_attention_heads": 96,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "max_position_embeddings": 131072,
    },
    "phi-4": _PHI_4,
    "phi-4-mini": _PHI_4_MINI,
    "qwen2.5-7b": _QWEN_2_5_7B,
    "qwen3-0.6b": _QWEN_3,
    "qwen3-1.7b": _QWEN_3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "qwen3-4b": _QWEN_3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": _QWEN_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "qwen3-14b": _QWEN_3
    | {
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "tie_word_embeddings": False,
    },
    "qwen3-32b": _QWEN_3
    | {
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "tie_word_embeddings": False,
    },
    "smollm3-3b": _SMOLLM_3_3B,
}
"""Presets without weights: the fields of their config.json."""

_DEMOS = ("dante", "dante-chat")
PRESETS = (*_MODELS, *_DEMOS)
"""The names of models that need no folder."""
