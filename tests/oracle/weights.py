"""Random weights for a tiny model, the same on every machine, so that only logits need to be committed.

The numbers come from PCG64's raw 64-bit stream, which NumPy promises not to change (it gives no such
promise for `Generator.standard_normal`), by additions and multiplications alone: not even the last bit
depends on a libm.
"""

import hashlib
import math
from typing import Any

import ml_dtypes
import numpy as np

Weights = dict[str, np.ndarray]

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


GEMMA_2 = {"tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
ABSENT: dict[str, dict[str, Any]] = {
    "gemma": {"tie_word_embeddings": True, "head_dim": 256},
    "gemma2": GEMMA_2,
    "gemma3_text": GEMMA_2,
    "ministral": {"num_key_value_heads": 8},
    "ministral3": {"num_key_value_heads": 8, "head_dim": 128},
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"attention_bias": True, "attention_out_bias": False},
    "qwen3": {"head_dim": 128},
    "smollm3": {"tie_word_embeddings": True},
    "seed_oss": {"head_dim": 128, "attention_bias": True, "attention_out_bias": False},
}
"""The values of fields that config.json leaves out, where a model type has others than Llama."""


FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The tensors of Phi-3 that hold the rows of several others."""


def bell(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 numbers of mean 0 and standard deviation 1 within (-3, 3): the sum of three uniform ones."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(3 * math.prod(shape))
    first, second, third = (raw >> np.uint64(11)).astype(np.float64).reshape(3, *shape) * 2.0**-53
    return 2.0 * (first + second + third - 1.5)


def random_weights(config: dict[str, Any]) -> Weights:
    """Every tensor of the checkpoint, float32, under its Hugging Face name.

    Norm weights lie around 1 with deviation 0.2 (around 0 where the model adds the 1), and biases around 0
    with 0.3. A matrix of `fan_in` columns has deviation 1/sqrt(fan_in), times 1.5 where that tells more: in q
    and k it makes attention sharp enough for a wrong rope to show, in the head it gives the logits a deviation
    of about 1.5. Tied models have no `lm_head`.
    """
    if "text_config" in config:
        return weights_beside_images(config)
    model_type = config["model_type"]
    config = ABSENT.get(model_type, {}) | config
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    tied = config.get("tie_word_embeddings", False)
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    output_bias = config.get("attention_out_bias", attention_bias)
    weights: Weights = {}

    def norm(name: str, width: int = hidden) -> None:
        around = 0.0 if model_type.startswith("gemma") else 1.0
        weights[f"{name}.weight"] = around + 0.2 * bell(f"{name}.weight", (width,))

    def linear(name: str, rows: int, columns: int, bias: bool, gain: float = 1.0) -> None:
        weights[f"{name}.weight"] = bell(f"{name}.weight", (rows, columns)) * (gain / math.sqrt(columns))
        if bias:
            weights[f"{name}.bias"] = 0.3 * bell(f"{name}.bias", (rows,))

    embedding = bell("model.embed_tokens.weight", (config["vocab_size"], hidden))
    weights["model.embed_tokens.weight"] = embedding * (1.5 / math.sqrt(hidden) if tied else 1.0)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        linear(f"{prefix}.self_attn.q_proj", query, hidden, attention_bias, gain=1.5)
        linear(f"{prefix}.self_attn.k_proj", kv, hidden, attention_bias, gain=1.5)
        linear(f"{prefix}.self_attn.v_proj", kv, hidden, attention_bias)
        linear(f"{prefix}.self_attn.o_proj", hidden, query, output_bias)
        if model_type in ("gemma3_text", "qwen3"):
            norm(f"{prefix}.self_attn.q_norm", head_dim)
            norm(f"{prefix}.self_attn.k_norm", head_dim)
        norm(f"{prefix}.post_attention_layernorm")
        if model_type in ("gemma2", "gemma3_text"):
            norm(f"{prefix}.pre_feedforward_layernorm")
            norm(f"{prefix}.post_feedforward_layernorm")
        linear(f"{prefix}.mlp.gate_proj", intermediate, hidden, mlp_bias)
        linear(f"{prefix}.mlp.up_proj", intermediate, hidden, mlp_bias)
        linear(f"{prefix}.mlp.down_proj", hidden, intermediate, mlp_bias)
        if model_type == "phi3":
            for fused, parts in FUSED.items():
                part_weights = [weights.pop(f"{prefix}.{part}.weight") for part in parts]
                weights[f"{prefix}.{fused}.weight"] = np.concatenate(part_weights)
    norm("model.norm")
    if not tied:
        linear("lm_head", config["vocab_size"], hidden, bias=False, gain=1.5)
    return {name: tensor.astype(np.float32) for name, tensor in weights.items()}


def weights_beside_images(config: dict[str, Any]) -> Weights:
    """The tensors of a model that also sees images, by the names that its `transformers_version` writes."""
    tied = config.get("tie_word_embeddings", config["model_type"] == "gemma3")
    text = config["text_config"] | {"tie_word_embeddings": tied}
    before_5 = config["transformers_version"].startswith("4.")
    weights: Weights = {}
    for name, tensor in random_weights(text).items():
        if before_5:
            weights[f"language_model.{name}"] = tensor
        else:
            weights[name.replace("model.", "model.language_model.", 1)] = tensor
    shapes_of = siglip_shapes if config["model_type"] == "gemma3" else pixtral_shapes
    shapes = shapes_of(config["vision_config"], text["hidden_size"])
    beginning = "" if before_5 else "model."
    images = {f"{beginning}{name}": bell(name, shape).astype(np.float32) for name, shape in shapes.items()}
    return weights | images


def siglip_shapes(vision: dict[str, Any], hidden: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the part of a Gemma 3 that sees images, in one layer."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    layer = "vision_tower.encoder.layers.0."
    shapes = {
        "multi_modal_projector.mm_input_projection_weight": (width, hidden),
        "multi_modal_projector.mm_soft_emb_norm.weight": (width,),
        "vision_tower.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_tower.embeddings.patch_embedding.bias": (width,),
        "vision_tower.embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, width),
        f"{layer}mlp.fc1.weight": (inner, width),
        f"{layer}mlp.fc1.bias": (inner,),
        f"{layer}mlp.fc2.weight": (width, inner),
        f"{layer}mlp.fc2.bias": (width,),
    }
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{layer}{name}.{part}": (width,) for part in ("weight", "bias")}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {
            f"{layer}self_attn.{name}.weight": (width, width),
            f"{layer}self_attn.{name}.bias": (width,),
        }
    shapes |= {f"vision_tower.post_layernorm.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def pixtral_shapes(vision: dict[str, Any], hidden: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the part of a Mistral 3 that sees images, in one layer."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    layer = "vision_tower.transformer.layers.0."
    return {
        "vision_tower.patch_conv.weight": (width, 3, patch, patch),
        "vision_tower.ln_pre.weight": (width,),
        f"{layer}attention_norm.weight": (width,),
        f"{layer}ffn_norm.weight": (width,),
        **{f"{layer}attention.{name}_proj.weight": (width, width) for name in "qkvo"},
        f"{layer}feed_forward.gate_proj.weight": (inner, width),
        f"{layer}feed_forward.up_proj.weight": (inner, width),
        f"{layer}feed_forward.down_proj.weight": (width, inner),
        "multi_modal_projector.norm.weight": (width,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (width, 4 * width),
        "multi_modal_projector.linear_1.weight": (hidden, width),
        "multi_modal_projector.linear_2.weight": (hidden, hidden),
    }


def rounded(weights: Weights, dtype: str) -> Weights:
    """The weights as `dtype` ("float32", "float16", "bfloat16") keeps them, back in float32."""
    return {name: tensor.astype(DTYPES[dtype]).astype(np.float32) for name, tensor in weights.items()}


def random_tokens(vocab: int, count: int) -> np.ndarray:
    """A fixed sequence of `count` token ids below `vocab`, int32."""
    seed = int.from_bytes(hashlib.sha256(f"tokens {vocab} {count}".encode()).digest()[:8], "little")
    return (np.random.PCG64(seed).random_raw(count) % np.uint64(vocab)).astype(np.int32)


def digest(weights: Weights) -> str:
    """SHA-256 over names, shapes and bytes: tells a changed recipe from a wrong model."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(f"{name} {weights[name].shape} {weights[name].dtype}".encode())
        total.update(np.ascontiguousarray(weights[name]).tobytes())
    return total.hexdigest()
