"""How the answers of the served model are written, by its chat template or as the server's options say."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.chat.calls.families import FAMILIES, family_of
from infernum.chat.calls.scanner import Scanner
from infernum.chat.reasoning import OPENING
from infernum.serve.problems import invalid

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Parsers:
    """`tool_calls`: the name of a family; `reasons`: "think"; either: "none", or "auto", by the chat template."""

    tool_calls: str = AUTO
    reasons: str = AUTO

    def calls(self, template: str) -> type[Scanner]:
        """The syntax of calls. Raises Problem where there is none."""
        family = family_of(template) if self.tool_calls == AUTO else FAMILIES.get(self.tool_calls)
        if family is not None:
            return family
        reason = (
            "its chat template writes calls in no form that is known"
            if self.tool_calls == AUTO
            else f"the server was started with --tool-call-parser {self.tool_calls}"
        )
        raise invalid(
            f"tools: this model calls none, because {reason}; leave tools out, or start the server with"
            f" --tool-call-parser {' or '.join(FAMILIES)}",
            "tools",
            "unsupported_parameter",
        )

    def reasoning(self, template: str) -> bool:
        """True where reasoning may stand at the start of an answer."""
        return OPENING in template if self.reasons == AUTO else self.reasons != NONE
