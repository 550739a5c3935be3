"""The body of a request of /v1/messages, Anthropic's interface, and the chat that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from infernum.serve.problems import invalid
from infernum.serve.requests import MOST_STOPS, ChatRequest, Name, Share, StopText
from infernum.serve.tools import (
    MOST_TOOLS,
    Function,
    FunctionName,
    FunctionReference,
    NamedChoice,
    Tool,
    ToolChoice,
)

Message = dict[str, Any]


class MessagesTool(msgspec.Struct, kw_only=True):
    """A function that the model may call. Tools with a `type` of their own run where the model is served by others."""

    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class MessagesChoice(msgspec.Struct, kw_only=True):
    """Which tools the answer may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/messages, and without `max_tokens` of /v1/messages/count_tokens. Other fields are ignored."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=65536)]
    model: Name | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    system: str | list[Message] | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    tools: Annotated[list[MessagesTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: MessagesChoice | None = None


def chat_of(request: MessagesRequest) -> ChatRequest:
    """The chat that a request stands for. Raises Problem."""
    choice = request.tool_choice
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=list(request.stop_sequences or ()),
        stream=request.stream,
        tools=[_tool(tool) for tool in request.tools or () if tool.type in (None, "custom")] or None,
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
    )


def _tool(tool: MessagesTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(type="function", function=function)


def _choice(choice: MessagesChoice) -> ToolChoice:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise invalid("tool_choice: the name of the tool is missing", "tool_choice")
            return NamedChoice(type="function", function=FunctionReference(name=choice.name))
        case "auto" | "none":
            return choice.type


def _messages(request: MessagesRequest) -> list[Message]:
    system = _text("system", request.system) if request.system else ""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for place, message in enumerate(request.messages):
        where = f"messages[{place}]"
        match message:
            case {"role": "assistant", "content": content}:
                messages.append(_answer(where, content))
            case {"role": "user" | "system" as role, "content": content}:
                messages += _of_user(where, role, content)
            case _:
                raise invalid(f"{where} has no content, or a role other than user and assistant", "messages")
    return messages


def _blocks(where: str, content: object) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = cast("list[object]", content) if isinstance(content, list) else [None]
    if not all(isinstance(block, dict) for block in blocks):
        raise invalid(f"{where}: content is a text or a list of blocks", "messages")
    return cast("list[Mapping[str, Any]]", blocks)


def _answer(where: str, content: object) -> Message:
    """A message of the assistant."""
    texts: list[str] = []
    message: Message = {"role": "assistant", "content": None}
    for block in _blocks(where, content):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(text)}:
                message["reasoning_content"] = text
            case {"type": "redacted_thinking"}:
                pass
            case {"type": "tool_use", "id": str(call), "name": str(name), "input": arguments}:
                function = {"name": name, "arguments": arguments}
                message.setdefault("tool_calls", []).append(
                    {"id": call, "type": "function", "function": function}
                )
            case _:
                raise _unknown(where, block)
    if texts:
        message["content"] = "\n".join(texts)
    return message


def _of_user(where: str, role: str, content: object) -> list[Message]:
    """What a user says, behind the results of tools."""
    results: list[Message] = []
    texts: list[Mapping[str, Any]] = []
    for block in _blocks(where, content):
        match block:
            case {"type": "tool_result", "tool_use_id": str(call), **fields}:
                text = _text(where, fields.get("content") or "")
                results.append({"role": "tool", "tool_call_id": call, "content": text})
            case _:
                texts.append(block)
    return [*results, {"role": role, "content": _text(where, texts)}] if texts else results


def _text(where: str, content: object) -> str:
    """The text of a content. Raises Problem where it is not all text."""
    texts: list[str] = []
    for block in _blocks(where, content):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise _unknown(where, block)
    return "\n".join(texts)


def _unknown(where: str, block: Mapping[str, Any]) -> Exception:
    kind = json.dumps(block.get("type"))
    return invalid(
        f"{where} has a block of the type {kind}, which is not supported or misses fields", "messages"
    )
