"""Declares the fields of a family's configuration: one line for each field, in a frozen dataclass.

    hidden_size: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    rms_norm_eps: float = number(1e-6, spelled=("rms_norm_eps", "norm_eps"))
    sliding_window: int | None = integer(None, when="use_sliding_window")

The annotation is the type of the value, with None where the value may be None. The function describes the values that
config.json may hold. Its first argument is the default: a value, or a function of the fields declared above. A field
without a default is required.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypedDict, Unpack, cast

from infernum.dtypes import BF16, F16, F32, dtype
from infernum.errors import CompileError, ConfigError, DTypeError
from infernum.models.fields import (
    LARGEST,
    Check,
    Fields,
    flag_problem,
    integer_problem,
    number_problem,
    same,
    show,
    text_problem,
)

Default = Callable[[Any], Any] | object
"""The value of an absent field, or a function that computes it from the fields declared above."""

Misfit = Callable[[Any, Any], str | None]
"""Checks a value against the other fields of a configuration; returns the problem, or None."""

UNSET = object()
"""As `default`: the field is required. As `null`: null means the same as an absent field."""

STORED = (F32, F16, BF16)
"""The types in which weights may be stored."""

_DTYPE_FIELDS = ("dtype", "torch_dtype")


class Common(TypedDict, total=False):
    """Arguments for a field of any type.

    spelled  the names of the field in config.json; default: the name of the dataclass field. Two names with different
             values are rejected
    null     the value that null stands for, or a function as for the default, where null differs from an absent field
    when     a true-or-false field. Where it is false or absent, this field has its default, whatever config.json holds
    outside  in a nested configuration, the object around the nested object may hold the field too
    """

    spelled: tuple[str, ...]
    null: Default
    when: str
    outside: bool


@dataclass(frozen=True)
class ConfigField:
    """The source of a field's value, and the checks of the value.

    problem   checks a value by itself
    convert   converts a JSON value to the value of the dataclass
    misfit    checks a value against the other fields of the configuration
    reader    reads the field from config.json itself, given the fields declared above
    optional  the value may be None
    """

    problem: Check
    convert: Callable[[Any], Any] = lambda value: value
    default: Default = UNSET
    misfit: Misfit = lambda value, config: None
    reader: Callable[[Fields, Any], Any] | None = None
    spelled: tuple[str, ...] = ()
    null: Default = UNSET
    when: str = ""
    outside: bool = False
    optional: bool = False


def integer(
    default: Default = UNSET,
    *,
    minimum: int = 1,
    maximum: int = LARGEST,
    multiple_of: str = "",
    even: str = "",
    **common: Unpack[Common],
) -> Any:
    """An integer from `minimum` to `maximum`, a multiple of the field `multiple_of`, even for the reason `even`."""

    def misfit(value: int, config: Any) -> str | None:
        divisor: int = getattr(config, multiple_of) if multiple_of else 1
        if value % divisor:
            return f"must be a multiple of {multiple_of} = {divisor}"
        return f"must be even: {even}" if even and value % 2 else None

    check = partial(integer_problem, minimum=minimum, maximum=maximum)
    return _declare(ConfigField(check, default=default, misfit=misfit, **common))


def number(default: Default = UNSET, *, zero: bool = False, **common: Unpack[Common]) -> Any:
    """A number above 0; with `zero`, 0 or more."""
    return _declare(ConfigField(partial(number_problem, zero=zero), float, default, **common))


def flag(default: Default = UNSET, **common: Unpack[Common]) -> Any:
    """True or false."""
    return _declare(ConfigField(flag_problem, default=default, **common))


def text(default: Default = UNSET, *, one_of: tuple[str, ...] = (), **common: Unpack[Common]) -> Any:
    """A string; with `one_of`, one of these strings."""
    return _declare(ConfigField(partial(_choice_problem, choices=one_of), default=default, **common))


def integers(
    default: Default = UNSET, *, minimum: int = 0, length: str = "", **common: Unpack[Common]
) -> Any:
    """A list of integers from `minimum` on, a tuple in the dataclass; `length` names the field with their number."""
    each = partial(integer_problem, minimum=minimum)
    return _declare_list(each, default, length, **common)


def texts(
    default: Default = UNSET, *, one_of: tuple[str, ...] = (), length: str = "", **common: Unpack[Common]
) -> Any:
    """A list of strings, a tuple in the dataclass, each `one_of` these; `length` names the field with their number."""
    each = partial(_choice_problem, choices=one_of)
    return _declare_list(each, default, length, **common)


def read_by(reader: Callable[[Fields, Any], Any], default: Default = UNSET, **common: Unpack[Common]) -> Any:
    """The result of `reader(fields, config)`, which checks the value. `config` has the fields declared above.

    `default` is the value where `when` turns the field off.
    """
    return _declare(ConfigField(lambda value: None, default=default, reader=reader, **common))


def fixed(value: object) -> Any:
    """Always `value`: config.json may hold no other. Other model types of the same blocks read the field."""
    problem = f"must be {show(value)} in a model of this type"
    return _declare(ConfigField(lambda other: None if same(other, value) else problem, default=value))


def stored_dtype() -> Any:
    """The short name of the stored type of the weights; f32 when neither config.json nor the weights define it.

    transformers 5 writes `dtype`, which wins; transformers 4 wrote `torch_dtype`.
    """
    check = partial(_choice_problem, choices=tuple(d.name for d in STORED))
    return _declare(ConfigField(check, reader=_read_dtype, spelled=_DTYPE_FIELDS, outside=True))


def width_per_head(config: Any) -> int:
    """The default of head_dim in most families: hidden_size / num_attention_heads, which must be an integer."""
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ConfigError(
            f"hidden_size = {width} must be a multiple of num_attention_heads = {heads} when head_dim is not given"
        )
    return width // heads


@cache
def declared(config: type[Any]) -> dict[str, ConfigField]:
    """The fields of a configuration, in order. Raises CompileError for a class that is not declared correctly."""
    for owner in config.__mro__:
        loose = [name for name, value in vars(owner).items() if isinstance(value, dataclasses.Field)]
        if loose:
            raise CompileError(
                f"{owner.__module__}.{owner.__name__} declares {', '.join(loose)}; put @dataclass(frozen=True)"
                " in front of the class"
            )
    if not dataclasses.is_dataclass(config):
        raise CompileError(
            f"{config.__module__}.{config.__name__}: put @dataclass(frozen=True) in front of the class"
        )
    specs: dict[str, ConfigField] = {}
    for field in dataclasses.fields(config):
        spec = field.metadata.get(ConfigField)
        if not isinstance(spec, ConfigField):
            raise CompileError(
                f"{config.__module__}.{config.__name__}: {field.name} does not say what config.json may hold;"
                f" write {field.name}: {field.type} = integer() or another function of infernum.models.config_fields"
            )
        spelled, optional = spec.spelled or (field.name,), "None" in str(field.type)
        specs[field.name] = dataclasses.replace(spec, spelled=spelled, optional=optional)
    return specs


def _declare(spec: ConfigField) -> Any:
    return dataclasses.field(metadata={ConfigField: spec})


def _declare_list(each: Check, default: Default, length: str, **common: Unpack[Common]) -> Any:
    """A field that is a JSON array in config.json and a tuple in the dataclass."""

    def problem(value: object) -> str | None:
        if not isinstance(value, list | tuple):
            return "must be a list"
        problems = ((element, each(element)) for element in cast("list[object]", value))
        return next((f"has {show(element)}, which {wrong}" for element, wrong in problems if wrong), None)

    def misfit(value: tuple[object, ...], config: Any) -> str | None:
        count: int = getattr(config, length) if length else len(value)
        return None if len(value) == count else f"has {len(value)} elements; it must have {length} = {count}"

    return _declare(ConfigField(problem, tuple, default, misfit, **common))


def _choice_problem(value: object, choices: tuple[str, ...] = ()) -> str | None:
    if problem := text_problem(value):
        return problem
    return None if not choices or value in choices else f"must be one of {', '.join(choices)}"


def dtype_field(fields: Fields) -> str | None:
    """The name of the field with the dtype of the weights; None when it is absent or "auto"."""
    return next((name for name in _DTYPE_FIELDS if fields.get(name) not in (None, "auto")), None)


def _read_dtype(fields: Fields, config: Any) -> str:
    del config
    name = dtype_field(fields)
    if name is None:
        return F32.name
    try:
        stored = dtype(fields.text(name))
    except DTypeError:
        stored = None
    if stored not in STORED:
        raise fields.error(name, f"is not supported; use one of {', '.join(d.long_name for d in STORED)}")
    return stored.name
