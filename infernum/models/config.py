"""Reading a Hugging Face model folder: config.json, generation_config.json, and what of them is understood.

A field that changes the mathematics is honoured, or refused with its name; harmless fields are ignored; any
other field becomes a warning. A family says what its fields mean in `infernum/models/<model_type>_config.py`
and what it computes in `infernum/models/<model_type>.py`; adding the two files adds the family.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, cast

import infernum.models
from infernum.errors import ConfigError
from infernum.models.fields import Fields, read_json, show
from infernum.models.known_fields import HARMLESS, UNSUPPORTED
from infernum.sampling_params import PARAMETERS, SamplingParameter

if TYPE_CHECKING:
    from infernum.models.family import Family

CONFIG = "config.json"
GENERATION = "generation_config.json"
_SUFFIX = "_config"
_GENERATION_PARAMETERS = tuple(parameter for parameter in PARAMETERS if parameter.in_generation_config)


class FamilyConfig(Protocol):
    """What every family's frozen dataclass of settings offers, so that a bundle can hold and rebuild it."""

    model_type: ClassVar[str]

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...

    @property
    def dtype(self) -> str:
        """Short name of the type the weights are stored in (f32, f16, bf16)."""
        ...

    @classmethod
    def from_hf(cls, fields: Mapping[str, object]) -> Self:
        """Understand a config.json. Raises ConfigError."""
        ...

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Undo `to_json`. Raises ConfigError."""
        ...

    def to_json(self) -> dict[str, object]:
        """All fields as plain JSON values."""
        ...


@dataclass(frozen=True)
class GenerationDefaults:
    """How the model's makers generate with it; None: the folder does not say.

    `sampling` holds the sampling parameters that the folder gives, by name.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool | None = None
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class ModelConfig:
    """A model folder's settings, and the sentences to print on stderr about what was ignored in them."""

    family: str
    config: FamilyConfig
    generation: GenerationDefaults
    warnings: tuple[str, ...]


def read_model(folder: Path) -> ModelConfig:
    """Read `config.json` and, where there is one, `generation_config.json`. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the folder of a Hugging Face model")
    path = folder / CONFIG
    if not path.is_file() and (folder / "params.json").is_file():
        raise ConfigError(
            f"{path}: no such file; params.json is Meta's own format, get the model's -hf version"
        )
    generation = folder / GENERATION
    generation_fields = Fields(read_json(generation), str(generation)) if generation.is_file() else None
    return understand(Fields(read_json(path), str(path)), generation_fields)


def understand(fields: Fields, generation: Fields | None = None) -> ModelConfig:
    """The settings in a config.json, given its fields. Raises ConfigError."""
    family = fields.text("model_type")
    config_type = find_config(family, fields.where)
    fields.refuse(UNSUPPORTED)
    _check_architectures(fields)
    config = config_type.from_hf(fields)
    defaults = _read_generation(fields, generation)
    fields.warn_unread(HARMLESS | {parameter.name for parameter in _GENERATION_PARAMETERS})
    if not defaults.eos_token_ids:
        fields.warn("eos_token_id is missing; generation will only stop at its length limit")
    return ModelConfig(family, config, defaults, fields.warnings)


ADDED: dict[str, Family] = {}
"""Families of plugins, by model_type."""


def add_family(family: Family) -> None:
    """Make a plugin's family known by its config's `model_type`. Raises ConfigError when that is taken."""
    model_type: str = family.config.model_type
    if model_type in families():
        taken = find_config(model_type).__module__
        raise ConfigError(
            f"a family of model_type {show(model_type)} exists already, in {taken}; choose another name"
        )
    ADDED[model_type] = family


def families() -> tuple[str, ...]:
    """The model_types there is a `<model_type>_config.py` for, and those of plugins."""
    modules = pkgutil.iter_modules(infernum.models.__path__)
    own = (m.name.removesuffix(_SUFFIX) for m in modules if m.name.endswith(_SUFFIX))
    return tuple(sorted({*own, *ADDED}))


def find_config(model_type: str, where: str = CONFIG) -> type[FamilyConfig]:
    """The class of the family's settings, its blocks left alone. Raises ConfigError for an unknown family."""
    _check_known(model_type, where)
    if model_type in ADDED:
        return ADDED[model_type].config
    return cast(
        "type[FamilyConfig]", importlib.import_module(f"infernum.models.{model_type}{_SUFFIX}").Config
    )


def find_family(model_type: str, where: str = CONFIG) -> Family:
    """The family: its blocks and their order. Raises ConfigError listing the known families."""
    _check_known(model_type, where)
    if model_type in ADDED:
        return ADDED[model_type]
    return cast("Family", importlib.import_module(f"infernum.models.{model_type}").FAMILY)


def _check_known(model_type: str, where: str) -> None:
    known = families()
    if model_type not in known:
        raise ConfigError(
            f"{where}: model_type {show(model_type)} is not supported; supported: {', '.join(known)}"
            " (a new family is a new file in infernum/models, or a --plugin)"
        )


def config_hash(config: FamilyConfig) -> str:
    """SHA-256, in hexadecimal, of what decides the mathematics: all settings but the weights' stored type."""
    settings = {k: v for k, v in config.to_json().items() if k != "dtype"} | {"model_type": config.model_type}
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_architectures(fields: Fields) -> None:
    """A classifier or a bare encoder shares the model_type but not the head."""
    names = fields.get("architectures")
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(n, str) for n in cast("list[object]", names)):
        raise fields.error("architectures", "must be a list of strings")
    if names and not any(name.endswith("ForCausalLM") for name in cast("list[str]", names)):
        raise fields.error(
            "architectures", "is not supported: only language models (…ForCausalLM) can be compiled"
        )


def _read_generation(fields: Fields, generation: Fields | None) -> GenerationDefaults:
    """`generation` (generation_config.json) overrides config.json, for the token ids field by field."""
    said = generation or Fields({}, GENERATION)
    eos = _token_ids(said, "eos_token_id")
    if eos is None:
        eos = _token_ids(fields, "eos_token_id")
    bos = _token_ids(said, "bos_token_id") or _token_ids(fields, "bos_token_id")
    return GenerationDefaults(
        eos_token_ids=eos or (),
        bos_token_id=bos[0] if bos else None,
        do_sample=said.flag("do_sample", False) if said.get("do_sample") is not None else None,
        sampling={p.name: _number(said, p) for p in _GENERATION_PARAMETERS if said.get(p.name) is not None},
    )


def _number(fields: Fields, parameter: SamplingParameter) -> float:
    if parameter.kind is int:
        return fields.integer(parameter.name, minimum=0)
    return fields.number(parameter.name, zero=True)


def _token_ids(fields: Fields, name: str) -> tuple[int, ...] | None:
    """A token id or a list of them; None when the field is absent or null."""
    value = fields.get(name)
    if value is None:
        return None
    ids = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise fields.error(name, "must be a token id (an integer, 0 or more) or a list of them")
    return tuple(dict.fromkeys(cast("list[int]", ids)))
