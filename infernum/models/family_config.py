"""The base of all configurations: reads a configuration from config.json, checks it, and stores it as JSON.

A family's configuration is a frozen dataclass whose fields are declared by `infernum.models.config_fields`. A model
type with other defaults is a subclass that declares the fields in question again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import msgspec

from infernum.errors import ConfigError
from infernum.models.config_fields import UNSET, ConfigField, Default, declared
from infernum.models.fields import Fields, Unsupported, same, show
from infernum.models.known_fields import ARCHITECTURE, HARMLESS, UNSUPPORTED
from infernum.rope import Rope


@dataclass(frozen=True)
class Nested:
    """The object in config.json that holds the configuration, and the model types allowed there (empty: any).

    Where the object has no model_type, it is the first of them.
    """

    name: str = "text_config"
    model_types: tuple[str, ...] = ()


class FamilyConfig:
    """The configuration of a model. A subclass is a frozen dataclass; its fields are declared by `config_fields`.

    model_type  the model_type of config.json that this class reads
    refused     fields that would change the mathematics, and why they are rejected. A field that the class declares,
                or uses as a switch, is not rejected
    ignored     further fields without effect, besides the harmless fields
    nested      the object in config.json that holds the fields, as errors name them: `text_config.hidden_size`
    tensor_beginnings  for beginnings of the names of tensors, others that some checkpoints have instead

    Raises ConfigError for values that are out of range or do not fit together.
    """

    model_type: ClassVar[str]
    refused: ClassVar[Mapping[str, Unsupported]] = ARCHITECTURE
    ignored: ClassVar[frozenset[str]] = frozenset()
    nested: ClassVar[Nested | None] = None
    tensor_beginnings: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    dtype: str
    """Short name of the stored type of the weights (f32, f16, bf16)."""

    def __post_init__(self) -> None:
        _check(declared(type(self)), self)

    @property
    def short_context(self) -> int | None:
        """Most tokens of a sequence that LongRoPE turns as a short one; None where all sequences are turned alike."""
        rope = getattr(self, "rope", None)
        return rope.original_max_position if isinstance(rope, Rope) and rope.kind == "longrope" else None

    @classmethod
    def from_hf(cls, fields: Mapping[str, object]) -> Self:
        """Read a config.json. Raises ConfigError for a field that is missing, malformed or not supported."""
        outer = fields if isinstance(fields, Fields) else Fields(fields, "config.json")
        inner = cls.holder(outer)
        specs = declared(cls)
        understood = cls.ignored.union(*((*spec.spelled, spec.when) for spec in specs.values()))
        inner.refuse(UNSUPPORTED | dict(cls.refused), understood)
        if cls.nested is not None:
            outer.refuse(UNSUPPORTED, understood | {cls.nested.name})
        config, shown = SimpleNamespace(), dict[str, str]()
        for name, spec in specs.items():
            value, shown[name] = _read(spec, inner, outer, config)
            setattr(config, name, value)
        _check(specs, config, shown, f"{outer.where}: ")
        if inner is not outer:
            inner.warn_unread(HARMLESS | cls.ignored, to=outer)
        try:
            return cls(**vars(config))
        except ConfigError as error:  # a check of the family's own
            raise ConfigError(f"{outer.where}: {inner.path(str(error))}") from None

    @classmethod
    def holder(cls, outer: Fields) -> Fields:
        """The object that holds the fields: all of config.json, unless the configuration is nested."""
        if cls.nested is None:
            return outer
        inner = outer.child(cls.nested.name)
        if inner is None:
            raise outer.missing(cls.nested.name)
        supported = cls.nested.model_types
        if supported and inner.text("model_type", supported[0]) not in supported:
            raise inner.error("model_type", f"is not supported here; supported: {', '.join(supported)}")
        return inner

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Undo `to_json`. Raises ConfigError when fields are missing, unknown or of the wrong type."""
        try:
            if odd := set(data) ^ set(declared(cls)):
                raise ConfigError(f"missing or unknown: {', '.join(sorted(odd))}")
            return msgspec.convert(dict(data), cls)
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(f"model configuration: {error}; compile the model again") from None

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values: a tuple becomes a list, a record such as `rope` an object."""
        return msgspec.json.decode(msgspec.json.encode(self))


def _read(spec: ConfigField, inner: Fields, outer: Fields, config: Any) -> tuple[Any, str]:
    """The value of a field, and its name in errors.

    `inner` is the object that holds the configuration, and `outer` the whole of config.json. `config` has the fields
    read so far. A field that is looked up counts as read, even where its switch turns it off.
    """
    around = (inner, outer) if spec.outside else (inner,)
    places = [(fields, name) for fields in around for name in spec.spelled]
    present = [(fields, name) for fields, name in places if fields.get(name) is not None]
    on = not spec.when or _is_on(spec.when, inner, config)
    if on and spec.reader is not None:
        fields = present[0][0] if present else inner
        return spec.reader(fields, config), fields.path(spec.spelled[0])
    if not on or not present:
        is_null = on and any(name in fields for fields, name in places)
        default = spec.null if is_null and spec.null is not UNSET else spec.default
        return _default(spec, default, inner, config), inner.path(spec.spelled[0])
    (fields, shown), *others = present
    value = fields[shown]
    if problem := spec.problem(value):
        raise fields.error(shown, problem)
    for other, name in others:
        if not same(other[name], value):
            raise other.error(
                name, f"contradicts {fields.path(shown)} = {show(value)}; keep only the right one"
            )
    return spec.convert(value), fields.path(shown)


def _is_on(switch: str, fields: Fields, config: Any) -> bool:
    """The value of a switch: a field declared above, or else a field of config.json, false when absent."""
    return getattr(config, switch) if hasattr(config, switch) else fields.flag(switch, False)


def _default(spec: ConfigField, default: Default, fields: Fields, config: Any) -> Any:
    if default is UNSET:
        raise fields.missing(spec.spelled[0])
    if not callable(default):
        return default
    try:
        return default(config)
    except ConfigError as error:
        raise ConfigError(f"{fields.where}: {fields.path(str(error))}") from None


def _check(
    specs: Mapping[str, ConfigField], config: Any, shown: Mapping[str, str] | None = None, where: str = ""
) -> None:
    """Raise ConfigError if a value is invalid by itself, or else if a value does not fit the others.

    `shown` has the names of fields in errors, where they differ from the fields' own names.
    """
    values = ((name, spec, getattr(config, name)) for name, spec in specs.items())
    present = [(name, spec, value) for name, spec, value in values if value is not None or not spec.optional]
    alone = ((name, value, spec.problem(value)) for name, spec, value in present)
    together = ((name, value, spec.misfit(value, config)) for name, spec, value in present)
    for name, value, problem in chain(alone, together):
        if problem:
            raise ConfigError(f"{where}{(shown or {}).get(name, name)} = {show(value)} {problem}")
