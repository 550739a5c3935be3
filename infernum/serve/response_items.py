"""The body of an answer of /v1/responses: its items, which are messages, calls and reasoning."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, kw_only=True, tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag="reasoning_text"):
    """The text of a reasoning."""

    text: str


class OutputMessage(msgspec.Struct, kw_only=True, tag="message"):
    """Text for the reader."""

    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class FunctionCall(msgspec.Struct, kw_only=True, tag="function_call"):
    """A call of a function; its result refers to `call_id`."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


class ReasoningItem(msgspec.Struct, kw_only=True, tag="reasoning"):
    """What the model thought in front of its answer."""

    id: str
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText]


OutputItem = OutputMessage | FunctionCall | ReasoningItem


class InputDetails(msgspec.Struct, kw_only=True):
    """Of the tokens of a prompt, those that the cache had, and those whose place in it has a price: none."""

    cached_tokens: int
    cache_write_tokens: Literal[0] = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    """Of the tokens of an answer, those of its reasoning, as the tokenizer counts the text."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Numbers of tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"]


class ResponseFault(msgspec.Struct, kw_only=True):
    """Why there is no answer."""

    code: Literal["server_error"]
    message: str


class ResponseBody(msgspec.Struct, kw_only=True):
    """The body of an answer of /v1/responses, and what the first and the last event of a stream carry."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any] | None
    store: Literal[False] = False
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    metadata: dict[str, str] | None
