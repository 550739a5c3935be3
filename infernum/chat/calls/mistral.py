"""Calls of Mistral behind [TOOL_CALLS]: a JSON array of calls, or, in later models, name[ARGS]{…} for each."""

from __future__ import annotations

from infernum.chat.calls.body import Body, Broken, Steps
from infernum.chat.calls.json_body import JsonBody
from infernum.chat.calls.scanner import Scanner, Writing, beginning_at_end

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
        return MistralBody("[")


class MistralBody(JsonBody):
    """An array of calls, or name[ARGS]{…}, where [CALL_ID] and an id may follow the name, and [ARGS] may be missing."""

    def read(self) -> Steps[None]:
        if (yield from self.behind_white()) == "[":
            yield from super().read()
            return
        name = yield from self._written_name()
        if not name or (yield from self.behind_white()) != "{":
            raise Broken
        self.begin(name)
        yield from self.bracketed(self.add)

    def _written_name(self) -> Steps[str]:
        """The name of the function; the marks and the id behind it are read, too."""
        written = ""
        while not written.endswith(ARGUMENTS) and (character := (yield from self.peek())) != "{":
            written += character
            if not _may_go_on(written):
                raise Broken
            yield from self.one()
        return written.removesuffix(ARGUMENTS).partition(ID)[0].strip()


def _may_go_on(written: str) -> bool:
    """True where this may be a name, an id, or a mark that is not whole yet."""
    half = max(beginning_at_end(written, mark) for mark in (ID, ARGUMENTS))
    words = written[: len(written) - half].removesuffix(ARGUMENTS).replace(ID, "")
    return len(written) <= LONGEST_NAME and all(
        character.isalnum() or character in "_-./ " for character in words
    )
