"""Calls of Llama 3: {"name": …, "parameters": {…}}, as the whole answer or behind <|python_tag|>, with semicolons."""

from __future__ import annotations

from infernum.chat.calls.body import Body
from infernum.chat.calls.json_body import JsonBody
from infernum.chat.calls.scanner import Scanner, Writing


class Llama3Json(Scanner):
    """Finds calls at the start of an answer, behind each other, and behind the tag."""

    mark = "<|python_tag|>"
    bare = "{"
    behind = (";",)
    special = (mark,)
    writing = Writing('{"name": ', ', "parameters": ', "}", "; ")

    def body(self) -> Body:
        return JsonBody(complete=True)
