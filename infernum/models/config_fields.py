"""How a family declares the fields of its configuration: one line a field, in a frozen dataclass.

    hidden_size: int = integer()
    num_attention_heads: int = integer(multiple_of="num_key_value_heads")
    num_key_value_heads: int = integer(lambda c: c.num_attention_heads)
    rms_norm_eps: float = number(1e-6, spelled=("rms_norm_eps", "norm_eps"))
    sliding_window: int | None = integer(None, when="use_sliding_window")

The annotation says which type the value has, and whether it may be None. The function says what config.json may hold.
Its first argument is the default: a value, or a function of the fields declared above. A field without a default is
required.
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
"""What an absent field means: a value, or a function of the fields that are declared above it."""

Misfit = Callable[[Any, Any], str | None]
"""Why a value does not fit the other fields of a configuration; None if it does."""

UNSET = object()
"""As a default: the field is required. As what null means: the same as an absent field."""

STORED = (F32, F16, BF16)
"""The types that weights may be stored in."""

_DTYPE_FIELDS = ("dtype", "torch_dtype")


class Common(TypedDict, total=False):
    """What can be said of a field of any type.

    spelled  its names in config.json; without it, the name of the dataclass field. Names that contradict each other are
             refused
    null     the value that null stands for, where null is not the same as an absent field
    when     a true-or-false field: where it is false, or absent, this field has its default whatever config.json holds
    outside  in a nested configuration, the field may also stand in the object around the nested one
    """

    spelled: tuple[str, ...]
    null: object
    when: str
    outside: bool


@dataclass(frozen=True)
class ConfigField:
    """Where the value of a field comes from, and what it may be.

    problem   what is wrong with a value by itself
    convert   from a JSON value to the value of the dataclass
    misfit    why a value that is right by itself does not fit the other fields of the configuration
    reader    reads the field from config.json by itself, given the fields declared above it
    optional  the value may be None
    """

    problem: Check
    convert: Callable[[Any], Any] = lambda value: value
    default: Default = UNSET
    misfit: Misfit = lambda value, config: None
    reader: Callable[[Fields, Any], Any] | None = None
    spelled: tuple[str, ...] = ()
    null: object = UNSET
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
    """An integer from `minimum` to `maximum`: a multiple of the field `multiple_of`, or even, for the reason given."""

    def misfit(value: int, config: Any) -> str | None:
        divisor: int = getattr(config, multiple_of) if multiple_of else 1
        if value % divisor:
            return f"must be a multiple of {multiple_of} = {divisor}"
        return f"must be even: {even}" if even and value % 2 else None

    check = partial(integer_problem, minimum=minimum, maximum=maximum)
    return _declare(ConfigField(check, default=default, misfit=misfit, **common))


def number(default: Default = UNSET, *, zero: bool = False, **common: Unpack[Common]) -> Any:
    """A number greater than 0; with `zero`, 0 or more."""
    return _declare(ConfigField(partial(number_problem, zero=zero), float, default, **common))


def flag(default: Default = UNSET, **common: Unpack[Common]) -> Any:
    """True or false."""
    return _declare(ConfigField(flag_problem, default=default, **common))


def text(default: Default = UNSET, *, one_of: tuple[str, ...] = (), **common: Unpack[Common]) -> Any:
    """A string; with `one_of`, one of these."""
    return _declare(ConfigField(partial(_choice_problem, choices=one_of), default=default, **common))


def integers(
    default: Default = UNSET, *, minimum: int = 0, length: str = "", **common: Unpack[Common]
) -> Any:
    """A list of integers from `minimum` on, a tuple in the dataclass; as many as the field `length` says."""
    each = partial(integer_problem, minimum=minimum)
    return _declare_list(each, default, length, **common)


def texts(
    default: Default = UNSET, *, one_of: tuple[str, ...] = (), length: str = "", **common: Unpack[Common]
) -> Any:
    """A list of strings, a tuple in the dataclass, each `one_of` these; as many as the field `length` says."""
    each = partial(_choice_problem, choices=one_of)
    return _declare_list(each, default, length, **common)


def read_by(reader: Callable[[Fields, Any], Any], default: Default = UNSET, **common: Unpack[Common]) -> Any:
    """What `reader(fields, config)` returns, where `config` has the fields declared above. The reader checks the value.

    `default` is the value where `when` turns the field off.
    """
    return _declare(ConfigField(lambda value: None, default=default, reader=reader, **common))


def fixed(value: object) -> Any:
    """`value`, and config.json may hold no other: a field that other model types of the same blocks read."""
    problem = f"must be {show(value)} in a model of this type"
    return _declare(ConfigField(lambda other: None if same(other, value) else problem, default=value))


def stored_dtype() -> Any:
    """The short name of the type the weights are stored in: f32 if neither config.json nor the weights say.

    transformers 5 writes `dtype`, which wins; transformers 4 wrote `torch_dtype`.
    """
    check = partial(_choice_problem, choices=tuple(d.name for d in STORED))
    return _declare(ConfigField(check, reader=_read_dtype, spelled=_DTYPE_FIELDS, outside=True))


def width_per_head(config: Any) -> int:
    """The default of head_dim in most families: hidden_size / num_attention_heads, which must be whole."""
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ConfigError(
            f"hidden_size = {width} must be a multiple of num_attention_heads = {heads} when head_dim is not given"
        )
    return width // heads


@cache
def declared(config: type[Any]) -> dict[str, ConfigField]:
    """The fields of a configuration, in order. Raises CompileError for a class that is not declared as it should be."""
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
    """A field that holds a JSON array, or the tuple that it becomes."""

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
    """The field that names the dtype of the weights; None where none does. "auto" asks for that of the weights."""
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
