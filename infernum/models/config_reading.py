"""Reading one declared field from config.json, and checking the fields of a configuration against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infernum.errors import ConfigError
from infernum.models.config_fields import NULL_IS_ABSENT, REQUIRED, ConfigField
from infernum.models.fields import Fields, show


def read_field(name: str, spec: ConfigField, inner: Fields, outer: Fields, config: Any) -> tuple[Any, str]:
    """The value of a field, and the name by which an error should call it.

    `inner` is the object that holds the configuration, and `outer` the whole of config.json, which is the same unless
    the configuration is nested. `config` has the fields read before. Raises ConfigError.
    """
    names = spec.spelled or (name,)
    places = [(fields, n) for fields in ((inner, outer) if spec.outside else (inner,)) for n in names]
    if spec.when and not _is_on(spec.when, inner, config):
        for fields, n in places:
            fields.get(n)  # a field that is turned off is understood, and gets no warning
        return _default(spec, names[0], inner, config), inner.path(names[0])
    present = [(fields, n) for fields, n in places if fields.get(n) is not None]
    fields, shown = present[0] if present else (inner, names[0])
    if spec.reader is not None:
        return spec.reader(fields, config), fields.path(names[0])
    if not present:
        is_null = any(n in fields for fields, n in places)
        if is_null and spec.null is not NULL_IS_ABSENT:
            return spec.null, inner.path(names[0])
        return _default(spec, names[0], inner, config), inner.path(names[0])
    value = fields[shown]
    if problem := spec.problem(value):
        raise fields.error(shown, problem)
    for other, n in present[1:]:
        if other[n] != value or isinstance(other[n], bool) != isinstance(value, bool):
            raise other.error(n, f"contradicts {fields.path(shown)} = {show(value)}; keep only the right one")
    return spec.convert(value), fields.path(shown)


def find_problem(specs: Mapping[str, ConfigField], config: Any) -> tuple[str, str] | None:
    """The first field of `config` whose value is wrong or does not fit the others, and why; None if all are right."""
    values = {name: getattr(config, name) for name in specs}
    for name, spec in specs.items():
        if problem := spec.wrong(values[name]):
            return name, problem
    for name, spec in specs.items():
        if problem := spec.misfit(values[name], config):
            return name, problem
    return None


def _is_on(switch: str, fields: Fields, config: Any) -> bool:
    """The value of a switch: a field declared above, or else a field of config.json that is false when absent."""
    return getattr(config, switch) if hasattr(config, switch) else fields.flag(switch, False)


def _default(spec: ConfigField, name: str, fields: Fields, config: Any) -> Any:
    if spec.default is REQUIRED:
        raise fields.missing(name)
    if not callable(spec.default):
        return spec.default
    try:
        return spec.default(config)
    except ConfigError as error:
        raise ConfigError(f"{fields.where}: {fields.path(str(error))}") from None
