"""Calls that are JSON: {"name": …, "arguments": {…}}, or a list of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from infernum.chat.calls.brackets import BracketedValue
from infernum.chat.calls.scanner import Body, Call, call_of


class JsonBody(Body):
    """One JSON object that is a call, or an array of them.

    `openings` are the brackets that it may begin with. With `complete`, an object without arguments is no call: it may
    be an answer in JSON.
    """

    def __init__(self, openings: str = "{", *, complete: bool = False) -> None:
        self._value = BracketedValue(openings, '"')
        self._complete = complete

    def take(self, text: str) -> int:
        size = self._value.take(text)
        self.ended = self._value.ended
        return size

    def calls(self) -> list[Call]:
        value = read_json(self._value.whole)
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        calls = [self._call(each) for each in values]
        return [call for call in calls if call is not None] if all(calls) else []

    def _call(self, value: object) -> Call | None:
        fields = as_object(value)
        fields = fields and (as_object(fields.get("function")) or fields)
        if fields is None:
            return None
        name = next((key for key in ("arguments", "parameters") if key in fields), None)
        if name is None:
            return None if self._complete else call_of(fields.get("name"), {})
        arguments = arguments_of(fields[name])
        return None if arguments is None else call_of(fields.get("name"), arguments)


def arguments_of(value: object) -> Mapping[str, Any] | None:
    """Arguments as an object, which may be written as the text of one; None where they are something else."""
    if isinstance(value, str) and value.strip():
        value = read_json(value)
    elif value in (None, ""):
        value = {}
    return as_object(value)


def as_object(value: object) -> Mapping[str, Any] | None:
    """A JSON object; None for anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else None


def read_json(text: str) -> object:
    """The value of a JSON text, in whose strings line breaks may stand as they are; None where it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
