"""Llamas of many shapes, whose kernels the kernel table and `compare_sass.py` look at: a preset's name or a config."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict[str, Any] | str] = {
    "llama-3.2-1b": "llama-3.2-1b",
    "llama-3.1-8b": "llama-3.1-8b",
    "dante": "dante",
    "attention biases": SMALL | {"attention_bias": True},
    "mlp biases": SMALL | {"mlp_bias": True},
    "all biases": SMALL | {"attention_bias": True, "mlp_bias": True},
    "width 8192": SMALL | {"hidden_size": 8192},
    "odd sizes": SMALL | {"hidden_size": 72, "intermediate_size": 100, "head_dim": 18},
}
DTYPES = ("bfloat16", "float16", "float32")
