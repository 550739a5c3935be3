"""The fields of a JSON object, read by type, with warnings for the fields that were never read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from infernum.errors import ConfigError

LARGEST = 2**31 - 1
LARGEST_NUMBER = 1e30

Check = Callable[[object], str | None]
"""Checks a value; returns the problem, or None."""


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in the file `path`. Raises ConfigError when it is missing, not UTF-8 or no object."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return cast("dict[str, object]", value)
        problem = f"holds {show(value)}, not a JSON object"
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the folder of a Hugging Face model") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        problem = f"is not usable JSON ({error})"
    raise ConfigError(f"{path}: {problem}; download it again")


def show(value: object, longest: int = 60) -> str:
    """`value` as JSON, cut to a length that fits an error message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def same(a: object, b: object) -> bool:
    """True for equal JSON values; true is not 1, false is not 0."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def integer_problem(value: object, minimum: int = 1, maximum: int = LARGEST) -> str | None:
    """The problem of `value` as an integer from `minimum` to `maximum`, or None."""
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be an integer"
    return None if minimum <= value <= maximum else f"must be an integer from {minimum} to {maximum}"


def number_problem(value: object, *, zero: bool = False) -> str | None:
    """The problem of `value` as a positive number (with `zero`: 0 or more), or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "must be a number"
    in_range = (value >= 0 if zero else value > 0) and value <= LARGEST_NUMBER
    return None if in_range else "must be a number, " + ("0 or more" if zero else "greater than 0")


def flag_problem(value: object) -> str | None:
    """The problem of `value` as true or false, or None."""
    return None if isinstance(value, bool) else "must be true or false"


def text_problem(value: object) -> str | None:
    """The problem of `value` as a string, or None."""
    return None if isinstance(value, str) else "must be a string"


@dataclass(frozen=True)
class Unsupported:
    """A field that would change the mathematics: why it is rejected, and the values without effect, which are accepted.

    inert   accepted values
    each    a list is accepted if all of its elements are among these
    unless  of the value and all fields: True where the other fields turn this field off, or the value has no effect
    """

    reason: str
    inert: tuple[object, ...] = ()
    each: tuple[object, ...] = ()
    unless: Callable[[object, Mapping[str, object]], bool] = lambda value, fields: False

    def allows(self, value: object, fields: Mapping[str, object]) -> bool:
        """True for null and for values without effect beside `fields`; true is not 1, false is not 0."""
        harmless = value is None or _among(value, self.inert) or self.unless(value, fields)
        if harmless or not self.each or not isinstance(value, list):
            return harmless
        return all(_among(element, self.each) for element in cast("list[object]", value))


def _among(value: object, values: tuple[object, ...]) -> bool:
    return any(same(value, one) for one in values)


class Fields(Mapping[str, object]):
    """A JSON object whose fields are read by type; null means the same as absent.

    `where` (a file) begins each error message; `prefix` is the name of the enclosing field (`rope_scaling.`).
    """

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        self.where = where
        self._values = dict(values)
        self._prefix = prefix
        self._read: set[str] = set()
        self._warnings: list[str] = []

    def __getitem__(self, name: str) -> object:
        self._read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """The integer called `name`, between `minimum` and 2³¹ − 1. Without a default it is required."""
        return self._checked(name, default, partial(integer_problem, minimum=minimum))

    def number(self, name: str, default: float | None = None, *, zero: bool = False) -> float:
        """The positive number called `name` (`zero`: it may be 0). Without a default it is required."""
        return float(self._checked(name, default, partial(number_problem, zero=zero)))

    def flag(self, name: str, default: bool) -> bool:
        """The true-or-false field called `name`."""
        return self._checked(name, default, flag_problem)

    def text(self, name: str, default: str | None = None) -> str:
        """The string called `name`. Without a default it is required."""
        return self._checked(name, default, text_problem)

    def child(self, name: str) -> Fields | None:
        """The object called `name`; None when it is absent, null or empty."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(cast("dict[str, object]", value), self.where, f"{self.path(name)}.") if value else None

    def first_object(self) -> str | None:
        """The name of the first field that holds an object. The field does not count as read."""
        return next((name for name, value in self._values.items() if isinstance(value, dict)), None)

    def refuse(self, table: Mapping[str, Unsupported], understood: Set[str] = frozenset()) -> None:
        """Raise ConfigError if a field of `table`, unless `understood`, has a value that changes the mathematics."""
        for name, unsupported in table.items():
            if name in understood or name not in self._values or unsupported.allows(self[name], self):
                continue
            raise self.error(name, f"is not supported: {unsupported.reason}")

    def path(self, name: str) -> str:
        """The name of a field behind the names of the objects around it, such as `text_config.hidden_size`."""
        return f"{self._prefix}{name}"

    def error(self, name: str, problem: str) -> ConfigError:
        """An error with the file, the field, its value and the problem."""
        value = f" = {show(self._values[name])}" if name in self._values else ""
        return ConfigError(f"{self.where}: {self.path(name)}{value} {problem}")

    def missing(self, name: str) -> ConfigError:
        """The error for a required field that the object lacks."""
        return ConfigError(f"{self.where}: {self.path(name)} is missing; add it from the original model")

    def warn(self, text: str) -> None:
        """Add a warning."""
        self._warnings.append(f"{self.where}: {text}")

    def warn_unread(self, harmless: frozenset[str] = frozenset(), *, to: Fields | None = None) -> None:
        """Add a warning for each field that was never read and is neither null nor `harmless`."""
        for name, value in self._values.items():
            if value is not None and name not in self._read and name not in harmless:
                (self if to is None else to).warn(
                    f"{self.path(name)} = {show(value)} is not known and was ignored"
                )

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def _checked(self, name: str, default: object, check: Check) -> Any:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise self.missing(name)
        if problem := check(value):
            raise self.error(name, problem)
        return value
