"""The model types of Llama's architecture: what each declares counts, in logits, kernels, defaults and errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import Tiny, graphs_only
from oracle.checkpoints import write_checkpoint
from oracle.golden import load_golden, relative_error
from oracle.weights import random_weights

from infernum import LLM
from infernum.codegen.nvrtc import compile_cuda, supported_archs
from infernum.codegen.steps import KernelStep
from infernum.compiler import Options, emit_sources
from infernum.dtypes import F32
from infernum.errors import ConfigError
from infernum.graph_bundle import trace_model
from infernum.ir.graph import Input
from infernum.models import llama, mistral3, phi3
from infernum.models.config import families, find_family, understand
from infernum.models.fields import Fields
from infernum.models.llama import Factors, LlamaConfig
from infernum.models.presets import resolve
from infernum.recipes import tensors_of
from infernum.rope import Rope
from infernum.weights.plan import plan_weights

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}
ARCHS = [arch for arch in ("sm_80", "sm_90a") if arch in supported_archs()]
FAMILIES = (llama.FAMILY, mistral3.FAMILY, phi3.FAMILY)
MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]


def small(model_type: str, /, **changes: Any) -> dict[str, Any]:
    """The config.json of a small model; a field changed to Ellipsis is left out."""
    nested = find_family(model_type).config_of(model_type).nested
    inner = model_type if nested is None else nested.model_types[0]
    fields = {k: v for k, v in (TINY | {"model_type": inner} | changes).items() if v is not ...}
    return fields if nested is None else {"model_type": model_type, nested.name: fields, "eos_token_id": 1}


def configured(model_type: str, /, **changes: Any) -> Any:
    """The configuration of a small model; a field changed to Ellipsis is left out."""
    return understand(Fields(small(model_type, **changes), "config.json")).config


# ---- what transformers does counts


def error_of(tiny: Tiny, folder: Path, lacking: str = "", zero: str = "") -> float:
    """The error of the float32 logits against transformers', with tensors of the checkpoint left out or set to zero."""
    golden = load_golden(tiny.case.name)
    weights = random_weights(tiny.case.config)
    present = {
        name: tensor * np.float32(not (zero and re.search(zero, name)))
        for name, tensor in weights.items()
        if not (lacking and re.search(lacking, name))
    }
    model = write_checkpoint(folder / "model", tiny.case.config, present)
    bundle = trace_model(resolve(str(model)), folder / "bundle", dtype="float32")
    with LLM(model, device="cpu", dtype="float32", bundle=bundle) as llm:
        logits = llm.logits(golden.token_ids.tolist())
    return relative_error(logits[golden.positions], golden.stored.logits)


def without(part: str) -> property:
    """The factors of a Granite, but for one of them."""
    plain = Factors(scores=16**-0.5)
    factors_of = cast("property", llama.GraniteConfig.factors).fget
    assert factors_of is not None
    return property(lambda cfg: replace(factors_of(cfg), **{part: getattr(plain, part)}))


IGNORED: dict[str, tuple[str, type[LlamaConfig], str, object, str]] = {
    **{
        f"layers without rope of {case}": (case, llama.SmolLM3Config, "turns", turns, "")
        for case, turns in {
            "smollm3": lambda cfg, layer: True,
            "smollm3_list": lambda cfg, layer: not cfg.no_rope_layers[layer],
        }.items()
    },
    **{
        f"the factor of {part}": ("granite", llama.GraniteConfig, "factors", without(part), "")
        for part in ("scores", "embeddings", "added", "logits")
    },
    **{
        f"the window of {case}": (case, config, "window", lambda cfg, layer: 0, "")
        for case, config in {
            "mistral_slides": llama.MistralConfig,
            "ministral": llama.MinistralConfig,
            "qwen2_slides": llama.Qwen2Config,
            "qwen3_slides": llama.Qwen3Config,
            "smollm3_slides": llama.SmolLM3Config,
        }.items()
    },
    **{
        f"the layers with a window of {case}": (case, config, "slides", slides, "")
        for case, config, slides in (
            ("ministral_types", llama.MinistralConfig, lambda cfg, layer: True),
            ("qwen2_slides", llama.Qwen2Config, lambda cfg, layer: layer < cfg.max_window_layers),
            ("qwen3_slides", llama.Qwen3Config, lambda cfg, layer: layer >= cfg.max_window_layers),
            ("smollm3_slides", llama.SmolLM3Config, lambda cfg, layer: cfg.turns(layer)),
            ("smollm3_types", llama.SmolLM3Config, lambda cfg, layer: not cfg.turns(layer)),
        )
    },
    "a token at the border of a window": (
        "mistral_slides",
        llama.MistralConfig,
        "window",
        lambda cfg, layer: 25,
        "",
    ),
    "norms of heads": ("qwen3", llama.Qwen3Config, "normed_heads", False, r"self_attn\.[qk]_norm"),
}
"""What makes a model type what it is: an oracle case that has it; the attribute of a class, and the value with which
it is ignored; tensors that are not read then."""


@pytest.mark.parametrize("name", IGNORED)
def test_logits_are_wrong_where_what_a_model_type_adds_is_ignored(
    name: str, tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, config, attribute, value, lacking = IGNORED[name]
    assert error_of(tiny(of), tmp_path / "right") <= 1e-5
    monkeypatch.setattr(config, attribute, value)
    assert error_of(tiny(of), tmp_path / "wrong", lacking) > 1e-2


OTHERWISE: list[tuple[str, dict[str, Any]]] = [
    ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.0}}),
    ("ministral3", {"rope_parameters": {"rope_type": "default", "type": None}}),
    ("ministral3", {"rope_parameters": {"truncate": False}}),
    ("ministral3_slides", {"rope_parameters": {"mscale_all_dim": 1.0}}),
    ("ministral3_slides", {"sliding_window": 51}),
    ("mistral3", {"text_config": {"rope_theta": 1000.0}}),
    ("mistral3_tied", {"text_config": {"rope_parameters": None}}),
    ("phi3", {"rope_theta": 10000.0}),
    ("phi3", {"partial_rotary_factor": 0.5}),
    ("phi3_slides", {"sliding_window": None}),
    ("phi3_short", {"original_max_position_embeddings": 199}),
    ("phi3_long", {"original_max_position_embeddings": 200}),
    ("phi3_border", {"original_max_position_embeddings": 195}),
    ("phi3_border", {"rope_scaling": None}),
]
"""An oracle case, and fields of its config.json, also within objects, that make it another model."""


@pytest.mark.parametrize(("of", "changes"), OTHERWISE)
def test_logits_are_wrong_where_a_field_is_read_otherwise(
    of: str, changes: dict[str, Any], tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    config = dict(tiny(of).case.config)
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    other = Tiny(replace(tiny(of).case, config=config), tmp_path, tmp_path)
    assert error_of(other, tmp_path) > 1e-3


@pytest.mark.parametrize(
    ("of", "zero"),
    [
        ("qwen2", r"q_proj\.bias"),
        ("qwen2", r"k_proj\.bias"),
        ("qwen2", r"v_proj\.bias"),
        ("seed_oss", r"[qkv]_proj\.bias"),
        ("seed_oss_out", r"o_proj\.bias"),
    ],
)
def test_logits_are_wrong_without_a_bias(
    of: str, zero: str, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    assert error_of(tiny(of), tmp_path, zero=zero) > 1e-2


# ---- kernels


def kernels(config: dict[str, Any], variant: str = "t1") -> dict[str, list[str]]:
    """The kernels of each distinct block for one token, by the name of the block."""
    sources = emit_sources(understand(Fields(config, "small")), Options(dtype="bfloat16"))
    return {
        b.block: [s.name for s in b.plan.steps if isinstance(s, KernelStep)]
        for b in sources.blocks
        if b.stem.endswith(f".{variant}")
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_layer_is_five_kernels_for_one_token(model_type: str) -> None:
    blocks = kernels(small(model_type, **MORE.get(model_type, {})))
    layers = {name: names for name, names in blocks.items() if name.startswith("decoder")}
    assert layers and {len(names) for names in layers.values()} == {5}, layers


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "llama"])
def test_kernels_for_one_token_compile_without_a_spill(model_type: str, arch: str) -> None:
    fields = small(model_type, **MORE.get(model_type, {}))
    sources = emit_sources(understand(Fields(fields, "small")), Options(dtype="bfloat16", arch=arch))
    for block in sources.blocks:
        if block.stem.endswith(".t1"):
            cubin = compile_cuda(block.source, name=f"{block.stem}.cu", arch=arch, cache=None)
            assert all(used.spill_bytes == 0 == used.stack_bytes for used in cubin.kernels.values())


MORE: dict[str, dict[str, Any]] = {
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125,
        "logits_scaling": 16.0,
    },
}
"""Fields that the small model needs beside TINY to be read as this model type, or to show all of it."""


def test_the_rows_of_a_fused_tensor_are_one_product_and_are_stored_once(tmp_path: Path) -> None:
    """Phi-3 has the kernels and the bytes of a Mistral, whose projections are tensors of their own."""
    plans = {
        model_type: plan_weights(
            graphs_only(
                understand(Fields(small(model_type), "small")),
                Options(dtype="bfloat16"),
                tmp_path / model_type,
            ).manifest
        )
        for model_type in ("phi3", "mistral")
    }
    assert kernels(small("phi3")) == kernels(small("mistral"))
    assert plans["phi3"].total_bytes == plans["mistral"].total_bytes
    assert len(plans["phi3"].stored) == len(plans["mistral"].stored)


def test_layers_with_and_without_rope_are_two_blocks() -> None:
    cfg = configured("smollm3")
    names = [block.name for block, layer in llama.FAMILY.program(cfg) if layer is not None]
    assert names == ["decoder", "decoder", "decoder", "decoder_no_rope"] * 2
    ops = {
        block.name: [n.op.name for n in block.trace(cfg, F32).calls] for block, _ in llama.FAMILY.program(cfg)
    }
    assert (ops["decoder"].count("rope"), ops["decoder_no_rope"].count("rope")) == (2, 0)


WINDOWS: list[tuple[str, dict[str, Any], list[int]]] = [
    ("mistral", {"sliding_window": 8}, [8] * 8),
    ("mistral", {"sliding_window": 511}, [511] * 8),
    ("mistral", {"sliding_window": 512}, [0] * 8),
    ("mistral", {"sliding_window": None, "layer_types": ["full_attention"] * 8}, [0] * 8),
    ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 8}, [8] * 8),
    ("mistral", {"max_position_embeddings": 4097}, [4096] * 8),
    ("mistral", {"max_position_embeddings": ...}, [4096] * 8),
    ("ministral", {"sliding_window": 8}, [8] * 8),
    ("ministral", {"sliding_window": None}, [0] * 8),
    ("ministral", {"max_position_embeddings": ...}, [4096] * 8),
    (
        "ministral",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 4},
        [8, 0] * 4,
    ),
    *(
        (model_type, changes, windows)
        for model_type in ("qwen2", "qwen3")
        for changes, windows in (
            ({"sliding_window": 8, "max_window_layers": 1}, [0] * 8),
            ({"sliding_window": 8, "max_window_layers": 1, "use_sliding_window": False}, [0] * 8),
            ({"sliding_window": 8, "max_window_layers": 3, "use_sliding_window": True}, [0] * 3 + [8] * 5),
            ({"sliding_window": 8, "max_window_layers": 0, "use_sliding_window": True}, [8] * 8),
            ({"sliding_window": 8, "use_sliding_window": True}, [0] * 8),
            ({"sliding_window": None, "max_window_layers": 0, "use_sliding_window": True}, [0] * 8),
            (
                {"max_window_layers": 7, "use_sliding_window": True, "max_position_embeddings": ...},
                [0] * 7 + [4096],
            ),
            (
                {
                    "sliding_window": 8,
                    "max_window_layers": 7,
                    "use_sliding_window": True,
                    "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 5,
                },
                [8] * 3 + [0] * 5,
            ),
        )
    ),
    ("smollm3", {"sliding_window": 8}, [0] * 8),
    ("smollm3", {"sliding_window": 8, "use_sliding_window": True}, [0, 0, 0, 8] * 2),
    ("smollm3", {"use_sliding_window": True}, [0] * 8),
    (
        "smollm3",
        {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 8},
        [8] * 8,
    ),
]
"""Model type, changes of TINY, and the window of each layer."""


@pytest.mark.parametrize(("model_type", "changes", "windows"), WINDOWS)
def test_each_layer_has_the_window_that_it_has_in_transformers(
    model_type: str, changes: dict[str, Any], windows: list[int]
) -> None:
    cfg = configured(model_type, **changes)
    assert [cfg.window(layer) for layer in range(8)] == windows


def test_layers_of_one_kind_are_one_block() -> None:
    cfg = configured(
        "smollm3",
        sliding_window=8,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"] * 4,
    )
    names = [block.name for block, layer in llama.FAMILY.program(cfg) if layer is not None]
    assert names == ["decoder", "decoder_window_8", "decoder", "decoder_no_rope_window_8"] * 2


# ---- defaults


DEFAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("granite", {}, {"factors": Factors(1.0), "head_dim": 64, "max_position_embeddings": 512}),
    (
        "granite",
        {"attention_multiplier": 0.5, "logits_scaling": 4, "num_key_value_heads": ...},
        {"factors": Factors(0.5, logits=0.25), "num_key_value_heads": 4},
    ),
    ("llama", {}, {"factors": Factors(0.125)}),
    (
        "smollm3",
        {},
        {"no_rope_layers": (1, 1, 1, 0) * 2, "rope": Rope(theta=2e6), "tie_word_embeddings": True},
    ),
    ("smollm3", {"no_rope_layer_interval": 3}, {"no_rope_layers": (1, 1, 0, 1, 1, 0, 1, 1)}),
    (
        "smollm3",
        {"no_rope_layers": [0] * 8, "rope_theta": 5e6},
        {"no_rope_layers": (0,) * 8, "rope": Rope(theta=5e6)},
    ),
    (
        "smollm3",
        {"num_key_value_heads": ..., "max_position_embeddings": ..., "sliding_window": 8},
        {"num_key_value_heads": 4, "max_position_embeddings": 32768},
    ),
    ("seed_oss", {}, {"head_dim": 128, "attention_bias": True, "output_bias": False, "mlp_bias": False}),
    ("seed_oss", {"head_dim": None, "num_key_value_heads": None}, {"head_dim": 64, "num_key_value_heads": 4}),
    (
        "seed_oss",
        {"num_key_value_heads": ..., "num_attention_heads": 16, "max_position_embeddings": ...},
        {"num_key_value_heads": 8, "max_position_embeddings": 524288},
    ),
    (
        "seed_oss",
        {"attention_out_bias": True, "attention_bias": False},
        {"output_bias": True, "attention_bias": False},
    ),
    (
        "ministral3",
        {},
        {
            "rope": Rope("yarn", theta=1e6, factor=16.0, original_max_position=16384, beta=0.1),
            "sliding_window": None,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
        },
    ),
    (
        "ministral3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "head_dim": None},
        {"rope": Rope(theta=5e5), "head_dim": 64},
    ),
    (
        "mistral3",
        {},
        {"sliding_window": 4096, "head_dim": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": None},
    ),
    (
        "mistral3",
        {"model_type": "ministral3", "max_position_embeddings": ...},
        {"sliding_window": None, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144},
    ),
    ("mistral3", {"model_type": ..., "tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    (
        "phi3",
        {"num_key_value_heads": ..., "max_position_embeddings": ...},
        {
            "sliding_window": None,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "rope": Rope(),
        },
    ),
    ("phi3", {"partial_rotary_factor": 0.75}, {"rope": Rope(partial=0.75)}),
    ("mistral", {}, {"sliding_window": 4096, "head_dim": 64, "attention_bias": False, "mlp_bias": False}),
    (
        "mistral",
        {"sliding_window": None, "max_position_embeddings": ..., "head_dim": None},
        {"sliding_window": None, "max_position_embeddings": 131072, "head_dim": 64},
    ),
    (
        "mistral",
        {"num_key_value_heads": ..., "num_attention_heads": 16, "head_dim": 128},
        {"num_key_value_heads": 8, "head_dim": 128},
    ),
    ("mistral", {"num_key_value_heads": None}, {"num_key_value_heads": 4}),
    ("mistral", {"sliding_window": 512}, {"sliding_window": 512}),
    ("qwen2", {}, {"head_dim": 64, "attention_bias": True, "output_bias": False, "mlp_bias": False}),
    ("qwen2", {"num_key_value_heads": None, "attention_bias": True}, {"num_key_value_heads": 4}),
    (
        "qwen2",
        {"num_key_value_heads": ..., "num_attention_heads": 64, "max_position_embeddings": ...},
        {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    ("qwen2", {"sliding_window": 8, "max_window_layers": 1}, {"head_dim": 64}),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, {"head_dim": 64}),
    ("qwen2", {"sliding_window": 512, "use_sliding_window": True}, {"head_dim": 64}),
    ("qwen3", {}, {"head_dim": 128, "num_key_value_heads": 2, "attention_bias": False, "mlp_bias": False}),
    ("qwen3", {"num_key_value_heads": None}, {"num_key_value_heads": 4}),
    (
        "qwen3",
        {"num_key_value_heads": ..., "num_attention_heads": 64, "max_position_embeddings": ...},
        {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    ("qwen3", {"sliding_window": 8, "max_window_layers": 1}, {"head_dim": 128}),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": False}, {"head_dim": 128}),
    ("qwen3", {"sliding_window": 512, "use_sliding_window": True}, {"head_dim": 128}),
]
"""Model type, changes of TINY, and what its configuration then holds."""


@pytest.mark.parametrize(("model_type", "changes", "expected"), DEFAULTS)
def test_absent_fields_and_null_mean_what_they_mean_in_transformers(
    model_type: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    cfg = configured(model_type, **changes)
    assert {name: getattr(cfg, name) for name in expected} == expected


# ---- errors


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("granite", {"logits_scaling": 0}, "logits_scaling = 0 must be a number, greater than 0"),
    ("granite", {"residual_multiplier": -1}, "residual_multiplier = -1 must be a number, greater than 0"),
    ("granite", {"embedding_multiplier": "12"}, 'embedding_multiplier = "12" must be a number'),
    ("granite", {"attention_multiplier": True}, "attention_multiplier = true must be a number"),
    ("granite", {"logit_scale": 0.5}, "logit_scale = 0.5 is not supported: multipliers"),
    ("seed_oss", {"attention_out_bias": 1}, "attention_out_bias = 1 must be true or false"),
    ("seed_oss", {"head_dim": 127}, "head_dim = 127 must be even"),
    ("seed_oss", {"sliding_window": 511}, "sliding_window = 511 is not supported"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers = .* it must have num_hidden_layers = 8"),
    ("smollm3", {"no_rope_layers": [1] * 7 + ["0"]}, "no_rope_layers = .*must be an integer"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval = 0 must be an integer from 1"),
    ("llama", {"no_rope_layers": [1] * 8}, "no_rope_layers = .* is not supported"),
    ("llama", {"logits_scaling": 2.0}, "logits_scaling = 2.0 is not supported: multipliers"),
    (
        "mistral",
        {"sliding_window": 8, "layer_types": ["full_attention"] * 8},
        "layer_types = .* is not supported: all layers of this model type have the window",
    ),
    ("mistral", {"layer_types": ["full_attention"] * 8}, "layer_types = .* is not supported: all layers"),
    ("mistral", {"use_sliding_window": False}, "use_sliding_window = false is not supported: .* null"),
    ("ministral", {"layer_types": ["full_attention"] * 7}, "layer_types .* num_hidden_layers = 8"),
    (
        "ministral",
        {"layer_types": ["chunked_attention"] * 8},
        'layer_types .*"chunked_attention", which must',
    ),
    ("ministral", {"layer_types": "sliding_attention"}, "layer_types .* must be a list"),
    (
        "ministral",
        {"layer_types": ["sliding_attention"] * 8, "sliding_window": None},
        "layer_types has sliding_attention, but there is no sliding_window",
    ),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0 must be an integer from 1"),
    ("mistral", {"sliding_window": "none"}, 'sliding_window = "none" must be an integer'),
    ("mistral", {"attention_bias": True}, "attention_bias = true must be false in a model of this type"),
    ("mistral", {"num_key_value_heads": ...}, "must be a multiple of num_key_value_heads = 8"),
    ("mistral3", {"sliding_window": -1}, "text_config.sliding_window = -1 must be an integer from 1"),
    ("mistral3", {"model_type": "mistral4"}, "text_config.model_type = .mistral4. is not supported here"),
    (
        "ministral3",
        {"sliding_window": 8, "layer_types": ["full_attention"] * 8},
        "layer_types = .* all layers of this model type have the window",
    ),
    (
        "ministral3",
        {"rope_parameters": {"rope_type": "yarn", "factor": -1.0}},
        "rope_parameters.factor = -1.0 must be a number, greater than 0",
    ),
    ("phi3", {"attention_bias": True}, "attention_bias = true must be false in a model of this type"),
    ("phi3", {"rope_scaling": {"type": "wild"}}, "rope_scaling.type = .wild. is not supported"),
    (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 31, "long_factor": [1.0] * 32}},
        "rope_scaling.short_factor .* must have 32 numbers",
    ),
    (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32}},
        "rope_scaling.long_factor is missing",
    ),
    (
        "phi3",
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 32,
                "long_factor": [2.0] * 32,
                "original_max_position_embeddings": 64,
            }
        },
        "original_max_position_embeddings is missing",
    ),
    ("phi3", {"partial_rotary_factor": 1.5}, "rope partial is 1.5; more than a whole head cannot be turned"),
    ("phi3", {"partial_rotary_factor": 0.02}, "rope partial is 0.02, 1 of 64 elements; it must turn whole"),
    ("qwen2", {"attention_bias": False}, "attention_bias = false must be true in a model of this type"),
    ("qwen2", {"mlp_bias": True}, "mlp_bias = true must be false in a model of this type"),
    (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 8, "sliding_window": 8},
        "layer_types has sliding_attention, but there is no sliding_window, or it is switched off",
    ),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window = 1 must be true or false"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window = 0 must be an integer"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers = -1 must be an integer from 0"),
    ("smollm3", {"layer_types": ["sliding_attention"] * 8}, "layer_types has sliding_attention, but"),
    ("qwen2", {"use_mrope": True}, "use_mrope = true is not supported"),
    ("qwen2", {"qkv_bias": True}, "qkv_bias = true is not supported"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias = true must be false in a model of this type"),
    (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 8, "sliding_window": 8},
        "layer_types has sliding_attention, but there is no sliding_window, or it is switched off",
    ),
    ("llama", {"layer_types": ["sliding_attention"] * 8}, "every layer must be full_attention"),
    ("qwen3", {"num_key_value_heads": ...}, "num_attention_heads = 4 must be a multiple of num_key_value"),
    ("qwen3", {"head_dim": 63}, "head_dim = 63 must be even"),
]
"""Model type, changes of TINY, and the error."""


@pytest.mark.parametrize(("model_type", "changes", "error"), REFUSED)
def test_what_a_model_type_cannot_be_is_refused_in_one_line(
    model_type: str, changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error) as refused:
        configured(model_type, **changes)
    assert str(refused.value).startswith("config.json: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_type_survives_json_and_differs_from_the_others(model_type: str) -> None:
    cfg = configured(model_type, **MORE.get(model_type, {}))
    assert model_type in families() and find_family(model_type) in FAMILIES
    assert type(cfg).from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


# ---- presets


PARAMETERS = {
    "llama": 1.24,
    "llama-3.2-3b": 3.21,
    "llama-3.1-8b": 8.03,
    "llama-3.3-70b": 70.55,
    "gemma-2-9b": 9.24,
    "gemma-3-1b": 1.0,
    "gemma-3-4b": 3.88,
    "gemma-3-12b": 11.77,
    "gemma-3-27b": 27.01,
    "granite-3.3-8b": 8.17,
    "mistral-7b": 7.24,
    "mistral-small-24b": 23.57,
    "phi-4": 14.66,
    "phi-4-mini": 3.84,
    "qwen2.5-7b": 7.62,
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "qwen3-14b": 14.77,
    "qwen3-32b": 32.76,
    "smollm3-3b": 3.08,
}
"""Billions of parameters of the public models, a tied table counted once."""


@pytest.mark.parametrize("preset", PARAMETERS)
def test_a_preset_has_as_many_parameters_as_the_public_model(preset: str) -> None:
    source = resolve(preset)
    sizes: dict[str, int] = {}
    for block, layer in find_family(source.family).program(source.config):
        for node in block.trace(source.config, F32).nodes:
            if isinstance(node.op, Input) and node.op.recipe is not None:
                tensor = next(iter(tensors_of(node.op.recipe)))
                sizes[tensor.names[0].format(layer=layer)] = math.prod(tensor.shape)
    assert round(sum(sizes.values()) / 1e9, 2) == PARAMETERS[preset]
    assert source.warnings == ()
