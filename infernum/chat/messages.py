"""Reads a caller's conversation and tools into what a chat template sees, and rejects anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from infernum.chat.calls.json_body import arguments_of
from infernum.engine.request import shown
from infernum.errors import RequestError

Message = dict[str, Any]
"""A message of a conversation: `role`, `content`, and whatever else the template reads."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The fields in which a message has its reasoning. Templates read the first; that of gpt-oss reads the second."""


def read_messages(messages: object) -> list[Message]:
    """The messages of a conversation, as copies. Raises RequestError.

    As in transformers, fields that are None are left out, and reasoning is in both fields that templates read.
    """
    items = as_list(messages)
    if not items:
        raise RequestError(
            f'messages is {shown(messages)}; give a list of messages: [{{"role": "user", "content": "Hello"}}]'
        )
    return [_message(place, item) for place, item in enumerate(items)]


def read_tools(tools: object) -> list[dict[str, Any]] | None:
    """The tools of a conversation. Raises RequestError."""
    if tools is None:
        return None
    schemas = as_list(tools)
    if schemas is None or not all(isinstance(schema, Mapping) for schema in schemas):
        raise RequestError(
            f"tools is {shown(tools)}; give a list of JSON schemas,"
            ' {"type": "function", "function": {"name": …, "description": …, "parameters": …}}'
        )
    return schemas


def with_argument_objects(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages, with objects as the arguments of calls, as templates expect, where clients send the text of these.

    A text that is not of an object stays: a model may have written it, and the conversation goes on.
    """
    return [
        {**message, "tool_calls": [_with_argument_object(call) for call in calls]}
        if (calls := as_list(message.get("tool_calls")))
        else dict(message)
        for message in messages
    ]


def joined_parts(messages: object) -> list[Message]:
    """The messages, parts of text joined by newlines, for templates that know no parts. Raises RequestError."""
    return [_joined(place, message) for place, message in enumerate(read_messages(messages))]


def as_list(value: object) -> list[Any] | None:
    """A list or tuple as a new list; None for anything else."""
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else None


def as_fields(value: object) -> Mapping[str, Any] | None:
    """A mapping; None for anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None


def _with_argument_object(call: object) -> object:
    fields = as_fields(call)
    function = as_fields(fields.get("function")) if fields else None
    if fields is None or function is None:
        return call
    arguments = arguments_of(function.get("arguments"))
    return call if arguments is None else {**fields, "function": {**function, "arguments": arguments}}


def _message(place: int, item: object) -> Message:
    fields = as_fields(item)
    if fields is None or not isinstance(fields.get("role"), str):
        raise RequestError(
            f'messages[{place}] is {shown(item)}; give {{"role": …, "content": …}}, where the role is'
            ' "system", "user", "assistant" or "tool"'
        )
    message = {name: value for name, value in fields.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _joined(place: int, message: Message) -> Message:
    parts = as_list(message.get("content"))
    if parts is None:
        return message
    texts: list[str] = []
    for part in parts:
        fields = as_fields(part)
        text = part if fields is None else fields.get("text")
        if not isinstance(text, str):
            raise RequestError(f"messages[{place}] has a part that is no text: {shown(part)}; give text only")
        texts.append(text)
    return message | {"content": "\n".join(texts)}
