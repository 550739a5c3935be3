"""The functions that a request offers to the model, and how the answer to it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from infernum.serve.problems import invalid

MOST_TOOLS = 1024

FunctionName = Annotated[str, Meta(min_length=1, max_length=128)]


class Function(msgspec.Struct, kw_only=True):
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object."""

    name: FunctionName
    description: str | UnsetType | None = UNSET
    parameters: dict[str, Any] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class Tool(msgspec.Struct, kw_only=True):
    """A tool that the model may use; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionReference(msgspec.Struct, kw_only=True):
    """The name of a function."""

    name: FunctionName


class NamedChoice(msgspec.Struct, kw_only=True):
    """The choice of one function, which the answer must call."""

    type: Literal["function"]
    function: FunctionReference


Tools = Annotated[list[Tool], Meta(max_length=MOST_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises Problem for a schema that is not of objects, and for a choice among tools that are not there."""
    for tool in tools:
        kind = schema_of(tool).get("type", "object")
        if kind != "object":
            raise invalid(
                f'tools: the parameters of {tool.function.name!r} have the type {kind!r}; give "object"',
                "tools",
            )
    if choice in (None, "none", "auto"):
        return
    if not tools:
        raise invalid("tool_choice needs tools; give tools too", "tool_choice")
    if isinstance(choice, NamedChoice):
        names = [tool.function.name for tool in tools]
        if choice.function.name not in names:
            raise invalid(
                f"tool_choice names {choice.function.name!r}; the tools are {', '.join(map(repr, names))}",
                "tool_choice",
            )


def schema_of(tool: Tool) -> dict[str, Any]:
    """The schema of the arguments of a function, which has none where the request gives no parameters."""
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates read them: with parameters, of which a function may have none, and without `strict`."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                **({"description": tool.function.description} if tool.function.description else {}),
                "parameters": schema_of(tool),
            },
        }
        for tool in tools
    ]
