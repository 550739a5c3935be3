"""Calls that are JSON: {"name": …, "arguments": {…}}, or a list of these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from infernum.chat.calls.body import Body, Broken, Steps, json_text, read_json

ARGUMENTS = ("arguments", "parameters")
"""The fields in which a call has its arguments."""

_WORD = re.compile(r"[\w.+-]*")
"""A number, true, false or null."""


class JsonBody(Body):
    """One JSON object that is a call, or an array of them.

    `openings` are the brackets that it may begin with. With `complete`, an object without arguments is no call: it may
    be an answer in JSON.

    Arguments that are an object are those of the call as they are written; but those that stand in front of the name
    come when the call ends. null, an empty text and none are {}, and the text of an object is that object.
    """

    def __init__(self, openings: str = "{", *, complete: bool = False) -> None:
        super().__init__()
        self._openings = openings
        self._complete = complete
        self._name = ""
        self._early = ""
        """Arguments that the call does not have yet."""
        self._begun = False
        self._inside = False
        """True within the field `function` of a call."""

    def read(self) -> Steps[None]:
        mark = yield from self.expect(self._openings)
        if mark == "{":
            yield from self._call()
            return
        while mark != "]":
            yield from self.expect("{")
            yield from self._call()
            mark = yield from self.expect(",]")
            self.claim()

    def _call(self) -> Steps[None]:
        """A call, behind its opening bracket."""
        self._name = self._early = ""
        self._begun = self._inside = False
        yield from self._fields()
        if not self._begun:
            if not self._name or (self._complete and not self._early):
                raise Broken
            self.begin(self._name)
            self.add(self._early or "{}")
        self.claim()

    def _fields(self) -> Steps[None]:
        """The fields of an object, and its closing bracket."""
        mark = ","
        while mark == ",":
            key = read_json((yield from self.string()))
            yield from self.expect(":")
            yield from self._field(key)
            mark = yield from self.expect(",}")

    def _field(self, key: object) -> Steps[None]:
        opening = yield from self.behind_white()
        if key == "name" and not self._name:
            self._name = _name((yield from self.string()))
        elif key in ARGUMENTS and not self._begun and not self._early:
            yield from self._arguments(opening)
        elif key == "function" and opening == "{" and not self._name and not self._inside:
            self._inside = True
            yield from self.expect("{")
            yield from self._fields()
        else:
            yield from self._skip(opening)

    def _arguments(self, opening: str) -> Steps[None]:
        if opening != "{":
            written = yield from (self.string() if opening == '"' else self.run(_WORD))
            self._early = _as_arguments(written)
        elif self._name:
            self._begun = True
            self.begin(self._name)
            yield from self.bracketed(self.add)
        else:
            pieces: list[str] = []
            yield from self.bracketed(pieces.append)
            self._early = "".join(pieces)

    def _skip(self, opening: str) -> Steps[None]:
        """Read a value that says nothing of the call."""
        if opening == '"':
            yield from self.string()
        elif opening in "{[":
            yield from self.bracketed(str)
        elif not (yield from self.run(_WORD)):
            raise Broken


def _name(written: str) -> str:
    """The name of a function as it is written in JSON. Raises Broken."""
    name = read_json(written)
    if not isinstance(name, str) or not name:
        raise Broken
    json_text(name)
    return name


def _as_arguments(written: str) -> str:
    """The text of arguments that are written as null, or as the text of an object. Raises Broken."""
    value = read_json(written)
    arguments = None if value is None and written != "null" else arguments_of(value)
    if arguments is None:
        raise Broken
    return json_text(arguments)


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
