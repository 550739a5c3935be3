"""Finds the calls of functions in the text of an answer while it comes: what the families of models have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from infernum.chat.calls.body import Arguments, Body, Call

Part = str | Call | Arguments
"""Text of an answer, a call that begins, or what continues the last call."""


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


class Scanner(ABC):
    """Turns the text of an answer, piece by piece, into text and calls, alike wherever the pieces part.

    A call begins once its name and the beginning of its arguments have come, and its arguments grow with the text.
    What is broken, or cut by the end of the answer, before a call has begun is the text that it is. Arguments that
    are broken end there, and what follows is text. White space beside a call is dropped. Nothing is read twice, so the
    time is linear in the length.

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
        self._front = ""
        """The mark in front of the call that is being read, with the white space around it."""
        self._may_be_bare = bool(self.bare)
        self._behind_call = False

    @abstractmethod
    def body(self) -> Body:
        """The reader of the next call."""

    def push(self, text: str) -> list[Part]:
        """Add text, and return what is certain now."""
        self._unread += text
        return self._segments(final=False)

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""
        return self._segments(final=True)

    def _segments(self, *, final: bool) -> list[Part]:
        segments: list[Part] = []
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

    def _read_call(self, body: Body, segments: list[Part], final: bool) -> bool:
        size = body.take(self._unread)
        self._unread = self._unread[size:]
        segments += body.parts()
        if not body.ended and not final:
            return False
        text = "" if body.whole else body.text
        text = text.lstrip() if body.called else self._front + text
        segments += [text] if text else []
        self._body = None
        self._behind_call = body.called and not text
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

    def _read_text(self, segments: list[Part], final: bool) -> bool:
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
        self._front = self._unread[: white + mark]
        self._unread = self._unread[white + mark :]
        self._body = self.body()


def beginning_at_end(text: str, mark: str) -> int:
    """The length of the longest end of `text` with which `mark` begins, without being whole."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if mark.startswith(text[-n:])), 0)
