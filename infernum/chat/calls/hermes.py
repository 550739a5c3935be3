"""Calls of Hermes and Qwen: <tool_call>{"name": …, "arguments": {…}}</tool_call>, one behind the other."""

from __future__ import annotations

from infernum.chat.calls.body import Body
from infernum.chat.calls.json_body import JsonBody
from infernum.chat.calls.scanner import Scanner, Writing


class Hermes(Scanner):
    """Finds calls in tags. A closing tag may be missing, where the model has forgotten it."""

    mark = "<tool_call>"
    behind = ("</tool_call>",)
    special = (mark, *behind)
    writing = Writing('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>", "\n")

    def body(self) -> Body:
        return JsonBody()
