"""The items of an answer of /v1/responses while it comes, and the events by which they grow."""

from __future__ import annotations

from typing import Any

from infernum.chat.calls.body import Arguments, Call
from infernum.chat.reader import Segment, Thought
from infernum.serve.response_items import (
    FunctionCall,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
)
from infernum.serve.responses import encode


class Output:
    """The items of one answer. Whatever adds to them returns the events that say so, as bytes."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._events = 0
        self.items: list[OutputItem] = []

    @property
    def reasoning(self) -> str:
        """The text of all reasoning."""
        return "".join(item.content[0].text for item in self.items if isinstance(item, ReasoningItem))

    def event(self, kind: str, **fields: Any) -> bytes:
        """The next event of the stream."""
        data = encode({"type": kind, "sequence_number": self._events, **fields})
        self._events += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def take(self, segment: Segment) -> bytes:
        """Add a segment of the answer: to the last item, or as a new one."""
        match segment, self.items[-1:]:
            case str(text), [OutputMessage() as item]:
                return self._grow(item, text)
            case Thought(text), [ReasoningItem() as item]:
                return self._grow(item, text)
            case str(text), _:
                message = OutputMessage(id=self._id("msg"), status="in_progress", content=[])
                return self._begin(message) + self._grow(message, text)
            case Thought(text), _:
                reasoning = ReasoningItem(id=self._id("rs"), status="in_progress", content=[])
                return self._begin(reasoning) + self._grow(reasoning, text)
            case Call(name, arguments, call), _:
                item = FunctionCall(
                    id=self._id("fc"), status="in_progress", call_id=call, name=name, arguments=""
                )
                return self._begin(item) + (self._grow_call(item, arguments) if arguments else b"")
            case Arguments(text), [FunctionCall() as item]:
                return self._grow_call(item, text)
            case Arguments(), _:
                raise AssertionError("arguments continue a call")

    def end(self, status: Status) -> bytes:
        """End the last item, if it has not ended."""
        if not self.items or self.items[-1].status != "in_progress":
            return b""
        item = self.items[-1]
        item.status = status
        events = b""
        if isinstance(item, FunctionCall):
            done = "response.function_call_arguments.done"
            events += self._of_item(item, done, name=item.name, arguments=item.arguments)
        else:
            part = item.content[0]
            events += self._of_part(item, part, "done", text=part.text)
            events += self._of_item(item, "response.content_part.done", content_index=0, part=part)
        return events + self._of_output("response.output_item.done", item)

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._identity}_{len(self.items)}"

    def _begin(self, item: OutputItem) -> bytes:
        ended = self.end("completed")
        self.items.append(item)
        return ended + self._of_output("response.output_item.added", item)

    def _grow(self, item: OutputMessage | ReasoningItem, text: str) -> bytes:
        """Add text to the one part of an item."""
        events = b""
        match item:
            case OutputMessage(content=[]):
                item.content = [OutputText(text="")]
                events = self._of_item(
                    item, "response.content_part.added", content_index=0, part=item.content[0]
                )
            case ReasoningItem(content=[]):
                item.content = [ReasoningText(text="")]
                events = self._of_item(
                    item, "response.content_part.added", content_index=0, part=item.content[0]
                )
            case _:
                pass
        part = item.content[0]
        part.text += text
        return events + self._of_part(item, part, "delta", delta=text)

    def _grow_call(self, item: FunctionCall, text: str) -> bytes:
        """Add text to the arguments of a call."""
        item.arguments += text
        return self._of_item(item, "response.function_call_arguments.delta", delta=text)

    def _of_output(self, kind: str, item: OutputItem) -> bytes:
        return self.event(kind, output_index=len(self.items) - 1, item=item)

    def _of_item(self, item: OutputItem, kind: str, **fields: Any) -> bytes:
        return self.event(kind, item_id=item.id, output_index=len(self.items) - 1, **fields)

    def _of_part(
        self, item: OutputItem, part: OutputText | ReasoningText, change: str, **fields: Any
    ) -> bytes:
        if isinstance(part, OutputText):
            return self._of_item(
                item, f"response.output_text.{change}", content_index=0, logprobs=[], **fields
            )
        return self._of_item(item, f"response.reasoning_text.{change}", content_index=0, **fields)
