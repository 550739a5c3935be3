"""The fields of a request that give its answer a form: `response_format`, and `structured_outputs` as vLLM has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from infernum.grammar import WHITESPACE
from infernum.serve.grammar_check import GrammarSource
from infernum.serve.problems import invalid

MOST_CHOICES = 4096
"""Texts of `structured_outputs.choice`."""

ANY_OBJECT = '{"type":"object"}'

Schema = dict[str, Any] | bool


class JsonSchema(msgspec.Struct, kw_only=True):
    """A schema under a name. `strict` false: what of the schema cannot be enforced is left out, else refused."""

    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """The form of an answer.

    Without `json_schema`, `schema` and `strict` may stand beside `type`, as llama.cpp and /v1/responses have them.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema: Schema | None = None
    strict: bool | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """The form of an answer: `json`, `json_object`, `regex`, `choice` or `grammar`, in Lark's notation or in GBNF."""

    json: Schema | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MOST_CHOICES)] | None = None
    grammar: str | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


def source_of(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> GrammarSource | None:
    """What the two fields ask for; None: nothing. Raises Problem."""
    if response_format is not None and response_format.type != "text":
        if structured_outputs is not None:
            raise invalid(
                "structured_outputs and response_format exclude each other; give one", "structured_outputs"
            )
        return _of_format(response_format)
    return None if structured_outputs is None else _of_outputs(structured_outputs)


def _of_format(form: ResponseFormat) -> GrammarSource:
    field = "response_format"
    match form.type:
        case "json_schema":
            schema = form.json_schema or JsonSchema(schema=form.schema, strict=form.strict)
            if form.json_schema is None and form.schema is None:
                raise invalid(f"{field}: json_schema is missing; give it a name and a schema", field)
            return _json(field, schema.schema, lenient=schema.strict is False)
        case "json_object":
            return _json(field, form.schema)
        case _:
            raise invalid(
                f"{field}: {form.type} is not supported; give json_schema or json_object",
                field,
                "unsupported_parameter",
            )


def _of_outputs(outputs: StructuredOutputs) -> GrammarSource:
    field = "structured_outputs"
    names = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
    forms = [name for name in names if getattr(outputs, name) is not None]
    if outputs.json_object is False:
        forms.remove("json_object")
    if len(forms) != 1:
        raise invalid(
            f"{field} has {' and '.join(forms) or 'no form'}; give one of {', '.join(names[:-1])}", field
        )
    match forms[0]:
        case "json" | "json_object":
            pattern = "" if outputs.disable_any_whitespace else outputs.whitespace_pattern
            return _json(field, outputs.json, pattern)
        case "regex":
            return GrammarSource(field, "regex", outputs.regex or "")
        case "choice":
            return GrammarSource(field, "choice", msgspec.json.encode(outputs.choice).decode())
        case "grammar":
            return GrammarSource(field, "grammar", outputs.grammar or "")
        case name:
            raise invalid(f"{field}: {name} is not supported", field, "unsupported_parameter")


def _json(
    field: str, schema: Schema | str | None, whitespace: str | None = None, *, lenient: bool = False
) -> GrammarSource:
    match schema:
        case None | True:
            text = ANY_OBJECT if schema is None else "{}"
        case False:
            raise invalid(f"{field}: the schema false allows no answer; give another", field)
        case str():
            text = schema
        case _:
            text = msgspec.json.encode(schema).decode()
    pattern = WHITESPACE if whitespace is None else whitespace
    spacing = {"whitespace_pattern": pattern} if pattern else {"whitespace_flexible": False}
    return GrammarSource(field, "json_schema", text, {**spacing, "lenient": lenient})
