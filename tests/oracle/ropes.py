"""Rotary embeddings that transformers has computed: frequencies, factors, and heads turned by its own functions."""

from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from .golden import FOLDER

ROPES = FOLDER / "rope.npz"
POSITIONS = (0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, 255, 256, 500)
HEADS = 1


@dataclass(frozen=True)
class RopeCase:
    """The rotary embedding of one config.json.

    fields      config.json
    layer_type  the type of layers, where it has several
    reading     further arguments of `read_rope` for models of this type
    positions   positions that are turned in one forward pass
    """

    name: str
    fields: dict[str, Any]
    layer_type: str = ""
    reading: dict[str, Any] = field(default_factory=dict[str, Any])
    positions: tuple[int, ...] = POSITIONS

    @property
    def head_dim(self) -> int:
        return self.fields["head_dim"]

    def heads(self) -> np.ndarray:
        """Heads to turn, float32 [positions, HEADS, head_dim]."""
        rng = np.random.default_rng(len(self.name))
        return rng.standard_normal((len(self.positions), HEADS, self.head_dim), np.float32)


def _of(model_type: str, head_dim: int = 16, context: int = 512, **fields: Any) -> dict[str, Any]:
    shape = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 4 * head_dim,
        "head_dim": head_dim,
    }
    small = {"num_hidden_layers": 2, "vocab_size": 64, "intermediate_size": 32, "pad_token_id": 0}
    return {"model_type": model_type, "max_position_embeddings": context, **shape, **small, **fields}


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 5e4}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 3.5, 5.0, 8.0, 13.0],
}
_PHI = {
    "rope_scaling": _LONG,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
    "rope_theta": 1e4,
}
_ORIGINAL = {"original_max_position_embeddings": 64}
_SHORT = tuple(p for p in POSITIONS if p < 64)
_TWO_KINDS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
_LAYER_TYPES = ["sliding_attention", "full_attention"]
_BY_TYPE = {"layer_types": _LAYER_TYPES, "rope_parameters": _TWO_KINDS}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 6.0}
_NESTED_YARN = _TWO_KINDS | {"full_attention": _YARN | {"truncate": False}}
_LOCAL = {"theta": "rope_local_base_freq", "scaled": False}

ROPE_CASES = (
    RopeCase("default", _of("llama", rope_theta=12345.0)),
    RopeCase("linear", _of("llama", rope_scaling={"type": "linear", "factor": 2.5})),
    RopeCase("llama3", _of("llama", rope_scaling=_LLAMA3 | {"original_max_position_embeddings": 96})),
    RopeCase("dynamic", _of("llama", rope_scaling={"type": "dynamic", "factor": 2.7})),
    RopeCase("yarn", _of("llama", rope_parameters=_YARN)),
    RopeCase("yarn_odd", _of("llama", 32, rope_parameters=_YARN | {"beta_fast": 20.0, "beta_slow": 1.7})),
    RopeCase("yarn_whole", _of("llama", 32, rope_parameters=_YARN | {"truncate": False})),
    RopeCase("yarn_given", _of("llama", rope_parameters=_YARN | {"attention_factor": 0.75})),
    RopeCase("yarn_ratio", _of("llama", rope_parameters=_YARN | {"mscale": 0.707, "mscale_all_dim": 0.3})),
    RopeCase("yarn_one_mscale", _of("llama", rope_parameters=_YARN | {"mscale": 0.707})),
    RopeCase("yarn_no_factor", _of("llama", rope_parameters=_YARN | {"factor": None})),
    RopeCase(
        "yarn_flat_ramp",
        _of("llama", rope_parameters=_YARN | {"original_max_position_embeddings": 6, "factor": 2.0}),
    ),
    RopeCase("long", _of("phi3", **_PHI), reading={"default_partial": 1.0}),
    RopeCase("short", _of("phi3", **_PHI), reading={"default_partial": 1.0}, positions=_SHORT),
    RopeCase(
        "su_by_factor",
        _of("phi3", **_PHI | {"rope_scaling": _LONG | {"rope_type": "su", "factor": 3.0} | _ORIGINAL}),
        reading={"default_partial": 1.0},
    ),
    RopeCase(
        "long_given",
        _of("phi3", **_PHI | {"rope_scaling": _LONG | {"attention_factor": 1.5, "type": "longrope"}}),
        reading={"default_partial": 1.0},
    ),
    RopeCase("interleaved", _of("glm4"), reading={"default_partial": 0.5, "interleaved": True}),
    RopeCase(
        "quarter",
        _of("stablelm", 80, partial_rotary_factor=0.25),
        reading={"default_partial": 0.25},
    ),
    RopeCase("sliding", _of("gemma3_text", **_BY_TYPE), "sliding_attention", _LOCAL | {"default_theta": 1e4}),
    RopeCase("full", _of("gemma3_text", **_BY_TYPE), "full_attention", {"default_theta": 1e6}),
    RopeCase(
        "flat_full",
        _of(
            "gemma3_text",
            layer_types=_LAYER_TYPES,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            rope_theta=2e6,
        ),
        "full_attention",
        {"default_theta": 1e6},
    ),
    RopeCase(
        "flat_sliding",
        _of(
            "gemma3_text",
            layer_types=_LAYER_TYPES,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            rope_local_base_freq=2e4,
        ),
        "sliding_attention",
        _LOCAL | {"default_theta": 1e4},
    ),
    RopeCase(
        "nested_yarn",
        _of("olmo3", 32, layer_types=_LAYER_TYPES, rope_parameters=_NESTED_YARN),
        "full_attention",
    ),
    RopeCase(
        "scaled_queries",
        _of(
            "ministral3",
            rope_parameters=_YARN | {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        reading={"scaled_queries": True},
    ),
)


def compute_rope(case: RopeCase) -> dict[str, np.ndarray]:
    """What transformers computes: `inv_freq`, `attention_factor`, and the heads turned as queries `q` and keys `k`."""
    import torch
    from transformers import AutoConfig

    model_type = case.fields["model_type"]
    fields = deepcopy({name: value for name, value in case.fields.items() if name != "model_type"})
    config: Any = AutoConfig.for_model(model_type, **fields)
    folder = model_type.removesuffix("_text")
    module: Any = import_module(f"transformers.models.{folder}.modeling_{folder}")
    rotary: Any = next(v for name, v in vars(module).items() if name.endswith("RotaryEmbedding"))(config)
    of_type = {"layer_type": case.layer_type} if case.layer_type else {}
    prefix = f"{case.layer_type}_" if case.layer_type else ""
    positions = torch.tensor([case.positions])
    heads = torch.from_numpy(case.heads()).transpose(0, 1)[None]
    cos, sin = rotary(heads, positions, **of_type)
    rotated = heads
    width = cos.shape[-1]
    if folder == "stablelm":
        rotated = heads[..., :width]
    q, k = module.apply_rotary_pos_emb(rotated, rotated, cos, sin)
    if width < heads.shape[-1] and q.shape[-1] == width:
        q, k = (torch.cat([turned, heads[..., width:]], -1) for turned in (q, k))
    if beta := config.rope_parameters.get("llama_4_scaling_beta"):
        original = config.rope_parameters["original_max_position_embeddings"]
        q = q * module.get_llama_4_attn_scale(positions, beta, original)
    factor = getattr(rotary, f"{prefix}attention_scaling")
    return {
        "inv_freq": getattr(rotary, f"{prefix}inv_freq").numpy(),
        "attention_factor": np.float64(factor),
        **{name: turned[0].transpose(0, 1).numpy() for name, turned in (("q", q), ("k", k))},
    }


def compute_ropes() -> dict[str, np.ndarray]:
    """The answers for all cases, as `NAME.array`."""
    return {f"{case.name}.{name}": array for case in ROPE_CASES for name, array in compute_rope(case).items()}


def load_rope(name: str) -> dict[str, np.ndarray]:
    """The committed answers for one case."""
    with np.load(ROPES) as stored:
        return {key.split(".")[1]: stored[key] for key in stored.files if key.split(".")[0] == name}
