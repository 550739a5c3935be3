"""The bodies of responses. A field that is UNSET is left out; one that is None is written as null."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptDetails(msgspec.Struct, kw_only=True):
    """Of the tokens of a prompt, those that the cache had."""

    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Numbers of tokens. Those of a prompt count once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities of the tokens of a text; null for the first token of a prompt, which nothing predicts."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct, kw_only=True):
    """The log-probability of one token in a place of a prompt. `rank` is 1 for the most likely one; null: not known."""

    logprob: float
    rank: int | None
    decoded_token: str


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A text of a completion, or what a stream adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct, kw_only=True):
    """The body of an answer of /v1/completions, or an event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class TopLogprob(msgspec.Struct, kw_only=True):
    """A token that might have come, with its raw bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, kw_only=True):
    """A token of an answer, and the most likely ones in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities of the tokens of an answer."""

    content: list[TokenLogprob]


class CalledFunction(msgspec.Struct, kw_only=True):
    """A function that an answer calls; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """A call of an answer."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(msgspec.Struct, kw_only=True):
    """The name of a function that a stream begins to call, with no arguments, or text that continues these."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """What an event of a stream adds to a call. `index` is its place among those of the answer."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatMessage(msgspec.Struct, kw_only=True):
    """The answer of a chat: null as its content where it has nothing but calls.

    The reasoning in front of an answer has two names, because some clients read one and some the other.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    """What an event of a stream adds to an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer of a chat."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class ChatStreamChoice(msgspec.Struct, kw_only=True):
    """What an event adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET


class ChatResponse(msgspec.Struct, kw_only=True):
    """The body of an answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """An event of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatStreamChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    """A name that the model is served under."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["infernum"]
    root: str
    parent: None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """All names of the model."""

    object: Literal["list"]
    data: list[Model]


class TokenPiece(msgspec.Struct):
    """A token and its text; its bytes where they are no text."""

    id: int
    piece: str | list[int]


class Tokens(msgspec.Struct, kw_only=True):
    """The tokens of a text."""

    tokens: list[int | TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] | UnsetType = UNSET


class Text(msgspec.Struct, kw_only=True):
    """The text of tokens."""

    prompt: str
    content: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What a client needs to know to tokenize by itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    max_model_len: int


class Version(msgspec.Struct):
    """The version of the program."""

    version: str


class SequenceStatus(msgspec.Struct, kw_only=True):
    """A sequence that has not ended. Neither its prompt nor its answer is here.

    request      the id of its request, which the answer carries, too
    state        it waits to be admitted, its prompt is computed, or tokens are generated
    seconds      since it was asked for
    """

    request: str
    state: Literal["waiting", "prompt", "answer"]
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int


class Status(msgspec.Struct, kw_only=True):
    """What is served, and what is being computed.

    chat         whether the model has a template for chats
    seconds      since the server's start
    unfinished   number of sequences that have not ended
    sequences    the oldest of them
    trouble      why /health answers 503; null where it answers 200
    """

    model: str
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    pages: int
    page_size: int
    chat: bool
    version: str
    seconds: float
    unfinished: int
    sequences: list[SequenceStatus]
    trouble: str | None


class Health(msgspec.Struct):
    """That the engine works."""

    status: Literal["ok"]


encode = msgspec.json.Encoder().encode
"""A value as JSON, in bytes."""


def event(body: Any) -> bytes:
    """An event of a stream, as bytes."""
    return b"data: " + encode(body) + b"\n\n"


TEXT = "\0"
"""Stands for a text in the events that `around_text` cuts."""


def around_text(body: Any) -> tuple[bytes, bytes]:
    """What stands in front of and behind `TEXT` in an event: most events of a stream differ in a text only."""
    front, behind = event(body).split(encode(TEXT))
    return front, behind


DONE = b"data: [DONE]\n\n"
