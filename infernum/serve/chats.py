"""/v1/chat/completions: the answer to a conversation."""

from __future__ import annotations

from collections import Counter

from infernum.chat.calls.body import Arguments, Call
from infernum.chat.reader import Segment, Thought
from infernum.serve.chunks import ChunkedTask
from infernum.serve.conversation import read_conversation
from infernum.serve.generation import Piece
from infernum.serve.problems import invalid
from infernum.serve.requests import ChatRequest
from infernum.serve.responses import (
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatResponse,
    ChatStreamChoice,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    event,
)
from infernum.serve.served import Served


class ChatTask(ChunkedTask[ChatRequest]):
    """One request of /v1/chat/completions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._calls = Counter[int]()
        """Calls so far of each choice of a stream."""

    @classmethod
    async def of(cls, served: Served, request: ChatRequest, identity: str) -> ChatTask:
        """Read a request. Raises Problem."""
        if request.modalities not in (None, ["text"]):
            raise invalid("modalities: answers are text", "modalities")
        most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        if most == 0:
            raise invalid("max_completion_tokens is 0; ask for one token at least", "max_completion_tokens")
        read = await read_conversation(served, request, most)
        return cls(served, request, f"chatcmpl-{identity}", read.model, [read.prompt], read.wishes)

    def opening(self) -> bytes:
        """Each choice begins with the role of who speaks."""
        begun = ChatDelta(role="assistant", content="")
        return b"".join(
            event(self._chunk([self._added(index, begun, None)], None)) for index in range(len(self.wishes))
        )

    def response(self, pieces: list[Piece], usage: Usage) -> ChatResponse:
        response = ChatResponse(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            system_fingerprint=self.served.fingerprint,
            choices=[self._choice(piece) for piece in pieces],
            usage=usage,
        )
        if pieces[0].prompt is not None:
            response.prompt_logprobs = self.served.speller.prompt(pieces[0].prompt)
        return response

    def chunk(self, piece: Piece | None, usage: Usage | None) -> ChatChunk:
        return self._chunk([], usage) if piece is None else self.chunks(piece, usage)[-1]

    def chunks(self, piece: Piece, usage: Usage | None) -> list[ChatChunk]:
        """Text and reasoning are one event; a call begins in one without arguments, which come in the next."""
        calls = [call for segment in piece.segments for call in self._growth(piece.index, segment)]
        deltas = [ChatDelta(tool_calls=[call]) for call in calls]
        text, reasoning = ChatDelta(), _reasoning(piece)
        if reasoning:
            text.reasoning = text.reasoning_content = reasoning
        if piece.text or not (reasoning or calls):
            text.content = piece.text
        if piece.text or reasoning or not calls:
            deltas.insert(0, text)
        *first, last = deltas
        choices = [self._added(piece.index, delta, None) for delta in first]
        choices.append(self._added(piece.index, last, piece))
        return [self._chunk([choice], usage) for choice in choices]

    def _growth(self, index: int, segment: Segment) -> list[ToolCallDelta]:
        """What a segment adds to the calls of a choice."""
        match segment:
            case Call(name, arguments, call):
                place = self._calls[index]
                self._calls[index] += 1
                begun = ToolCallDelta(
                    index=place, id=call, type="function", function=FunctionDelta(name=name, arguments="")
                )
                return [begun, *self._growth(index, Arguments(arguments))] if arguments else [begun]
            case Arguments(text):
                return [ToolCallDelta(index=self._calls[index] - 1, function=FunctionDelta(arguments=text))]
            case _:
                return []

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return self.served.speller.chat(piece.logprobs, piece.tokens) if piece.logprobs else None

    def _choice(self, piece: Piece) -> ChatChoice:
        assert piece.finish_reason is not None, "the last piece of a choice ends it"
        return ChatChoice(
            index=piece.index,
            message=_message(piece),
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
        )

    def _added(self, index: int, delta: ChatDelta, piece: Piece | None) -> ChatStreamChoice:
        choice = ChatStreamChoice(
            index=index,
            delta=delta,
            logprobs=None if piece is None else self._logprobs(piece),
            finish_reason=None if piece is None else piece.finish_reason,
        )
        if piece is not None and piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        return choice

    def _chunk(self, choices: list[ChatStreamChoice], usage: Usage | None) -> ChatChunk:
        chunk = ChatChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            system_fingerprint=self.served.fingerprint,
            choices=choices,
        )
        if usage is not None:
            chunk.usage = usage
        return chunk


def _message(piece: Piece) -> ChatMessage:
    reasoning, calls = _reasoning(piece), _calls(piece)
    message = ChatMessage(role="assistant", content=piece.text if piece.text or not calls else None)
    if reasoning:
        message.reasoning = message.reasoning_content = reasoning
    if calls:
        message.tool_calls = calls
    return message


def _reasoning(piece: Piece) -> str:
    return "".join(segment.text for segment in piece.segments if isinstance(segment, Thought))


def _calls(piece: Piece) -> list[ToolCall]:
    return [
        ToolCall(
            id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments)
        )
        for call in piece.segments
        if isinstance(call, Call)
    ]
