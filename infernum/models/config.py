"""Reads config.json and generation_config.json of a Hugging Face model folder, and finds the model's family.

A field that changes the mathematics is honoured, or rejected by name. Harmless fields are ignored, and any other field
becomes a warning. A family is one file of `infernum/models` that declares a `FAMILY`: its fields and its blocks.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import infernum.models
from infernum.errors import ConfigError
from infernum.model_folder.folder import CONFIG, GENERATION, find_config, find_file, find_weights
from infernum.model_folder.problems import Problem
from infernum.model_folder.weights import FolderWeights
from infernum.models.config_fields import dtype_field
from infernum.models.family_config import FamilyConfig
from infernum.models.fields import Fields, read_json, show
from infernum.models.known_fields import HARMLESS
from infernum.models.unsupported_types import NEEDS
from infernum.sampling_params import PARAMETERS, SamplingParameter

if TYPE_CHECKING:
    from infernum.models.family import Family

_GENERATION_PARAMETERS = tuple(parameter for parameter in PARAMETERS if parameter.in_generation_config)


@dataclass(frozen=True)
class GenerationDefaults:
    """The generation settings in the folder of a model; None: the folder has no such setting.

    `sampling` has the sampling parameters of the folder, by name.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool | None = None
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class ModelSource:
    """A resolved model: its settings, and its folder unless it is a preset without weights.

    `warnings` are sentences about ignored settings, to print on stderr. `dtype_reason` is the reason for the dtype of
    the settings, as the end of a sentence.
    """

    name: str
    family: str
    config: FamilyConfig
    folder: Path | None
    generation: GenerationDefaults
    warnings: tuple[str, ...]
    dtype_reason: str


def read_model(folder: Path) -> ModelSource:
    """Read `config.json` and, if it exists, `generation_config.json`. Raises ConfigError."""
    path = find_config(folder)
    if isinstance(path, Problem):
        raise ConfigError(str(path))
    generation = find_file(folder / GENERATION)
    if isinstance(generation, Problem):
        raise ConfigError(str(generation))
    generation_fields = None if generation is None else Fields(read_json(generation), str(generation))
    return understand(Fields(read_json(path), str(path)), generation_fields, folder)


def understand(fields: Fields, generation: Fields | None = None, folder: Path | None = None) -> ModelSource:
    """The model of a config.json with these fields. Raises ConfigError."""
    model_type = fields.text("model_type")
    config_type = find_family(model_type, fields.where).config_of(model_type)
    _check_architectures(fields, config_type)
    config, dtype_reason = _with_dtype(config_type.from_hf(fields), fields, folder)
    defaults = _read_generation(generation or Fields({}, GENERATION), fields, config_type.holder(fields))
    fields.warn_unread(HARMLESS | config_type.ignored | {p.name for p in _GENERATION_PARAMETERS})
    if not defaults.eos_token_ids:
        fields.warn("eos_token_id is missing; generation will only stop at its length limit")
    name = fields.where if folder is None else folder.resolve().name
    return ModelSource(name, model_type, config, folder, defaults, fields.warnings, dtype_reason)


ADDED: dict[str, Family] = {}
"""Families of plugins, by model_type."""


def add_family(family: Family) -> None:
    """Register the family of a plugin. Raises ConfigError when one of its model types exists already."""
    for model_type in family.model_types:
        known = _look_up(model_type)
        if known is not None:
            raise ConfigError(
                f"a family of model_type {show(model_type)} exists already, in"
                f" {known.config_of(model_type).__module__}; choose another name"
            )
    ADDED.update(dict.fromkeys(family.model_types, family))


def families() -> tuple[str, ...]:
    """The supported model types, of the package and of plugins."""
    own = (model_type for family in _own_families() for model_type in family.model_types)
    return tuple(sorted({*own, *ADDED}))


def find_family(model_type: str, where: str = CONFIG) -> Family:
    """The family of a model_type. Raises ConfigError, which lists the supported model types."""
    family = _look_up(model_type)
    if family is None:
        needs = f": it needs {NEEDS[model_type]}" if model_type in NEEDS else ""
        raise ConfigError(
            f"{where}: model_type {show(model_type)} is not supported{needs}; supported: {', '.join(families())}"
            " (a new family is a new file in infernum/models, or a --plugin)"
        )
    return family


def _look_up(model_type: str) -> Family | None:
    if model_type in ADDED:
        return ADDED[model_type]
    return next((family for family in _own_families(model_type) if model_type in family.model_types), None)


def _own_families(first: str = "") -> Iterator[Family]:
    """The families of the package: modules of `infernum.models` that declare a FAMILY, the module `first` first.

    Modules are imported one by one. A family in a module named as its model_type needs no import of the others.
    """
    names = sorted((m.name for m in pkgutil.iter_modules(infernum.models.__path__)), key=lambda n: n != first)
    for name in names:
        family: Family | None = getattr(importlib.import_module(f"infernum.models.{name}"), "FAMILY", None)
        if family is not None:
            yield family


def config_hash(config: FamilyConfig) -> str:
    """SHA-256, in hexadecimal, of all settings but the stored type of the weights."""
    settings = {k: v for k, v in config.to_json().items() if k != "dtype"} | {"model_type": config.model_type}
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _with_dtype(config: FamilyConfig, fields: Fields, folder: Path | None) -> tuple[FamilyConfig, str]:
    """The settings with the dtype of config.json, or else of most bytes of the weights; and the reason."""
    if any(dtype_field(place) for place in (fields, config.holder(fields))):
        return config, "as config.json says"
    weights = None if folder is None else find_weights(folder)
    if isinstance(weights, FolderWeights) and weights.main_dtype is not None:
        reason = "as most bytes of the weights are stored, since config.json does not say"
        return replace(cast("Any", config), dtype=weights.main_dtype.name), reason
    return config, "since neither config.json nor weights say"


def _check_architectures(fields: Fields, config_type: type[FamilyConfig]) -> None:
    """Raise ConfigError for models without a language model's head: classifiers and encoders share the model_type."""
    names = fields.get("architectures")
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(n, str) for n in cast("list[object]", names)):
        raise fields.error("architectures", "must be a list of strings")
    heads = ("ForCausalLM", "ForConditionalGeneration") if config_type.nested else ("ForCausalLM",)
    if names and not any(name.endswith(heads) for name in cast("list[str]", names)):
        raise fields.error(
            "architectures", f"is not supported: only language models (…{heads[0]}) can be compiled"
        )


def _read_generation(generation: Fields, *config: Fields) -> GenerationDefaults:
    """`generation` (generation_config.json) overrides `config`, for the token ids field by field."""
    eos, bos = (_token_ids(name, generation, *config) for name in ("eos_token_id", "bos_token_id"))
    present = {name for name, value in generation.items() if value is not None}
    return GenerationDefaults(
        eos_token_ids=eos,
        bos_token_id=bos[0] if bos else None,
        do_sample=generation.flag("do_sample", False) if "do_sample" in present else None,
        sampling={p.name: _number(generation, p) for p in _GENERATION_PARAMETERS if p.name in present},
    )


def _number(fields: Fields, parameter: SamplingParameter) -> float:
    if parameter.kind is int:
        return fields.integer(parameter.name, minimum=0)
    return fields.number(parameter.name, zero=True)


def _token_ids(name: str, *places: Fields) -> tuple[int, ...]:
    """A token id or a list of them, in the first of `places` that has the field; () when none has."""
    fields = next((fields for fields in places if fields.get(name) is not None), None)
    if fields is None:
        return ()
    value = fields[name]
    ids = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise fields.error(name, "must be a token id (an integer, 0 or more) or a list of them")
    return tuple(dict.fromkeys(cast("list[int]", ids)))
