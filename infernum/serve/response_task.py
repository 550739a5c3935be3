"""/v1/responses: the answer to a conversation as a list of items, in the stream of events that agents read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from infernum.serve.bodies import check_supported
from infernum.serve.conversation import read_conversation
from infernum.serve.generation import Generation, Piece
from infernum.serve.problems import Problem
from infernum.serve.requests import ChatRequest
from infernum.serve.response_items import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    ResponseBody,
    ResponseFault,
    ResponseUsage,
)
from infernum.serve.response_output import Output
from infernum.serve.response_request import ResponsesRequest, chat_of
from infernum.serve.responses import Usage
from infernum.serve.served import Served
from infernum.serve.task import Task


@dataclass(kw_only=True)
class ResponseTask(Task[ChatRequest]):
    """One request of /v1/responses: the chat that it stands for, and `asked`, what was sent."""

    asked: ResponsesRequest
    output: Output = field(init=False)

    @classmethod
    async def of(cls, served: Served, asked: ResponsesRequest, identity: str) -> ResponseTask:
        """Read a request. Raises Problem."""
        request = chat_of(asked)
        check_supported(request)
        read = await read_conversation(served, request, request.max_completion_tokens)
        return cls(
            served=served,
            request=request,
            id=f"resp_{identity}",
            model=read.model,
            prompts=[read.prompt],
            wishes=read.wishes,
            asked=asked,
        )

    def __post_init__(self) -> None:
        self.output = Output(self.id.removeprefix("resp_"))
        self._begun = False

    def response(self, pieces: list[Piece], usage: Usage) -> ResponseBody:
        [piece] = pieces
        for segment in piece.all_segments:
            self.output.take(segment)
        return self._last(piece, usage)[1]

    def events(self, generation: Generation) -> bytes:
        events = b""
        if not self._begun:
            self._begun = True
            events += self.output.event("response.created", response=self._body("in_progress"))
            events += self.output.event("response.in_progress", response=self._body("in_progress"))
        for piece in generation.pieces():
            events += b"".join(self.output.take(segment) for segment in piece.all_segments)
            if piece.finish_reason is not None:
                ends, body = self._last(piece, self.usage(generation))
                events += ends + self.output.event(f"response.{body.status}", response=body)
        return events

    def ending(self, generation: Generation, problem: Problem | None) -> bytes:
        if problem is None:
            return b""
        body = self._body("failed")
        body.error = ResponseFault(code="server_error", message=problem.body.error.message)
        return self.output.event("response.failed", response=body)

    def _last(self, piece: Piece, usage: Usage) -> tuple[bytes, ResponseBody]:
        """The events that end the last item, and the whole answer."""
        cut = piece.finish_reason == "length"
        events = self.output.end("incomplete" if cut else "completed")
        body = self._body("incomplete" if cut else "completed")
        body.incomplete_details = IncompleteDetails(reason="max_output_tokens") if cut else None
        thoughts = self.served.needed_tokenizer.encode_plain(self.output.reasoning)
        body.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=len(thoughts)),
            total_tokens=usage.total_tokens,
        )
        return events, body

    def _body(self, status: Literal["in_progress", "completed", "incomplete", "failed"]) -> ResponseBody:
        """The answer so far."""
        asked, params = self.asked, self.wishes[0].params
        tools: list[dict[str, Any]] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict or False,
            }
            for tool in asked.functions
        ]
        effort = {"effort": asked.reasoning.effort, "summary": None} if asked.reasoning else None
        return ResponseBody(
            id=self.id,
            created_at=self.created,
            status=status,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            model=self.model,
            output=self.output.items,
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            reasoning=effort,
            temperature=params.temperature,
            text={"format": (asked.text and asked.text.format) or {"type": "text"}},
            tool_choice=asked.tool_choice or "auto",
            tools=tools,
            top_p=params.top_p,
            usage=None,
            metadata=asked.metadata,
        )
