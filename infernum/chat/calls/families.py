"""Which family's syntax of calls a model writes, by its chat template or by name."""

from __future__ import annotations

from collections.abc import Mapping

from infernum.chat.calls.hermes import Hermes
from infernum.chat.calls.llama3_json import Llama3Json
from infernum.chat.calls.mistral import Mistral
from infernum.chat.calls.pythonic import Pythonic
from infernum.chat.calls.scanner import Scanner

FAMILIES: Mapping[str, type[Scanner]] = {
    "hermes": Hermes,
    "llama3_json": Llama3Json,
    "mistral": Mistral,
    "pythonic": Pythonic,
}
"""The families by the names of `--tool-call-parser`."""

OTHER_FORMS = ("<function=", "<arg_key>", "<\uff5ctool", "<|tool_call_begin|>")
"""What templates of other syntaxes contain, some of them in the same tags."""


def family_of(template: str) -> type[Scanner] | None:
    """The family whose calls a chat template describes or writes; None where it has none that is known."""
    if any(form in template for form in OTHER_FORMS):
        return None
    if Mistral.mark in template:
        return Mistral
    if Hermes.mark in template:
        return Hermes
    if Pythonic.mark in template or "func_name1(" in template:
        return Pythonic
    if Llama3Json.mark in template or '"parameters": ' in template:
        return Llama3Json
    return None
