"""The bodies of requests, as msgspec decodes them.

Fields that are not here are ignored, as all servers of this kind do. What is known and not supported yet is in
`UNSUPPORTED` of each request: asked for, it is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from infernum.serve.structured import ResponseFormat, StructuredOutputs
from infernum.serve.tools import Tool, ToolChoice, Tools

MOST_CHOICES = 128
"""Largest n, and largest number of prompts of a request."""

MOST_STOPS = 16
LONGEST_STOP = 256
"""Number of stop strings of a request, and characters of each."""

MOST_BIASES = 1024
MOST_LOGPROBS = 20

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
Logprobs = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)]
StopText = Annotated[str, Meta(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(max_length=256)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream has besides its text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Generating(msgspec.Struct, kw_only=True):
    """The fields that completions and chats have in common. None: the model's default, or off."""

    model: Name | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MOST_STOPS)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    prompt_logprobs: Logprobs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    logits_processors: Any = None
    use_beam_search: bool | None = None
    chat_template: Any = None

    @property
    def most_likely(self) -> int | None:
        """Number of most likely tokens beside each token's log-probability; None: no log-probabilities."""
        return None

    @property
    def most_likely_in_prompt(self) -> int | None:
        """The same for the tokens of the prompt."""
        return self.prompt_logprobs

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "logits_processors": "a request may not bring code",
        "use_beam_search": "beam search is not supported",
        "chat_template": "a request may not bring a template; start the server with --chat-template FILE",
    }


class CompletionRequest(Generating, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    suffix: Any = None
    echo: bool | None = None
    logprobs: Logprobs | None = None

    @property
    def most_likely(self) -> int | None:
        return self.logprobs

    @property
    def most_likely_in_prompt(self) -> int | None:
        counts = [self.prompt_logprobs]
        if self.echo:
            counts += [self.logprobs, 0 if self.max_tokens == 0 else None]
        return max((count for count in counts if count is not None), default=None)

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        **Generating.UNSUPPORTED,
        "suffix": "text is continued only at its end",
    }


class ChatRequest(Generating, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=65536)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model learns of: none where it may call none."""
        return [] if self.tool_choice == "none" else self.tools or []

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        **Generating.UNSUPPORTED,
        "functions": "functions are not supported; give tools",
        "function_call": "functions are not supported; give tools and tool_choice",
        "audio": "answers are text",
    }


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /tokenize: `prompt` or `messages`; or `content`, with what llama.cpp's clients expect.

    Special tokens are added to `prompt` unless `add_special_tokens` is false, to `content` if `add_special` is true.
    """

    model: Name | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Tools | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /detokenize."""

    tokens: list[TokenId]
    model: Name | None = None
