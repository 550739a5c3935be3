"""Finds the calls of functions in the text of an answer while it comes: what the families of models have in common."""

from __future__ import annotations

import json
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

LETTERS_AND_DIGITS = string.ascii_letters + string.digits


def new_id() -> str:
    """A new id of a call: nine letters and digits, because the templates of Mistral refuse any other."""
    return "".join(secrets.choice(LETTERS_AND_DIGITS) for _ in range(9))


@dataclass(frozen=True)
class Call:
    """A call of a function: its name, its arguments as the text of a JSON object, and the id that its result has."""

    name: str
    arguments: str
    id: str = field(default_factory=new_id, compare=False)


def call_of(name: object, arguments: Mapping[str, Any]) -> Call | None:
    """A call with these arguments; None where they are no JSON, such as an infinite number or half a character."""
    if not isinstance(name, str) or not name:
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + text).encode()
    except ValueError:
        return None
    return Call(name, text)


@dataclass(frozen=True)
class Writing:
    """How calls are written where the model must call: the texts around names and arguments, marks among them.

    opening, closing  around all calls
    before            in front of the name, a JSON string
    between           between the name and the arguments, a JSON object
    after             behind the arguments
    separator         between two calls
    """

    before: str
    between: str
    after: str
    separator: str
    opening: str = ""
    closing: str = ""


class Body(ABC):
    """One call, or one list of calls, behind its mark. `ended`: the last character is read, or it is broken."""

    ended: bool = False

    @abstractmethod
    def take(self, text: str) -> int:
        """Read on, and return the number of characters that belong to the body: all, unless it has ended."""

    @abstractmethod
    def calls(self) -> list[Call]:
        """The calls of a body that has ended; none where it is broken."""


class EitherBody(Body):
    """A body of one of two forms: that of the bracket with which it begins behind white space, or `other`."""

    def __init__(self, bracket: str, bracketed: Body, other: Body) -> None:
        self._bracket = bracket
        self._bracketed = bracketed
        self._other = other
        self._chosen: Body | None = None

    def take(self, text: str) -> int:
        white = 0
        if self._chosen is None:
            white = len(text) - len(text.lstrip())
            if white == len(text):
                return white
            self._chosen = self._bracketed if text[white] == self._bracket else self._other
        size = white + self._chosen.take(text[white:])
        self.ended = self._chosen.ended
        return size

    def calls(self) -> list[Call]:
        return [] if self._chosen is None else self._chosen.calls()


class Scanner(ABC):
    """Turns the text of an answer, piece by piece, into text and calls, alike wherever the pieces part.

    A call is returned once it is complete. A call that is broken, or cut by the end of the answer, is returned as the
    text that it is. White space beside a call is dropped. Nothing is read twice, so the time is linear in the length.

    mark     what stands in front of a call; a special token, perhaps
    bare     the characters with which a call begins that has no mark, at the start of an answer or behind another call
    behind   what may stand behind a call, and is no text
    special  the special tokens of this syntax, which are part of the text that the scanner needs
    writing  the form of calls that a model must make, as the models of this family write them
    """

    mark: ClassVar[str]
    bare: ClassVar[str] = ""
    behind: ClassVar[tuple[str, ...]] = ()
    special: ClassVar[tuple[str, ...]] = ()
    writing: ClassVar[Writing]

    def __init__(self) -> None:
        self._unread = ""
        self._body: Body | None = None
        self._of_call: list[str] = []
        """The text of the call that is being read, from the white space in front of its mark on."""
        self._may_be_bare = bool(self.bare)
        self._behind_call = False

    @abstractmethod
    def body(self) -> Body:
        """The reader of the next call."""

    def push(self, text: str) -> list[str | Call]:
        """Add text, and return what is certain now."""
        self._unread += text
        return self._segments(final=False)

    def finish(self) -> list[str | Call]:
        """The rest, at the end of the answer."""
        return self._segments(final=True)

    def _segments(self, *, final: bool) -> list[str | Call]:
        segments: list[str | Call] = []
        while self._unread or self._body is not None:
            if self._body is not None:
                goes_on = self._read_call(self._body, segments, final)
            elif self._may_be_bare or self._behind_call:
                goes_on = self._read_beside(final)
            else:
                goes_on = self._read_text(segments, final)
            if not goes_on:
                break
        return segments

    def _read_call(self, body: Body, segments: list[str | Call], final: bool) -> bool:
        size = body.take(self._unread)
        self._of_call.append(self._unread[:size])
        self._unread = self._unread[size:]
        if not body.ended and not final:
            return False
        calls = body.calls() if body.ended else []
        segments += calls or ["".join(self._of_call)]
        self._body = None
        self._behind_call = bool(calls)
        self._may_be_bare = self._behind_call and bool(self.bare)
        return True

    def _read_beside(self, final: bool) -> bool:
        """At the start of an answer or behind a call: skip white space and marks, up to a bare call or to text."""
        text = self._unread.lstrip()
        marks = self.behind if self._behind_call else ()
        for mark in marks:
            if text.startswith(mark):
                self._unread = text[len(mark) :]
                return True
        if not final and (not text or any(mark.startswith(text) for mark in marks)):
            return False
        if self._may_be_bare and text and text[0] in self.bare:
            self._begin(len(self._unread) - len(text), 0)
        elif self._behind_call:
            self._unread = text
        self._may_be_bare = self._behind_call = False
        return True

    def _read_text(self, segments: list[str | Call], final: bool) -> bool:
        place = self._unread.find(self.mark)
        if place >= 0:
            shown = len(self._unread[:place].rstrip())
        elif final:
            shown = len(self._unread)
        else:
            begun = len(self._unread) - beginning_at_end(self._unread, self.mark)
            shown = len(self._unread[:begun].rstrip())
        if shown:
            segments.append(self._unread[:shown])
        self._unread = self._unread[shown:]
        if place < 0:
            return False
        self._begin(place - shown, len(self.mark))
        return True

    def _begin(self, white: int, mark: int) -> None:
        """Begin to read a call, behind so many characters of white space and so many of a mark."""
        self._of_call = [self._unread[: white + mark]]
        self._unread = self._unread[white + mark :]
        self._body = self.body()


def beginning_at_end(text: str, mark: str) -> int:
    """The length of the longest end of `text` with which `mark` begins, without being whole."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if mark.startswith(text[-n:])), 0)
