"""Streams of chunks, as completions and chats have them: events of one form, most of which differ in a text only."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from infernum.serve.generation import Generation, Piece
from infernum.serve.problems import Problem
from infernum.serve.responses import DONE, TEXT, Usage, around_text, encode, event
from infernum.serve.task import Asked, Task


@dataclass
class ChunkedTask(Task[Asked]):
    """A request whose stream is one of chunks, with [DONE] behind them."""

    def __post_init__(self) -> None:
        options = self.request.stream_options
        self._ends_with_usage = bool(options and options.include_usage)
        self._always_has_usage = bool(options and options.continuous_usage_stats)
        self._around_text: dict[int, tuple[bytes, bytes]] = {}
        self._in_full: set[int] = set(range(len(self.wishes))) if self._always_has_usage else set()
        """Choices whose next event differs from the last one in more than its text."""
        self._opening = self.opening() if self.request.stream else b""

    def opening(self) -> bytes:
        """The events in front of the first text."""
        return b""

    @abstractmethod
    def chunk(self, piece: Piece | None, usage: Usage | None) -> Any:
        """The body of an event: what a piece adds to its choice, or nothing but numbers of tokens."""

    def chunks(self, piece: Piece, usage: Usage | None) -> list[Any]:
        """The bodies of the events of a piece, most of which have one."""
        return [self.chunk(piece, usage)]

    def events(self, generation: Generation) -> bytes:
        body, self._opening = self._opening, b""
        for piece in generation.pieces():
            if not piece.is_text or piece.index in self._in_full:
                usage = self.usage(generation) if self._always_has_usage else None
                body += b"".join(map(event, self.chunks(piece, usage)))
                if not self._always_has_usage:
                    self._in_full.discard(piece.index)
            elif piece.text:
                front, behind = self._around_text.get(piece.index) or self._cut(piece.index)
                body += front + encode(piece.text) + behind
        return body

    def ending(self, generation: Generation, problem: Problem | None) -> bytes:
        if problem is not None:
            return event(problem.body) + DONE
        return (event(self.chunk(None, self.usage(generation))) if self._ends_with_usage else b"") + DONE

    def _cut(self, index: int) -> tuple[bytes, bytes]:
        """What stands around the text in the plain events of a choice."""
        around = self._around_text[index] = around_text(self.chunk(Piece(index, TEXT, [], []), None))
        return around
