"""Calls written in Python: [f(x=1, y="a"), g()], as the whole answer or behind <|python_start|>."""

from __future__ import annotations

import re

from infernum.chat.calls.body import Body, Broken, Steps, json_text
from infernum.chat.calls.json_body import JsonBody
from infernum.chat.calls.llama3_json import Llama3Json
from infernum.chat.calls.python_literals import argument_of
from infernum.chat.calls.scanner import Scanner

_NAME = re.compile(r"[\w.]*")
_PLAIN = re.compile(r"""[^]"'()[{},]*""")


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
        return PythonicBody(complete=True)


class PythonicBody(JsonBody):
    """A list of calls, or a call in JSON. What does not begin like one is text at once: [1], or [a link](…).

    Literals become JSON one argument at a time, because strings side by side are one string.
    """

    def read(self) -> Steps[None]:
        if (yield from self.behind_white()) == "{":
            yield from super().read()
            return
        mark = yield from self.expect("[")
        while mark != "]":
            yield from self._python_call()
            mark = yield from self.expect(",]")
            if mark == "," and (yield from self.behind_white()) == "]":
                mark = yield from self.expect("]")
            self.claim()

    def _python_call(self) -> Steps[None]:
        yield from self.behind_white()
        name = yield from self.run(_NAME)
        if not name.replace(".", "_").isidentifier():
            raise Broken
        yield from self.expect("(")
        separator = "{"
        while (yield from self.behind_white()) != ")":
            key, value = argument_of((yield from self._written_argument()))
            text = f"{json_text(key)}: {json_text(value)}"
            if separator == "{":
                self.begin(name)
            self.add(separator + text)
            separator = ", "
            if (yield from self.peek()) == ",":
                yield from self.one()
                self.claim()
        yield from self.expect(")")
        if separator == "{":
            self.begin(name)
        self.add("{}" if separator == "{" else "}")

    def _written_argument(self) -> Steps[str]:
        """An argument as it is written, up to the comma or the parenthesis behind it."""
        pieces: list[str] = []
        while True:
            pieces.append((yield from self.run(_PLAIN)))
            character = yield from self.peek()
            if character in ",)":
                return "".join(pieces)
            if character in "]}":
                raise Broken
            if character in "\"'":
                pieces.append((yield from self.string(character)))
            else:
                yield from self.bracketed(pieces.append, "\"'")
