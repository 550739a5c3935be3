"""The body of a request of /v1/responses, and the chat that it stands for. Nothing is stored between requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import msgspec
from msgspec import Meta

from infernum.serve.problems import Problem, invalid
from infernum.serve.requests import ChatRequest, Name, ResponseFormat, Seed, Share, StreamOptions
from infernum.serve.tools import Function, FunctionReference, NamedChoice, Tool, ToolChoice

Message = dict[str, Any]

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
"""The types of parts that are text."""


class ResponseTool(msgspec.Struct, kw_only=True):
    """A tool; any but a function is left out, because it runs where the model is served by others."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseReasoning(msgspec.Struct, kw_only=True):
    """How much the model should think; `summary` is ignored, because the reasoning itself is returned."""

    effort: str | None = None
    summary: Any = None


class ResponseText(msgspec.Struct, kw_only=True):
    """The form of the text of an answer."""

    format: dict[str, Any] | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/responses. Fields that are not here, such as `store` and `include`, are ignored."""

    model: Name | None = None
    input: str | list[Message]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=1024)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ResponseReasoning | None = None
    text: ResponseText | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    truncation: str | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "previous_response_id": "this server stores no answers; send the whole conversation as input",
        "conversation": "this server stores no conversations; send the whole conversation as input",
        "background": "an answer comes with the request that asks for it; leave background out",
        "prompt": "this server stores no prompts; send instructions and input",
        "top_logprobs": "there are no log-probabilities here; /v1/chat/completions has them",
    }

    @property
    def functions(self) -> list[ResponseTool]:
        """The tools that are functions."""
        return [tool for tool in self.tools or () if tool.type == "function"]


def chat_of(request: ResponsesRequest) -> ChatRequest:
    """The chat that a request stands for. Raises Problem."""
    for name, reason in request.UNSUPPORTED.items():
        if getattr(request, name):
            raise invalid(f"{name}: {reason}", name, "unsupported_parameter")
    if request.truncation not in (None, "disabled"):
        raise invalid(
            "truncation: input is not shortened; leave it out", "truncation", "unsupported_parameter"
        )
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stream=request.stream,
        tools=[_tool(tool) for tool in request.functions] or None,
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning and request.reasoning.effort,
        chat_template_kwargs=request.chat_template_kwargs,
        response_format=_format(request.text and request.text.format),
    )


def _tool(tool: ResponseTool) -> Tool:
    if not tool.name:
        raise invalid("tools: a function has no name", "tools")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)


def _choice(choice: str | Mapping[str, Any] | None) -> ToolChoice | None:
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function", "name": str(name)}:
            return NamedChoice(type="function", function=FunctionReference(name=name))
        case _:
            raise invalid(
                'tool_choice is "none", "auto", "required", or {"type": "function", "name": …}', "tool_choice"
            )


def _format(value: Mapping[str, Any] | None) -> ResponseFormat | None:
    if value is None:
        return None
    try:
        return msgspec.convert(value, ResponseFormat)
    except msgspec.ValidationError as error:
        raise invalid(f"text.format: {error}", "text") from error


def _messages(request: ResponsesRequest) -> list[Message]:
    """The messages of a request. What the system says at the start is one message, as most templates want it."""
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    conversation = Conversation()
    for place, item in enumerate(items):
        conversation.add(f"input[{place}]", item)
    messages = conversation.messages
    instructions = [request.instructions] if request.instructions else []
    while messages and messages[0]["role"] == "system":
        instructions.append(messages.pop(0)["content"])
    if not messages:
        raise invalid("input has no message of a user; give a text or a list of items", "input")
    return [{"role": "system", "content": "\n\n".join(instructions)}] * bool(instructions) + messages


class Conversation:
    """Items of input as messages. Reasoning, text and calls of one answer are one message of the assistant."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def add(self, where: str, item: Message) -> None:
        """Add the next item. Raises Problem."""
        match item:
            case {"role": str(role), "content": content, **rest} if rest.get("type", "message") == "message":
                if role == "assistant":
                    self._assistant("content")["content"] = _text(where, content)
                else:
                    role = "system" if role == "developer" else role
                    self.messages.append({"role": role, "content": _text(where, content)})
            case {"type": "reasoning"}:
                text = _text(where, item.get("content") or item.get("summary") or "")
                if text:
                    self._assistant("reasoning_content", "content", "tool_calls")["reasoning_content"] = text
            case {
                "type": "function_call",
                "call_id": str(call),
                "name": str(name),
                "arguments": str(arguments),
            }:
                function = {"name": name, "arguments": arguments}
                calls = self._assistant().setdefault("tool_calls", [])
                calls.append({"id": call, "type": "function", "function": function})
            case {"type": "function_call_output", "call_id": str(call), "output": output}:
                message = {"role": "tool", "tool_call_id": call, "content": _text(where, output)}
                self.messages.append(message)
            case _:
                raise _unknown(where, item)

    def _assistant(self, *behind: str) -> Message:
        """The message of the assistant that is last and has none of these fields; else a new one."""
        last = self.messages[-1] if self.messages else {"role": ""}
        if last["role"] != "assistant" or any(last.get(field) for field in behind):
            last = {"role": "assistant", "content": None}
            self.messages.append(last)
        return last


def _text(where: str, content: object) -> str:
    """The text of a content, which is a text or a list of parts. Raises Problem."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in cast("Sequence[object]", content) if isinstance(content, list) else [content]:
        match part:
            case {"type": str(kind), "text": str(text)} if kind in TEXTS:
                texts.append(text)
            case {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case _:
                raise invalid(f"{where} has a part that is no text; give text only", "input")
    return "\n".join(texts)


def _unknown(where: str, item: Message) -> Problem:
    return invalid(
        f"{where} has the type {str(item.get('type'))!r} and misses fields, or is of a kind that is not supported;"
        " give messages with role and content, function_call, function_call_output or reasoning",
        "input",
    )
