"""Calls written in Python: [f(x=1, y="a"), g()], as the whole answer or behind <|python_start|>."""

from __future__ import annotations

from infernum.chat.calls.brackets import BracketedValue
from infernum.chat.calls.json_body import JsonBody
from infernum.chat.calls.llama3_json import Llama3Json
from infernum.chat.calls.python_literals import Broken, Reader
from infernum.chat.calls.scanner import Body, Call, EitherBody, Scanner, call_of


class Pythonic(Scanner):
    """Finds a list of calls at the start of an answer and behind the tag, as Llama 4 and ToolACE write it.

    These models write JSON as well, as Llama 3 does; calls that they must make are written so.
    """

    mark = "<|python_start|>"
    bare = "[{"
    behind = ("<|python_end|>", ";")
    special = (mark, "<|python_end|>")
    writing = Llama3Json.writing

    def body(self) -> Body:
        return EitherBody("{", JsonBody(complete=True), PythonicBody())


class PythonicBody(Body):
    """A list of calls. What does not begin like one is text at once: [1], or [a link](…)."""

    def __init__(self) -> None:
        self._value = BracketedValue("[", "\"'")
        self._head = ""
        self._begun = False

    def take(self, text: str) -> int:
        size = 0
        while not self._begun:
            if self.ended or size == len(text):
                return size
            self._begin(text[size])
            size += not self.ended
        size += self._value.take(text[size:])
        self.ended = self._value.ended
        return size

    def calls(self) -> list[Call]:
        try:
            calls = [call_of(name, arguments) for name, arguments in Reader(self._value.whole).calls()]
        except Broken:
            return []
        return [call for call in calls if call is not None] if all(calls) else []

    def _begin(self, character: str) -> None:
        """Read a character of what stands in front of the first arguments: a bracket, a name and a parenthesis."""
        head = (self._head + character).replace(" ", "").replace("\n", "")
        name = head[1:].removesuffix("(")
        if (head and head[0] != "[") or (name and not name.replace(".", "_").isidentifier()) or head == "[(":
            self.ended = True
            return
        self._head += character
        self._begun = head.endswith("(")
        self._value.take(character)
