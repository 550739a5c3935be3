"""Reads the text of an answer while it comes: reasoning, text, and calls of functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infernum.chat.calls.scanner import Call, Scanner
from infernum.chat.reasoning import CLOSING, OPENING, Reasoning


@dataclass(frozen=True)
class Thought:
    """Text of the reasoning in front of an answer."""

    text: str


Segment = str | Call | Thought
"""A part of an answer."""


def merged(segments: Iterable[Segment]) -> list[Segment]:
    """The segments of an answer, of which no two texts, and no two thoughts, are side by side."""
    result: list[Segment] = []
    for segment in segments:
        match result[-1:], segment:
            case [str(text)], str():
                result[-1] = text + segment
            case [Thought(text)], Thought():
                result[-1] = Thought(text + segment.text)
            case _:
                result.append(segment)
    return result


@dataclass(frozen=True)
class AnswerForm:
    """How an answer is written.

    calls     the syntax of its calls; None: it has none
    reasons   True where reasoning may stand at its start
    opened    True where the prompt ends behind the mark that opens the reasoning
    one_call  drop every call but the first
    """

    calls: type[Scanner] | None = None
    reasons: bool = False
    opened: bool = False
    one_call: bool = False

    @property
    def special(self) -> tuple[str, ...]:
        """Marks that must be in the text, also where they are special tokens."""
        marks = () if self.calls is None else self.calls.special
        return (*marks, OPENING, CLOSING) if self.reasons else marks


class AnswerReader:
    """Parts the text of one answer into segments, alike wherever its pieces part."""

    def __init__(self, form: AnswerForm) -> None:
        self._reasoning = Reasoning(opened=form.opened) if form.reasons else None
        self._scanner = None if form.calls is None else form.calls()
        self._one_call = form.one_call
        self.calls = 0
        """Calls so far."""

    def push(self, text: str, *, final: bool = False) -> list[Segment]:
        """Add text, and return the segments that are certain now; with `final`, all."""
        segments: list[Segment] = []
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text, final=final)
            segments += [Thought(thought)] if thought else []
        if self._scanner is None:
            return [*segments, text] if text else segments
        for segment in self._scanner.push(text) + (self._scanner.finish() if final else []):
            if isinstance(segment, Call):
                self.calls += 1
                if self._one_call and self.calls > 1:
                    continue
            segments.append(segment)
        return segments
