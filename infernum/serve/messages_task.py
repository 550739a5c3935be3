"""/v1/messages, Anthropic's interface: the answer to a conversation as a list of blocks, and its stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from infernum.chat.calls.body import Arguments, Call, read_json
from infernum.chat.calls.json_body import as_object
from infernum.chat.reader import Segment, Thought
from infernum.serve.conversation import read_conversation
from infernum.serve.generation import Generation, Piece
from infernum.serve.messages_request import MessagesRequest, chat_of
from infernum.serve.problems import Problem, invalid
from infernum.serve.requests import ChatRequest
from infernum.serve.responses import Usage, encode
from infernum.serve.served import Served
from infernum.serve.task import Task


class TextBlock(msgspec.Struct, kw_only=True, tag="text"):
    """Text for the reader."""

    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag="thinking"):
    """What the model thought in front of its answer. The signature, which others check, is empty."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag="tool_use"):
    """A call of a function. `input` is {} where its arguments are no whole object."""

    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    """Numbers of tokens; `input_tokens` without those that the cache had."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: Literal[0] = 0


class MessageBody(msgspec.Struct, kw_only=True):
    """The body of an answer of /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct, kw_only=True):
    """The body of an answer of /v1/messages/count_tokens."""

    input_tokens: int


async def count_tokens(served: Served, request: MessagesRequest) -> TokenCount:
    """/v1/messages/count_tokens. Raises Problem."""
    served.check_model(request.model)
    return TokenCount(input_tokens=len(await served.encode_chat(chat_of(request))))


@dataclass
class MessagesTask(Task[ChatRequest]):
    """One request of /v1/messages."""

    @classmethod
    async def of(cls, served: Served, asked: MessagesRequest, identity: str) -> MessagesTask:
        """Read a request. Raises Problem. `max_tokens` is cut to what the context holds: clients must give one."""
        request = chat_of(asked)
        if asked.max_tokens is None:
            raise invalid("max_tokens is missing; give the most tokens of the answer", "max_tokens")
        read = await read_conversation(served, request, asked.max_tokens, cuts=True)
        return cls(served, request, f"msg_{identity}", read.model, [read.prompt], read.wishes)

    def __post_init__(self) -> None:
        self._begun = False
        self._blocks = 0
        self._open: type[Segment] | None = None
        """The kind of segments that the last block of the stream still takes: `Arguments`, if it is a call."""

    def response(self, pieces: list[Piece], usage: Usage) -> MessageBody:
        [piece] = pieces
        body = self._body(usage)
        body.content = [_block(segment) for segment in piece.all_segments]
        body.stop_reason, body.stop_sequence = _stop(piece)
        return body

    def events(self, generation: Generation) -> bytes:
        events = b""
        if not self._begun:
            self._begun = True
            events += _event("message_start", message=self._body(self.usage(generation)))
        for piece in generation.pieces():
            events += b"".join(self._growth(segment) for segment in piece.all_segments)
            if piece.finish_reason is not None:
                reason, sequence = _stop(piece)
                delta = {"stop_reason": reason, "stop_sequence": sequence}
                events += self._end_of_block()
                events += _event("message_delta", delta=delta, usage=self._body(self.usage(generation)).usage)
                events += _event("message_stop")
        return events

    def ending(self, generation: Generation, problem: Problem | None) -> bytes:
        if problem is None:
            return b""
        error = problem.body.error
        return _event("error", error={"type": "api_error", "message": error.message})

    def _growth(self, segment: Segment) -> bytes:
        """The events of what a segment adds: to the block that takes text of its kind, or as a new one."""
        match segment:
            case str(text):
                return self._begin(str, TextBlock(text="")) + self._delta("text_delta", text=text)
            case Thought(text):
                began = self._begin(Thought, ThinkingBlock(thinking=""))
                return began + self._delta("thinking_delta", thinking=text)
            case Call(name, arguments, call):
                ended = self._end_of_block()
                began = self._begin(Arguments, ToolUseBlock(id=call, name=name, input={}))
                return ended + began + (self._growth(Arguments(arguments)) if arguments else b"")
            case Arguments(text):
                return self._delta("input_json_delta", partial_json=text)

    def _begin(self, kind: type[Segment], block: Block) -> bytes:
        """The events with which a block begins, if the last one does not take segments of this kind."""
        if self._open is kind:
            return b""
        ended = self._end_of_block()
        self._open = kind
        self._blocks += 1
        return ended + _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, kind: str, **fields: str) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta={"type": kind, **fields})

    def _end_of_block(self) -> bytes:
        """The event that ends the last block, if it has not ended."""
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _body(self, usage: Usage) -> MessageBody:
        """The answer before its first block."""
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageBody(
            id=self.id,
            model=self.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(
                input_tokens=usage.prompt_tokens - cached,
                output_tokens=usage.completion_tokens,
                cache_read_input_tokens=cached,
            ),
        )


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"


def _block(segment: Segment) -> Block:
    match segment:
        case str(text):
            return TextBlock(text=text)
        case Thought(text):
            return ThinkingBlock(thinking=text)
        case Call(name, arguments, call):
            return ToolUseBlock(id=call, name=name, input=dict(as_object(read_json(arguments)) or {}))
        case Arguments():
            raise AssertionError("a whole answer has calls with their arguments")


def _stop(
    piece: Piece,
) -> tuple[Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"], str | None]:
    """Why an answer ends, and the stop sequence that has ended it."""
    if piece.finish_reason == "length":
        return "max_tokens", None
    if piece.finish_reason == "tool_calls":
        return "tool_use", None
    return ("stop_sequence", piece.stop_reason) if isinstance(piece.stop_reason, str) else ("end_turn", None)
