"""Reads one call, or a list of calls, in text that comes piece by piece: what the syntaxes of all families share."""

from __future__ import annotations

import json
import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infernum.chat.calls.brackets import BracketedValue

LETTERS_AND_DIGITS = string.ascii_letters + string.digits


def new_id() -> str:
    """A new id of a call: nine letters and digits, because the templates of Mistral refuse any other."""
    return "".join(secrets.choice(LETTERS_AND_DIGITS) for _ in range(9))


@dataclass(frozen=True)
class Call:
    """A call of a function: its name, its arguments as the text of a JSON object, and the id that its result has.

    While an answer comes, a call has the arguments so far, and `Arguments` continue them. They stay what they are
    where the answer ends within them, and where the model has not closed the brackets that it has opened.
    """

    name: str
    arguments: str
    id: str = field(default_factory=new_id, compare=False)


@dataclass(frozen=True)
class Arguments:
    """Text that continues the arguments of the last call."""

    text: str


class Broken(Exception):
    """The text is not what a reader expects."""


Value = TypeVar("Value")
Steps = Generator[None, None, Value]
"""The reading of a value. It pauses where all text has been read that is there."""

_PLAIN = {quote: re.compile(rf"[^\\{quote}]*") for quote in "\"'"}
_CONTROL = re.compile(r"[\x00-\x1f]")


class Body(ABC):
    """One call, or one list of calls, behind its mark.

    A subclass reads the text by the methods below, as if all of it were there. A call is returned as soon as its name
    and the beginning of its arguments have been read.
    """

    def __init__(self) -> None:
        self._text = ""
        self._place = 0
        self._claimed = 0
        self._unclaimed: list[str] = []
        self._parts: list[Call | Arguments] = []
        self._reading = self.read()
        self.called = False
        """True where a call has begun."""
        self.ended = False
        self.whole = False
        """True where the body has ended as it should."""

    @abstractmethod
    def read(self) -> Steps[None]:
        """Read the body to its end. Raises Broken."""

    def take(self, text: str) -> int:
        """Read on, and return the number of characters that belong to the body: all, unless it has ended."""
        self._text, self._place, self._claimed = text, 0, 0
        try:
            next(self._reading)
        except StopIteration:
            self.ended = self.whole = True
        except Broken:
            self.ended = True
        self._unclaimed.append(text[self._claimed : self._place])
        return self._place

    def parts(self) -> list[Call | Arguments]:
        """What has come of calls since the last time."""
        parts, self._parts = self._parts, []
        return parts

    @property
    def text(self) -> str:
        """What was read and is no part of a call, or of the marks between calls."""
        return "".join(self._unclaimed)

    def claim(self) -> None:
        """What was read so far is no text."""
        self._unclaimed.clear()
        self._claimed = self._place

    def begin(self, name: str) -> None:
        """A call has begun."""
        self.called = True
        self._parts.append(Call(name, ""))
        self.claim()

    def add(self, text: str) -> None:
        """The arguments of the last call go on."""
        self._parts.append(Arguments(text))
        self.claim()

    def peek(self) -> Steps[str]:
        """The next character, which stays unread."""
        while self._place == len(self._text):
            yield
        return self._text[self._place]

    def one(self) -> Steps[str]:
        """The next character."""
        character = yield from self.peek()
        self._place += 1
        return character

    def behind_white(self) -> Steps[str]:
        """The next character behind white space, which stays unread."""
        while (character := (yield from self.peek())).isspace():
            self._place += 1
        return character

    def expect(self, characters: str) -> Steps[str]:
        """One of these characters, behind white space. Raises Broken for any other, which stays unread."""
        character = yield from self.behind_white()
        if character not in characters:
            raise Broken
        self._place += 1
        return character

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """The longest run of the characters of a pattern, [set]*, which perhaps is empty."""
        pieces: list[str] = []
        while True:
            match = pattern.match(self._text, self._place)
            assert match is not None, "the pattern matches an empty text"
            pieces.append(match[0])
            self._place = match.end()
            if self._place < len(self._text):
                return "".join(pieces)
            yield

    def string(self, quote: str = '"') -> Steps[str]:
        """A string as it is written, with its quotes. Raises Broken where there is none."""
        pieces = [(yield from self.expect(quote))]
        while True:
            pieces.append((yield from self.run(_PLAIN[quote])))
            character = yield from self.one()
            pieces.append(character)
            if character == quote:
                return "".join(pieces)
            pieces.append((yield from self.one()))

    def bracketed(self, take: Callable[[str], Any], quotes: str = '"') -> Steps[None]:
        """Read a value from its opening bracket on; `take` gets it piece by piece. Raises Broken.

        In the strings of JSON, where models write control characters as they are, these are escaped.
        """
        value = BracketedValue(quotes)
        while not value.ended:
            control = _CONTROL.match((yield from self.peek()))
            escapes = control is not None and value.in_string and quotes == '"'
            following = _CONTROL.search(self._text, self._place + 1)
            end = self._place + 1 if control else following.start() if following else len(self._text)
            start = self._place
            self._place += value.take(self._text[start:end])
            piece = self._text[start : self._place]
            take(json.dumps(piece)[1:-1] if escapes else piece)
        if value.broken:
            raise Broken


def read_json(text: str) -> object:
    """The value of a JSON text, in whose strings line breaks may stand as they are; None where it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def json_text(value: object) -> str:
    """A value as JSON. Raises Broken where it is none, such as an infinite number or half a character."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError as error:
        raise Broken from error
    return text
