"""The form that an output must have: a schema of JSON, a regular expression, a choice, or a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infernum.errors import RequestError

WHITESPACE = r"[ \n\r\t]{0,40}"
"""What may stand between the parts of JSON. With an end, since some models write spaces for ever."""

Kind = Literal["json_schema", "regex", "choice", "grammar", "llguidance"]


@dataclass(frozen=True)
class Grammar:
    """The form of an output, which ends where the form is complete.

    kind     what `text` is: a schema of JSON; a regular expression; a list in JSON of texts; a grammar in Lark's
             notation or in GBNF; a grammar as llguidance's matcher reads it
    options  of a schema: llguidance's options for JSON
    """

    kind: Kind
    text: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def json(cls, schema: Mapping[str, Any] | bool | str = True, *, whitespace: str = WHITESPACE) -> Grammar:
        """JSON that a schema allows; True: any JSON. `whitespace`: what may stand between its parts; "": nothing.

        Raises RequestError for a schema that is no JSON.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"the schema is no JSON ({error}); give a dict of texts, numbers and lists"
            ) from error
        spacing = {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
        return cls("json_schema", text, spacing)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches from end to end."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of several texts. Raises RequestError when there are none."""
        listed = [] if isinstance(texts, str) else list[object](texts)
        if not listed or not all(isinstance(each, str) for each in listed):
            raise RequestError(f"the choice is {texts!r}; give a list of at least one text")
        return cls("choice", json.dumps(listed))

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """Text that a grammar in Lark's notation, or in llama.cpp's GBNF, derives."""
        return cls("grammar", grammar)
