"""Reads a keyword argument that is a literal of Python, and runs nothing."""

from __future__ import annotations

import re
from typing import Any

from infernum.chat.calls.body import Broken

_TOKEN = re.compile(
    r"""\s*(?:(?P<word>[^\W\d]\w*(?:\.[^\W\d]\w*)*)"""
    r"""|(?P<number>[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<string>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
    r"""|(?P<mark>[][(){},:=]))""",
    re.DOTALL,
)

_ESCAPE = re.compile(
    r"\\(?:x(?P<hex>[0-9a-fA-F]{2})|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<other>.))",
    re.DOTALL,
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", "\\": "\\", "'": "'", '"': '"'}
"""What stands for a character behind a backslash. A backslash in front of any other is a backslash, as in Python."""

_CONSTANTS: dict[str, Any] = {
    "True": True,
    "False": False,
    "None": None,
    "true": True,
    "false": False,
    "null": None,
}

LONGEST_NUMBER = 300
"""Characters of a number."""


def argument_of(text: str) -> tuple[str, Any]:
    """The name and the value of an argument, x=[1, "a"]. Raises Broken."""
    return _Reader(text).argument()


class _Reader:
    """Reads a text token by token, from front to back. Brackets within brackets are the caller's to limit."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._kind, self._token = "", ""
        self._next()

    def argument(self) -> tuple[str, Any]:
        """The whole text as an argument. Raises Broken."""
        name = self._take("word")
        self._expect("=")
        value = self._value()
        if self._kind:
            raise Broken
        return name, value

    def _value(self) -> Any:
        match self._kind:
            case "word":
                word = self._take("word")
                if word not in _CONSTANTS:
                    raise Broken
                return _CONSTANTS[word]
            case "number":
                return _number(self._take("number"))
            case "string":
                text = _string(self._take("string"))
                while self._kind == "string":  # strings side by side are one string
                    text += _string(self._take("string"))
                return text
            case _:
                return self._composed()

    def _composed(self) -> Any:
        if self._passes("{"):
            return self._object()
        if self._passes("["):
            return self._list("]")
        self._expect("(")
        return self._list(")")

    def _object(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not self._passes("}"):
            key = _string(self._take("string"))
            self._expect(":")
            fields[key] = self._value()
            if not self._passes(","):
                self._expect("}")
                break
        return fields

    def _list(self, closing: str) -> list[Any]:
        values: list[Any] = []
        while not self._passes(closing):
            values.append(self._value())
            if not self._passes(","):
                self._expect(closing)
                break
        return values

    def _take(self, kind: str) -> str:
        if self._kind != kind:
            raise Broken
        token = self._token
        self._next()
        return token

    def _passes(self, mark: str) -> bool:
        """True where the mark stands here; it is passed then."""
        if self._kind != "mark" or self._token != mark:
            return False
        self._next()
        return True

    def _expect(self, mark: str) -> None:
        if not self._passes(mark):
            raise Broken

    def _next(self) -> None:
        match = _TOKEN.match(self._text, self._place)
        if match is not None:
            self._kind, self._place = match.lastgroup or "", match.end()
            self._token = match[self._kind]
        elif self._text[self._place :].strip():
            raise Broken
        else:
            self._kind = self._token = ""


def _number(text: str) -> int | float:
    if len(text) > LONGEST_NUMBER:
        raise Broken
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError as error:
        raise Broken from error


def _string(text: str) -> str:
    """The value of a string, in which line breaks may stand as they are."""
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    digits = match["hex"] or match["short"] or match["long"]
    if digits is None:
        return _ESCAPED.get(match["other"], match[0])
    try:
        return chr(int(digits, 16))
    except ValueError as error:
        raise Broken from error
