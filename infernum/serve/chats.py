"""/v1/chat/completions: the answer to a conversation."""

from __future__ import annotations

from infernum.serve.generation import Piece
from infernum.serve.problems import invalid
from infernum.serve.requests import ChatRequest
from infernum.serve.responses import (
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatResponse,
    ChatStreamChoice,
    Usage,
    event,
)
from infernum.serve.served import Served
from infernum.serve.task import Task


class ChatTask(Task[ChatRequest]):
    """One request of /v1/chat/completions."""

    @classmethod
    async def of(cls, served: Served, request: ChatRequest, identity: str) -> ChatTask:
        """Read a request. Raises Problem."""
        model = served.check_model(request.model)
        if request.tool_choice not in (None, "none", "auto"):
            raise invalid("tool_choice: tools are not supported yet", "tool_choice")
        if request.modalities not in (None, ["text"]):
            raise invalid("modalities: answers are text", "modalities")
        prompt = served.check_ids(await served.encode_chat(request))
        most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        if most == 0:
            raise invalid("max_completion_tokens is 0; ask for one token at least", "max_completion_tokens")
        wishes = served.wishes(request, [prompt], most, chat=True)
        return cls(served, request, f"chatcmpl-{identity}", model, [prompt], wishes)

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
        return self._chunk(
            [] if piece is None else [self._added(piece.index, ChatDelta(content=piece.text), piece)], usage
        )

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return self.served.speller.chat(piece.logprobs, piece.tokens) if piece.logprobs else None

    def _choice(self, piece: Piece) -> ChatChoice:
        assert piece.finish_reason is not None, "the last piece of a choice ends it"
        return ChatChoice(
            index=piece.index,
            message=ChatMessage(role="assistant", content=piece.text),
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
