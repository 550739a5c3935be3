"""Calls of Mistral behind [TOOL_CALLS]: a JSON array of calls, or, in later models, name[ARGS]{…} for each."""

from __future__ import annotations

from infernum.chat.calls.brackets import BracketedValue
from infernum.chat.calls.json_body import JsonBody, arguments_of
from infernum.chat.calls.scanner import Body, Call, EitherBody, Scanner, Writing, beginning_at_end, call_of

ID = "[CALL_ID]"
ARGUMENTS = "[ARGS]"
LONGEST_NAME = 256
"""Characters of a name with the id behind it. What is longer is text."""


class Mistral(Scanner):
    """Finds calls in both forms of this family."""

    mark = "[TOOL_CALLS]"
    special = (mark, ID, ARGUMENTS)
    writing = Writing('{"name": ', ', "arguments": ', "}", ", ", "[TOOL_CALLS] [", "]")

    def body(self) -> Body:
        return EitherBody("[", JsonBody("["), NamedBody())


class NamedBody(Body):
    """name[ARGS]{…}, where [CALL_ID] and an id may follow the name, and [ARGS] may be missing."""

    def __init__(self) -> None:
        self._name = ""
        self._named = False
        self._arguments = BracketedValue("{", '"')

    def take(self, text: str) -> int:
        size = 0
        while not self._named:
            if self.ended or size == len(text):
                return size
            size += self._take_name(text[size])
        size += self._arguments.take(text[size:])
        self.ended = self._arguments.ended
        return size

    def calls(self) -> list[Call]:
        arguments = arguments_of(self._arguments.whole or [])
        call = None if arguments is None else call_of(self._name.partition(ID)[0].strip(), arguments)
        return [] if call is None else [call]

    def _take_name(self, character: str) -> int:
        """Read a character of the name, or none of it where it belongs to the arguments or to no call."""
        if character == "{":
            self._named = True
            return 0
        self._name += character
        if self._name.endswith(ARGUMENTS):
            self._name = self._name.removesuffix(ARGUMENTS)
            self._named = True
        elif not self._may_go_on():
            self._name = self._name[:-1]
            self.ended = True
            return 0
        return 1

    def _may_go_on(self) -> bool:
        """True where the characters so far may be a name, an id, or a mark that is not whole yet."""
        half = max(beginning_at_end(self._name, mark) for mark in (ID, ARGUMENTS))
        words = self._name[: len(self._name) - half].replace(ID, "")
        return len(self._name) <= LONGEST_NAME and all(
            character.isalnum() or character in "_-./ " for character in words
        )
