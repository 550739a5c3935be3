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


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> None:
    """Raises Problem for a choice among tools that the request does not bring, or that cannot be enforced yet."""
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
    raise invalid(
        "tool_choice: a call cannot be enforced yet; only none and auto are supported",
        "tool_choice",
        "unsupported_parameter",
    )


def for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates read them: with parameters, of which a function may have none, and without `strict`."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                **({"description": tool.function.description} if tool.function.description else {}),
                "parameters": tool.function.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]
