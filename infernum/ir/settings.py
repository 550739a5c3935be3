"""Settings of a block: what values they may have, and the name that a block with settings goes by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import cast

LONGEST = 40
"""Characters of a value that a name shows; a longer value is shown as a hash."""


def suffix(settings: Mapping[str, object]) -> str:
    """Settings as the end of an identifier: `{"kind": "sliding", "window": 4096}` is `_sliding_window_4096`.

    A string stands for itself, true for the name of its setting, false for `no_` and the name. What an identifier
    cannot hold is followed by a hash of the value, so that two values of a setting never have one name.
    """
    return "".join(f"_{_word(name, value)}" for name, value in settings.items())


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    if value is None:
        return f"{name}_none"
    if isinstance(value, int) and value >= 0:
        return f"{name}_{value}"
    if isinstance(value, str) and re.fullmatch(rf"\w{{1,{LONGEST}}}", value, re.ASCII):
        return value
    digest = hashlib.sha256(repr(value).encode()).hexdigest()[:8]
    readable = "_".join(re.findall(r"[A-Za-z0-9]+", repr(value)))
    return f"{name}_{readable}_{digest}" if len(readable) <= LONGEST else f"{name}_{digest}"


def is_plain(value: object) -> bool:
    """True for a value that compares by what it holds and prints the same in every process."""
    if isinstance(value, tuple):
        return all(is_plain(part) for part in cast("tuple[object, ...]", value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(is_plain(getattr(value, part.name)) for part in fields(value))
    return value is None or isinstance(value, str | int | float)
