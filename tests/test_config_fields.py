"""How a family declares its configuration: spellings, defaults, switches, nested objects, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from infernum.errors import CompileError, ConfigError
from infernum.models import llama
from infernum.models.config import config_hash, families, find_family, understand
from infernum.models.config_fields import (
    fixed,
    flag,
    integer,
    integers,
    number,
    read_by,
    stored_dtype,
    text,
    texts,
    width_per_head,
)
from infernum.models.family import Family
from infernum.models.family_config import FamilyConfig, Nested
from infernum.models.fields import Fields, Unsupported
from infernum.models.known_fields import ARCHITECTURE

KINDS = ("full_attention", "sliding_attention")


def every_fourth_is_full(config: Any) -> tuple[str, ...]:
    if config.sliding_window is None:
        return ("full_attention",) * config.num_hidden_layers
    return tuple(KINDS[(i + 1) % 4 != 0] for i in range(config.num_hidden_layers))


@dataclass(frozen=True)
class WideConfig(FamilyConfig):
    """A configuration that uses everything that can be declared."""

    model_type: ClassVar[str] = "wide"
    refused = ARCHITECTURE | {"hidden_act": Unsupported("its activation is silu", ("silu",))}
    ignored = frozenset({"image_size"})

    vocab_size: int = integer()
    hidden_size: int = integer(spelled=("hidden_size", "n_embd"))
    num_hidden_layers: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(8)
    head_dim: int = integer(width_per_head, even="rope turns pairs")
    eps: float = number(1e-6, spelled=("rms_norm_eps", "layer_norm_epsilon", "norm_eps"))
    scale: float = number(lambda c: c.head_dim**-0.5, spelled=("attention_multiplier",))
    sliding_window: int | None = integer(4096, null=None, when="use_sliding_window")
    max_window_layers: int = integer(28, minimum=0)
    layer_types: tuple[str, ...] = texts(every_fourth_is_full, one_of=KINDS, length="num_hidden_layers")
    dense_layers: tuple[int, ...] = integers((), spelled=("mlp_only_layers",))
    form: str = text("plain", one_of=("plain", "gated"))
    tie_word_embeddings: bool = flag(False, outside=True)
    half: int = read_by(lambda fields, c: fields.integer("whole", c.hidden_size) // 2)
    max_position_embeddings: int = integer(2048)
    dtype: str = stored_dtype()


@dataclass(frozen=True)
class NarrowConfig(WideConfig):
    """Another model type, whose absent fields mean something else."""

    model_type: ClassVar[str] = "narrow"

    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    sliding_window: int | None = integer(None)


@dataclass(frozen=True)
class InsideConfig(NarrowConfig):
    """The same within an object, as models that also see images have it."""

    model_type: ClassVar[str] = "inside"
    nested = Nested("text_config", ("narrow",))
    ignored = frozenset({"vision_config", "image_size"})


TINY: dict[str, Any] = {
    "model_type": "wide",
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}


def wide(**changes: Any) -> WideConfig:
    """The tiny configuration with `changes`; a field changed to Ellipsis is left out."""
    return WideConfig.from_hf({k: v for k, v in (TINY | changes).items() if v is not ...})


def narrow(**changes: Any) -> NarrowConfig:
    return NarrowConfig.from_hf({k: v for k, v in (TINY | changes).items() if v is not ...})


def nested(text_config: dict[str, Any] | None = None, **around: Any) -> tuple[InsideConfig, Fields]:
    """A nested configuration, with what is changed in it and around it."""
    inner = TINY | {"model_type": "narrow"} | (text_config or {})
    inner = {k: v for k, v in inner.items() if v is not ...}
    fields = Fields({"model_type": "inside", "text_config": inner} | around, "config.json")
    return InsideConfig.from_hf(fields), fields


# ---- spellings


@pytest.mark.parametrize("spelling", ["rms_norm_eps", "layer_norm_epsilon", "norm_eps"])
def test_a_field_is_read_under_each_of_its_names(spelling: str) -> None:
    assert wide(**{spelling: 0.5}).eps == 0.5


def test_a_field_that_is_spelled_otherwise_is_not_read_under_its_own_name() -> None:
    fields = Fields(TINY | {"eps": 0.5}, "config.json")
    assert WideConfig.from_hf(fields).eps == 1e-6
    fields.warn_unread(frozenset({"model_type"}))
    assert fields.warnings == ("config.json: eps = 0.5 is not known and was ignored",)


def test_two_names_that_agree_are_both_understood() -> None:
    fields = Fields(TINY | {"norm_eps": 0.5, "rms_norm_eps": 0.5}, "config.json")
    assert WideConfig.from_hf(fields).eps == 0.5
    fields.warn_unread(frozenset({"model_type"}))
    assert fields.warnings == ()


def test_an_error_names_the_spelling_in_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: n_embd = 0 must be an integer from 1"):
        wide(hidden_size=..., n_embd=0)
    with pytest.raises(ConfigError, match=r"^config\.json: hidden_size is missing"):
        wide(hidden_size=...)


# ---- defaults


def test_a_default_is_a_value_or_a_function_of_the_fields_above() -> None:
    config = wide()
    assert (config.num_key_value_heads, config.head_dim, config.scale) == (8, 8, 8**-0.5)
    assert (config.half, config.dtype, config.dense_layers) == (32, "f32", ())


def test_a_default_that_cannot_be_computed_is_an_error_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: hidden_size = 60 must be a multiple of num_att"):
        wide(hidden_size=60)
    assert wide(hidden_size=60, head_dim=4).head_dim == 4


def test_model_types_may_differ_in_defaults() -> None:
    assert narrow(num_attention_heads=4).num_key_value_heads == 4
    assert wide(num_attention_heads=16).num_key_value_heads == 8
    assert narrow().sliding_window is None and narrow(sliding_window=7).sliding_window == 7
    assert config_hash(narrow()) != config_hash(wide())


def test_a_model_type_may_fix_what_others_read() -> None:
    @dataclass(frozen=True)
    class Fixed(WideConfig):
        tie_word_embeddings: bool = fixed(True)

    assert Fixed.from_hf(TINY).tie_word_embeddings and Fixed.from_hf(TINY | {"tie_word_embeddings": True})
    for other in (False, 1):
        with pytest.raises(
            ConfigError, match=r"^config\.json: tie_word_embeddings = .* must be true in a model"
        ):
            Fixed.from_hf(TINY | {"tie_word_embeddings": other})


# ---- null and switches


def test_null_is_absent_unless_a_field_says_what_it_means() -> None:
    assert wide(num_key_value_heads=None).num_key_value_heads == 8
    assert wide(use_sliding_window=True).sliding_window == 4096
    assert wide(use_sliding_window=True, sliding_window=None).sliding_window is None


def test_a_field_counts_only_if_its_switch_is_on() -> None:
    on, off = (
        wide(use_sliding_window=True, sliding_window=16),
        wide(use_sliding_window=False, sliding_window=16),
    )
    assert (on.sliding_window, off.sliding_window, wide(sliding_window=16).sliding_window) == (16, 4096, 4096)


def test_a_field_that_is_turned_off_gets_no_warning() -> None:
    fields = Fields(TINY | {"sliding_window": "whatever"}, "config.json")
    WideConfig.from_hf(fields)
    fields.warn_unread(frozenset({"model_type"}))
    assert fields.warnings == ()


def test_a_switch_must_be_true_or_false() -> None:
    with pytest.raises(ConfigError, match="use_sliding_window = 1 must be true or false"):
        wide(use_sliding_window=1, sliding_window=16)


def test_a_switch_may_be_a_field_itself() -> None:
    @dataclass(frozen=True)
    class Gated(WideConfig):
        use_sliding_window: bool = flag(True)
        threshold: float = number(0.5, when="tie_word_embeddings")

    read: Callable[..., Gated] = lambda **changes: Gated.from_hf(TINY | changes)  # noqa: E731
    assert read(tie_word_embeddings=True, threshold=2).threshold == 2.0
    assert read(threshold=2).threshold == 0.5


def test_a_refused_field_is_accepted_where_its_switch_is_off() -> None:
    fields = {**TINY, "intermediate_size": 8, "sliding_window": 131072}
    assert llama.LlamaConfig.from_hf(fields | {"use_sliding_window": False})
    for switch in ({}, {"use_sliding_window": None}, {"use_sliding_window": True}):
        with pytest.raises(ConfigError, match=r"sliding_window .*is not supported"):
            llama.LlamaConfig.from_hf(fields | switch)


# ---- what is refused


def test_what_a_class_declares_or_uses_as_a_switch_is_not_refused() -> None:
    assert narrow(sliding_window=7, attention_multiplier=0.5).scale == 0.5
    with pytest.raises(ConfigError, match="use_sliding_window = true is not supported"):
        narrow(use_sliding_window=True)
    with pytest.raises(ConfigError, match="embedding_multiplier = 2 is not supported"):
        wide(embedding_multiplier=2)
    with pytest.raises(ConfigError, match=r"hidden_act = \"gelu\" is not supported: its activation is silu"):
        wide(hidden_act="gelu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"norm_eps": 0.5, "rms_norm_eps": 0.25},
            "norm_eps = 0.5 contradicts rms_norm_eps = 0.25; keep only",
        ),
        ({"n_embd": 65}, "n_embd = 65 contradicts hidden_size = 64; keep only the right one"),
        ({"head_dim": 7}, "head_dim = 7 must be even: rope turns pairs"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 8 must be a multiple of num_key_value_heads = 3"),
        ({"form": "round"}, 'form = "round" must be one of plain, gated'),
        ({"form": 3}, "form = 3 must be a string"),
        ({"max_window_layers": -1}, "max_window_layers = -1 must be an integer from 0"),
        ({"layer_types": ["full_attention"]}, "has 1 elements; it must have num_hidden_layers = 2"),
        ({"layer_types": "full_attention"}, 'layer_types = "full_attention" must be a list'),
        ({"layer_types": ["full_attention", "x"]}, 'has "x", which must be one of full_attention, sliding'),
        (
            {"mlp_only_layers": [0, -1]},
            r"mlp_only_layers = \[0, -1\] has -1, which must be an integer from 0",
        ),
        ({"attention_multiplier": 0}, "attention_multiplier = 0 must be a number, greater than 0"),
        ({"whole": 0}, "whole = 0 must be an integer from 1"),
        ({"dtype": "int8"}, 'dtype = "int8" is not supported; use one of float32'),
        ({"vocab_size": None}, "vocab_size is missing; add it from the original model"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* is not supported"),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{said}"):
        wide(**changes)


def test_a_list_has_an_element_for_each_layer() -> None:
    kinds = ["sliding_attention", "full_attention"]
    assert wide(layer_types=kinds, mlp_only_layers=[1]).layer_types == tuple(kinds)
    assert wide(num_hidden_layers=5).layer_types.index("full_attention") == 3
    assert narrow(num_hidden_layers=5).layer_types == ("full_attention",) * 5


# ---- nested


def test_fields_are_read_from_the_nested_object() -> None:
    config, fields = nested({"hidden_size": 128}, tie_word_embeddings=True, torch_dtype="bfloat16")
    assert (config.hidden_size, config.tie_word_embeddings, config.dtype) == (128, True, "bf16")
    fields.warn_unread(frozenset({"model_type"}))
    assert fields.warnings == ()


def test_what_the_nested_object_has_wins_where_it_may_also_stand_outside() -> None:
    assert nested({"dtype": "float16"})[0].dtype == "f16"
    assert nested({"tie_word_embeddings": True})[0].tie_word_embeddings
    with pytest.raises(
        ConfigError, match=r"tie_word_embeddings = false contradicts text_config\.tie_word_embeddings = true"
    ):
        nested({"tie_word_embeddings": True}, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ({"hidden_size": 0}, "text_config.hidden_size = 0 must be an integer from 1"),
        ({"hidden_size": ...}, "text_config.hidden_size is missing"),
        ({"hidden_size": 60}, "text_config.hidden_size = 60 must be a multiple of num_attention_heads = 8"),
        ({"num_key_value_heads": 3}, "text_config.num_attention_heads = 8 must be a multiple of"),
        ({"head_dim": 7}, "text_config.head_dim = 7 must be even"),
        ({"model_type": "wide"}, 'text_config.model_type = "wide" is not supported here; supported: narrow'),
        ({"final_logit_softcapping": 3.0}, "text_config.final_logit_softcapping = 3.0 is not supported"),
        ({"quantization_config": {"bits": 4}}, "text_config.quantization_config = .* is not supported"),
        ({"n_embd": 3}, "text_config.n_embd = 3 contradicts text_config.hidden_size = 64"),
        ({"dtype": 3}, "text_config.dtype = 3 must be a string"),
    ],
)
def test_errors_name_the_nested_object(inner: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: {said}"):
        nested(inner)


def test_a_nested_object_without_a_model_type_has_the_first_of_those_supported() -> None:
    assert nested({"model_type": ...})[0] == nested()[0]


def test_a_field_that_is_not_known_is_reported_with_the_nested_object() -> None:
    _, fields = nested({"brand_new": 1, "use_cache": True}, image_size=3, vision_config={"a": 1})
    assert fields.warnings == ("config.json: text_config.brand_new = 1 is not known and was ignored",)


def test_what_is_refused_everywhere_is_refused_around_the_nested_object_too() -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: quantization_config = "):
        nested(quantization_config={"bits": 4})
    with pytest.raises(ConfigError, match=r"^config\.json: text_config is missing"):
        InsideConfig.from_hf({"model_type": "inside"})
    with pytest.raises(ConfigError, match=r"text_config = .* is not supported"):
        wide(text_config={"a": 1})


# ---- JSON


def test_a_configuration_survives_json() -> None:
    config = wide(layer_types=["sliding_attention", "full_attention"], sliding_window=None)
    data = json.loads(json.dumps(config.to_json()))
    assert data == config.to_json() and data["layer_types"] == ["sliding_attention", "full_attention"]
    assert WideConfig.from_json(data) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "missing or unknown: extra"),
        ({"head_dim": ...}, "missing or unknown: head_dim"),
        ({"head_dim": "8"}, "Expected `int`, got `str`"),
        ({"head_dim": 7}, "head_dim = 7 must be even"),
        ({"head_dim": None}, "Expected `int`, got `null`"),
        ({"layer_types": ["full_attention"]}, "layer_types = .* has 1 elements"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0 must be an integer from 1"),
        ({"dtype": "f64"}, 'dtype = "f64" must be one of f32, f16, bf16'),
    ],
)
def test_json_that_is_no_configuration_is_refused(change: dict[str, Any], said: str) -> None:
    data = {name: value for name, value in (wide().to_json() | change).items() if value is not ...}
    with pytest.raises(ConfigError, match=rf"^model configuration: .*{said}.*; compile the model again$"):
        WideConfig.from_json(data)


def test_a_configuration_is_checked_when_it_is_constructed() -> None:
    with pytest.raises(ConfigError, match=r"^head_dim = 7 must be even: rope turns pairs$"):
        WideConfig(**vars(wide()) | {"head_dim": 7})
    with pytest.raises(ConfigError, match="head_dim = null must be an integer"):
        WideConfig(**vars(wide()) | {"head_dim": None})


def test_a_check_of_the_familys_own_is_an_error_of_the_file() -> None:
    @dataclass(frozen=True)
    class Checked(InsideConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.hidden_size > 64:
                raise ConfigError(f"hidden_size = {self.hidden_size} is too much")

    with pytest.raises(ConfigError, match=r"^config\.json: text_config\.hidden_size = 128 is too much$"):
        Checked.from_hf({"text_config": TINY | {"model_type": "narrow", "hidden_size": 128}})


# ---- declarations


def family(*configs: Any) -> Family:
    return Family(configs=configs, first=llama.embed, layer=llama.FAMILY.layer, last=llama.head)


def test_one_family_may_serve_several_model_types(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = family(WideConfig, NarrowConfig, InsideConfig)
    assert mine.model_types == ("wide", "narrow", "inside")
    monkeypatch.setattr("infernum.models.config.ADDED", dict.fromkeys(mine.model_types, mine))
    assert find_family("narrow") is mine and mine.config_of("narrow") is NarrowConfig
    assert {"wide", "narrow", "llama"} <= {*families()}


def test_token_ids_and_architectures_of_a_nested_configuration_are_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = family(WideConfig, InsideConfig)
    monkeypatch.setattr("infernum.models.config.ADDED", dict.fromkeys(mine.model_types, mine))
    inner = TINY | {"model_type": "narrow", "eos_token_id": [1, 2], "bos_token_id": 3}
    config = {
        "model_type": "inside",
        "text_config": inner,
        "architectures": ["InsideForConditionalGeneration"],
        "bos_token_id": 4,
    }
    model = understand(Fields(config, "config.json"))
    assert (model.generation.eos_token_ids, model.generation.bos_token_id, model.warnings) == ((1, 2), 4, ())
    plain = TINY | {"architectures": ["InsideForConditionalGeneration"]}
    with pytest.raises(ConfigError, match="only language models"):
        understand(Fields(plain, "config.json"))


def undecorated() -> type[Any]:
    class Undecorated(WideConfig):
        window: int = integer()

    return Undecorated


def undeclared() -> type[Any]:
    @dataclass(frozen=True)
    class Undeclared(WideConfig):
        cap: float = 30.0

    return Undeclared


def unnamed() -> type[Any]:
    @dataclass(frozen=True)
    class Unnamed(FamilyConfig):
        vocab_size: int = integer()

    return Unnamed


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (undecorated, r"Undecorated declares window; put @dataclass\(frozen=True\) in front of the class"),
        (
            undeclared,
            r"cap does not say what config\.json may hold; write cap: float = integer\(\) or another",
        ),
        (unnamed, r"Unnamed does not say what it reads; write model_type"),
        (lambda: int, r"<class 'int'> is no subclass of FamilyConfig"),
        (lambda: 3, "3 is no subclass of FamilyConfig"),
    ],
)
def test_a_class_that_cannot_read_a_config_is_refused_when_the_family_is_declared(
    config: Callable[[], Any], said: str
) -> None:
    with pytest.raises(CompileError, match=said):
        family(config())


def test_a_family_has_a_configuration() -> None:
    with pytest.raises(CompileError, match="give a tuple of classes, one for each model_type"):
        family()
    with pytest.raises(CompileError, match="give a tuple of classes"):
        Family(configs=WideConfig, first=llama.embed, layer=llama.FAMILY.layer, last=llama.head)  # type: ignore[arg-type]


def test_every_model_type_of_the_package_is_of_one_family() -> None:
    from infernum.models.config import _own_families

    model_types = [model_type for family in _own_families() for model_type in family.model_types]
    assert len(model_types) == len({*model_types}) and "llama" in model_types
