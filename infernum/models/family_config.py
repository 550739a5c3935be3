"""The base of every family's configuration: reads it from config.json, checks it, and stores it as JSON.

A family declares a frozen dataclass that says what each field is (`infernum.models.config_fields`). A model type that
differs from another by some defaults is a subclass that declares these fields again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast

import msgspec

from infernum.errors import ConfigError
from infernum.models.config_fields import ConfigField, declared
from infernum.models.config_reading import find_problem, read_field
from infernum.models.fields import Fields, Unsupported, show
from infernum.models.known_fields import ARCHITECTURE, HARMLESS, UNSUPPORTED


@dataclass(frozen=True)
class Nested:
    """The object within config.json that holds the configuration, and the model types it may name (none: any)."""

    name: str = "text_config"
    model_types: tuple[str, ...] = ()


class FamilyConfig:
    """The configuration of a model. A subclass is a frozen dataclass; its fields are declared by `config_fields`.

    model_type  the model_type of config.json that this class reads
    refused     fields that would change the mathematics, and why they are refused; a field that the class declares,
                or uses as a switch, is not refused
    ignored     fields that config.json may have beyond the harmless ones, and that change nothing
    nested      the object within config.json that holds the fields; errors name it: `text_config.hidden_size`

    Raises ConfigError for values that are out of range or do not fit together.
    """

    model_type: ClassVar[str]
    refused: ClassVar[Mapping[str, Unsupported]] = ARCHITECTURE
    ignored: ClassVar[frozenset[str]] = frozenset()
    nested: ClassVar[Nested | None] = None

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    dtype: str
    """Short name of the type the weights are stored in (f32, f16, bf16)."""

    def __post_init__(self) -> None:
        if wrong := find_problem(_declared(type(self)), self):
            name, problem = wrong
            raise ConfigError(f"{name} = {show(getattr(self, name))} {problem}")

    @classmethod
    def from_hf(cls, fields: Mapping[str, object]) -> Self:
        """Understand a config.json. Raises ConfigError for what is missing, malformed or not supported."""
        outer = Fields.of(fields)
        inner = _inner(cls.nested, outer)
        _refuse(cls, inner, outer)
        config, shown = SimpleNamespace(), dict[str, str]()
        specs = _declared(cls)
        for name, spec in specs.items():
            value, shown[name] = read_field(name, spec, inner, outer, config)
            setattr(config, name, value)
        if wrong := find_problem(specs, config):
            name, problem = wrong
            raise ConfigError(f"{outer.where}: {shown[name]} = {show(getattr(config, name))} {problem}")
        if inner is not outer:
            inner.warn_unread(HARMLESS, to=outer)
        try:
            return cls(**vars(config))
        except ConfigError as error:  # a check of the family's own
            raise ConfigError(f"{outer.where}: {inner.path(str(error))}") from None

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Undo `to_json`. Raises ConfigError when fields are missing, unknown or of the wrong type."""
        if odd := set(data) ^ set(_declared(cls)):
            names = ", ".join(sorted(odd))
            raise ConfigError(f"model configuration: missing or unknown: {names}; compile the model again")
        try:
            return msgspec.convert(dict(data), cls)
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(f"model configuration: {error}; compile the model again") from None

    def to_json(self) -> dict[str, object]:
        """All fields as plain JSON values: a tuple as a list, a record such as `rope` as an object."""
        fields: dict[str, object] = asdict(cast("Any", self))
        return {
            name: list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


@lru_cache
def _declared(config: type[FamilyConfig]) -> dict[str, ConfigField]:
    return declared(config)


def _inner(nested: Nested | None, outer: Fields) -> Fields:
    """The object that holds the configuration's fields."""
    if nested is None:
        return outer
    inner = outer.child(nested.name)
    if inner is None:
        raise outer.missing(nested.name)
    if nested.model_types and inner.text("model_type") not in nested.model_types:
        raise inner.error("model_type", f"is not supported here; supported: {', '.join(nested.model_types)}")
    return inner


def _refuse(config: type[FamilyConfig], inner: Fields, outer: Fields) -> None:
    """Raise ConfigError for a field that would change the mathematics; what the class ignores counts as read."""
    understood = {*config.ignored}
    for name, spec in _declared(config).items():
        understood |= {*(spec.spelled or (name,)), spec.when}
    for fields in (inner, outer):
        for name in config.ignored:
            fields.get(name)
    inner.refuse(_without(UNSUPPORTED | dict(config.refused), understood))
    if config.nested is not None:
        outer.refuse(_without(UNSUPPORTED, understood | {config.nested.name}))


def _without(table: Mapping[str, Unsupported], names: set[str]) -> dict[str, Unsupported]:
    return {name: unsupported for name, unsupported in table.items() if name not in names}
