"""/v1/chat/completions: the answer to a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from infernum.serve.completions import usage_of
from infernum.serve.exchange import Answer, stream, whole
from infernum.serve.generation import Gathered, Piece, Wish
from infernum.serve.problems import invalid
from infernum.serve.requests import ChatRequest
from infernum.serve.responses import (
    TEXT,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatResponse,
    ChatStreamChoice,
    Usage,
    around_text,
    encode,
    event,
)
from infernum.serve.served import Served


@dataclass
class ChatTask:
    """One request of /v1/chat/completions that was read and found right."""

    served: Served
    request: ChatRequest
    id: str
    model: str
    prompt: list[int]
    wishes: list[Wish]
    created: int = field(default_factory=lambda: int(time.time()))

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
        return cls(served, request, f"chatcmpl-{identity}", model, prompt, wishes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.request.stream:
            await stream(self._events(), receive, send)
        else:
            answer = await whole(self._whole(), receive)
            await Answer(answer)(scope, receive, send)

    async def _whole(self) -> ChatResponse:
        texts = [Gathered() for _ in self.wishes]
        with closing(self.served.generate(self.wishes)) as generation:
            while generation.unfinished:
                for piece in await generation.next_pieces():
                    texts[piece.index].take(piece)
            usage = usage_of([self.prompt], generation)
        choices = [self._choice(text.piece(index)) for index, text in enumerate(texts)]
        response = ChatResponse(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            system_fingerprint=self.served.fingerprint,
            choices=choices,
            usage=usage,
        )
        if texts[0].prompt is not None:
            response.prompt_logprobs = self.served.speller.prompt(texts[0].prompt)
        return response

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

    async def _events(self) -> AsyncIterator[bytes]:
        options = self.request.stream_options
        always = bool(options and options.continuous_usage_stats)
        plain = [
            around_text(self._chunk([self._choice_of(index, ChatDelta(content=TEXT), None)], None))
            for index in range(len(self.wishes))
        ]
        with closing(self.served.generate(self.wishes)) as generation:
            begun = ChatDelta(role="assistant", content="")
            body = b"".join(self._event(index, begun, None, None) for index in range(len(self.wishes)))
            while generation.unfinished:
                for piece in await generation.next_pieces():
                    if piece.finish_reason is None and not piece.logprobs and not always:
                        if piece.text:
                            front, behind = plain[piece.index]
                            body += front + encode(piece.text) + behind
                    else:
                        usage = usage_of([self.prompt], generation) if always else None
                        body += self._event(piece.index, ChatDelta(content=piece.text), piece, usage)
                yield body
                body = b""
            if options and options.include_usage:
                yield event(self._chunk([], usage_of([self.prompt], generation)))

    def _event(self, index: int, delta: ChatDelta, piece: Piece | None, usage: Usage | None) -> bytes:
        return event(self._chunk([self._choice_of(index, delta, piece)], usage))

    def _choice_of(self, index: int, delta: ChatDelta, piece: Piece | None) -> ChatStreamChoice:
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
