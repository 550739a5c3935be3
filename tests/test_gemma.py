"""Gemma 1, 2 and 3: what each declares counts, in logits, kernels, defaults and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import Tiny
from oracle.checkpoints import write_checkpoint
from oracle.weights import random_weights
from test_families import ARCHS, TINY, configured, error_of, kernels

from infernum import ops
from infernum.checkpoint import Checkpoint
from infernum.codegen.nvrtc import compile_cuda
from infernum.compiler import Options, emit_sources
from infernum.dtypes import BF16, F32
from infernum.errors import CheckpointError, ConfigError
from infernum.ir.block import Tensor, Weights
from infernum.models import gemma
from infernum.models.activations import ACTIVATIONS
from infernum.models.config import find_family, understand
from infernum.models.fields import Fields
from infernum.models.gemma import Gemma2Config, Gemma3TextConfig, GemmaConfig
from infernum.models.presets import resolve
from infernum.opening import check_claims
from infernum.rope import Rope

MODEL_TYPES = gemma.FAMILY.model_types
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
Patch = Callable[[pytest.MonkeyPatch], None]


# ---- what transformers does counts


def without_one_in(*names: str) -> Patch:
    """Forget the 1 of 1 + weight in the norms of these names."""

    def norm(x: Tensor, w: Weights, name: str, cfg: GemmaConfig) -> Tensor:
        weight = w.tensor(f"{name}.weight", int(x.shape[-1]))
        return ops.rms_norm(x, weight, eps=cfg.rms_norm_eps, offset=0.0 if name in names else 1.0)

    return lambda patch: patch.setattr(gemma, "norm", norm)


def without_norms(*names: str) -> Patch:
    """Leave out the norms of these names."""
    norm = gemma.norm

    def some(x: Tensor, w: Weights, name: str, cfg: GemmaConfig) -> Tensor:
        return x if name in names else norm(x, w, name, cfg)

    return lambda patch: patch.setattr(gemma, "norm", some)


def with_(config: type[GemmaConfig], attribute: str, value: object) -> Patch:
    return lambda patch: patch.setattr(config, attribute, value)


def rotated(change: Callable[[Gemma3TextConfig, str], Rope]) -> Patch:
    return with_(Gemma3TextConfig, "rope_of", change)


def window(change: Callable[[int, str], int]) -> Patch:
    return with_(Gemma2Config, "window", lambda cfg, kind: change(cfg.sliding_window, kind))


def capped(scores: bool, logits: bool) -> Patch:
    caps_of = cast("property", Gemma2Config.caps).fget
    assert caps_of is not None
    return with_(
        Gemma2Config,
        "caps",
        property(lambda cfg: tuple(a * b for a, b in zip(caps_of(cfg), (scores, logits), strict=True))),
    )


IGNORED: dict[str, tuple[str, Patch, str, float]] = {
    **{
        f"the 1 of {name}, Gemma 1": ("gemma", without_one_in(name), "", 1e-2)
        for name in (*NORMS[:2], "model.norm")
    },
    **{f"the 1 of {name}, Gemma 2": ("gemma2", without_one_in(name), "", 1e-2) for name in NORMS},
    **{
        f"the 1 of {name}": ("gemma3_text", without_one_in(name), "", 1e-2)
        for name in (*NORMS, "q_norm", "k_norm")
    },
    **{
        f"the norm {name}": ("gemma3_text", without_norms(name), name, 1e-2)
        for name in (*NORMS, "q_norm", "k_norm")
    },
    "the root of the width": (
        "gemma",
        lambda patch: patch.setattr(gemma, "scale", lambda x, by: x),
        "",
        1e-2,
    ),
    "gelu that means a tangent": ("gemma", with_(GemmaConfig, "activations", ACTIVATIONS), "", 3e-5),
    "gelu that means gelu": (
        "gemma2_types",
        with_(Gemma2Config, "activations", ACTIVATIONS | {"gelu": ops.gelu_tanh}),
        "",
        3e-5,
    ),
    "the cap of scores": ("gemma2", capped(scores=False, logits=True), "", 1e-2),
    "the cap of logits": ("gemma2", capped(scores=True, logits=False), "", 1e-2),
    "the cap of logits, Gemma 3": ("gemma3_text_types", capped(scores=True, logits=False), "", 1e-2),
    "query_pre_attn_scalar": (
        "gemma2",
        with_(Gemma2Config, "score_scale", property(lambda cfg: cfg.head_dim**-0.5)),
        "",
        1e-2,
    ),
    **{
        f"{what} of {of}": (of, change, "", 1e-3)
        for of in ("gemma2", "gemma2_types", "gemma3_text", "gemma3_text_types", "gemma3")
        for what, change in {
            "the window": window(lambda size, kind: 0),
            "the kind of a layer": window(lambda size, kind: size),
            "the token itself in the window": window(lambda size, kind: size + 1 if kind == "sliding" else 0),
        }.items()
    },
    **{
        f"{what} of {of}": (of, change, "", 1e-3)
        for of in ("gemma3_text", "gemma3_text_types", "gemma3")
        for what, change in {
            "the rope of sliding layers": rotated(lambda cfg, kind: cfg.rope),
            "the rope of full layers": rotated(lambda cfg, kind: cfg.sliding_rope),
        }.items()
    },
    "the factor of full layers": (
        "gemma3_text",
        rotated(lambda cfg, kind: cfg.sliding_rope if kind == "sliding" else Rope(theta=cfg.rope.theta)),
        "",
        1e-3,
    ),
    "sliding layers without the factor": (
        "gemma3_text",
        rotated(
            lambda cfg, kind: (
                replace(cfg.sliding_rope, kind="linear", factor=8.0) if kind == "sliding" else cfg.rope
            )
        ),
        "",
        1e-3,
    ),
}
"""An oracle case, what has the model ignore what the key says, tensors that are not read then, and the least error."""


@pytest.mark.parametrize("name", IGNORED)
def test_logits_are_wrong_where_what_makes_a_gemma_is_ignored(
    name: str, tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, ignore, lacking, least = IGNORED[name]
    ignore(monkeypatch)
    assert error_of(tiny(of), tmp_path, lacking) > least


@pytest.mark.parametrize(
    "of", ["gemma", "gemma2", "gemma2_types", "gemma3_text", "gemma3_text_types", "gemma3"]
)
def test_logits_are_those_of_transformers_where_nothing_is_ignored(
    of: str, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    assert error_of(tiny(of), tmp_path) <= 1e-5


def test_the_root_of_the_width_is_rounded_to_the_type_of_the_model() -> None:
    cfg = configured("gemma", hidden_size=3072)
    by = {dtype: gemma.embed.trace(cfg, dtype).calls[-1].attrs["by"] for dtype in (BF16, F32)}
    assert by[BF16] == 55.5 and by[F32] == pytest.approx(55.4256, abs=1e-4)


# ---- kernels


MORE: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 64},
    "gemma2": {"head_dim": 64, "sliding_window": 100},
    "gemma3_text": {"head_dim": 64, "sliding_window": 100, "sliding_window_pattern": 2},
}


def small(model_type: str, **changes: Any) -> dict[str, Any]:
    if model_type == "gemma3":
        return {"model_type": "gemma3", "text_config": small("gemma3_text", **changes), "eos_token_id": 1}
    return TINY | {"model_type": model_type} | MORE[model_type] | changes


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(
    ("model_type", "count"), [("gemma", 5), ("gemma2", 7), ("gemma3_text", 7), ("gemma3", 7)]
)
def test_a_layer_is_few_kernels_for_one_token(model_type: str, count: int, head_dim: int) -> None:
    blocks = kernels(small(model_type, head_dim=head_dim))
    layers = {name: names for name, names in blocks.items() if "decoder" in name}
    assert len(layers) == (1 if model_type == "gemma" else 2)
    assert {len(names) for names in layers.values()} == {count}, layers


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_kernels_for_one_token_compile_without_a_spill(model_type: str, arch: str) -> None:
    sources = emit_sources(
        understand(Fields(small(model_type), "small")), Options(dtype="bfloat16", arch=arch)
    )
    for block in sources.blocks:
        if block.stem.endswith(".t1"):
            cubin = compile_cuda(block.source, name=f"{block.stem}.cu", arch=arch, cache=None)
            assert all(used.spill_bytes == 0 == used.stack_bytes for used in cubin.kernels.values())


def test_each_kind_of_layer_is_one_block() -> None:
    cfg = understand(Fields(small("gemma3_text", sliding_window_pattern=3), "small")).config
    names = [block.name for block, layer in gemma.FAMILY.program(cfg) if layer is not None]
    sliding, full = "normed_decoder_sliding", "normed_decoder_full"
    assert names == [sliding, sliding, full, sliding, sliding, full, sliding, sliding]


# ---- defaults


SLIDING, FULL = "sliding_attention", "full_attention"
LINEAR = {"rope_type": "linear", "factor": 8.0}
DEFAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "gemma",
        {},
        {"head_dim": 256, "caps": (0.0, 0.0), "score_scale": 256**-0.5, "tie_word_embeddings": True},
    ),
    (
        "gemma",
        {"hidden_size": ..., "num_attention_heads": ..., "num_key_value_heads": ..., "vocab_size": ...},
        {"hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 256000},
    ),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, {"activation": "gelu"}),
    (
        "gemma2",
        {},
        {
            "layer_types": (SLIDING, FULL) * 4,
            "caps": (50.0, 30.0),
            "sliding_window": 4096,
            "score_scale": 256**-0.5,
        },
    ),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"caps": (0.0, 0.0)}),
    ("gemma2", {"query_pre_attn_scalar": 144}, {"score_scale": 144**-0.5}),
    ("gemma2", {"layer_types": [FULL] * 8, "sliding_window": None}, {"layer_types": (FULL,) * 8}),
    (
        "gemma3_text",
        {"vocab_size": ..., "max_position_embeddings": ...},
        {
            "layer_types": (*(SLIDING,) * 5, FULL, SLIDING, SLIDING),
            "caps": (0.0, 0.0),
            "rope": Rope(theta=1e6),
            "sliding_rope": Rope(theta=1e4),
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
        },
    ),
    (
        "gemma3_text",
        {"rope_scaling": LINEAR, "rope_theta": 2e6, "rope_local_base_freq": 3e4},
        {"rope": Rope("linear", 2e6, factor=8.0), "sliding_rope": Rope(theta=3e4)},
    ),
    (
        "gemma3_text",
        {"rope_parameters": {FULL: LINEAR | {"rope_theta": 1e6}, SLIDING: {"rope_theta": 1e4}}},
        {"rope": Rope("linear", 1e6, factor=8.0), "sliding_rope": Rope(theta=1e4)},
    ),
    (
        "gemma3_text",
        {"sliding_window_pattern": 2, "layer_types": [FULL, *[SLIDING] * 7]},
        {"layer_types": (FULL, *(SLIDING,) * 7)},
    ),
]
"""Model type, changes of the small model, and what its configuration then holds."""


@pytest.mark.parametrize(("model_type", "changes", "expected"), DEFAULTS)
def test_absent_fields_and_null_mean_what_they_mean_in_transformers(
    model_type: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    cfg = configured(model_type, **changes)
    assert {name: getattr(cfg, name) for name in expected} == expected


def test_the_file_of_a_gemma_3_that_sees_images_has_few_fields_and_no_warnings() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    around = {"vision_config": {"image_size": 896}, "image_token_index": 262144, "eos_token_id": [1, 106]}
    files = [
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": text | more,
            **around,
        }
        for more in ({"model_type": "gemma3_text"}, {})
    ]
    for fields in files:
        source = understand(Fields(fields, "config.json"))
        cfg = cast("gemma.Gemma3Config", source.config)
        assert (cfg.vocab_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim) == (
            262208,
            8,
            4,
            256,
        )
        assert cfg.layer_types.count(FULL) == 5 and source.warnings == ()
        assert source.generation.eos_token_ids == (1, 106)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_type_survives_json(model_type: str) -> None:
    cfg = understand(Fields(small(model_type), "small")).config
    assert find_family(model_type) is gemma.FAMILY
    assert type(cfg).from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


# ---- errors


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"hidden_act": "prelu"}, 'hidden_act = "prelu" must be one of gelu, '),
    (
        "gemma",
        {"hidden_activation": "relu"},
        'hidden_activation = "relu" is not supported: the activation is hidden_act',
    ),
    ("gemma", {"sliding_window": 64}, "sliding_window = 64 is not supported"),
    ("gemma", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true is not supported"),
    ("gemma2", {"layer_types": [FULL] * 7}, "layer_types = .* it must have num_hidden_layers = 8"),
    (
        "gemma2",
        {"layer_types": [FULL] * 7 + ["chunked"]},
        'layer_types = .* has "chunked", which must be one of',
    ),
    ("gemma2", {"sliding_window": None}, "sliding_window is null, but layer_types has sliding_attention"),
    ("gemma2", {"sliding_window": 0}, "sliding_window = 0 must be an integer from 1"),
    ("gemma2", {"sliding_window_pattern": 6}, "sliding_window_pattern = 6 must be 2 in a model of this type"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0 must be a number, greater than 0"),
    (
        "gemma2",
        {"attn_logit_softcapping": -1},
        "attn_logit_softcapping = -1 must be a number, greater than 0",
    ),
    ("gemma2", {"num_experts": 8}, "num_experts = 8 is not supported: mixtures of experts"),
    (
        "gemma3_text",
        {"attn_logit_softcapping": 50.0},
        "attn_logit_softcapping = 50.0 must be null in a model of this",
    ),
    (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention = true is not supported",
    ),
    (
        "gemma3_text",
        {"rope_scaling": {"factor": 8.0}},
        "rope_type is missing",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {FULL: {"rope_theta": 1e6}}},
        "rope_parameters = .* has no sliding_attention",
    ),
    (
        "gemma3_text",
        {
            "rope_local_base_freq": 2e4,
            "rope_parameters": {FULL: {"rope_theta": 1e6}, SLIDING: {"rope_theta": 1e4}},
        },
        "rope_local_base_freq = 20000.0 contradicts rope_parameters.sliding_attention.rope_theta",
    ),
]
"""Model type, changes of the small model, and the error."""


@pytest.mark.parametrize(("model_type", "changes", "error"), REFUSED)
def test_what_a_gemma_cannot_be_is_refused_in_one_line(
    model_type: str, changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error) as refused:
        configured(model_type, **changes)
    assert str(refused.value).startswith("config.json: ") and "\n" not in str(refused.value)


def test_errors_of_a_gemma_3_that_sees_images_name_the_nested_field() -> None:
    with pytest.raises(ConfigError, match=r"^small: text_config\.layer_types = .* has 1 elements"):
        understand(Fields(small("gemma3", layer_types=[FULL]), "small"))
    with pytest.raises(
        ConfigError, match=r"^small: tie_word_embeddings = false contradicts text_config\.tie_word"
    ):
        understand(
            Fields(small("gemma3", tie_word_embeddings=True) | {"tie_word_embeddings": False}, "small")
        )


@pytest.mark.parametrize("of", ["gemma2", "gemma3_text", "gemma3", "gemma3_untied"])
@pytest.mark.parametrize("lacking", ["layers.1.post_feedforward_layernorm.weight", "norm.weight"])
def test_a_missing_norm_is_named(of: str, lacking: str, tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    config = tiny(of).case.config
    weights = random_weights(config)
    present = {name: tensor for name, tensor in weights.items() if not name.endswith(f".{lacking}")}
    folder = write_checkpoint(tmp_path, config, present)
    with pytest.raises(
        CheckpointError, match=rf"model\.{lacking}( is missing|: the checkpoint has no such tensor)"
    ):
        check_claims(resolve(str(folder)), Checkpoint.open(folder))
