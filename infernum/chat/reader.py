"""Reads the text of an answer while it comes: reasoning, text, and calls of functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from infernum.chat.calls.body import Arguments, Call
from infernum.chat.calls.scanner import Scanner
from infernum.chat.reasoning import CLOSING, OPENING, Reasoning


@dataclass(frozen=True)
class Thought:
    """Text of the reasoning in front of an answer."""

    text: str


Segment = str | Call | Arguments | Thought
"""A part of an answer, or of what has come of it since the last time."""


def merged(segments: Iterable[Segment]) -> list[Segment]:
    """The segments, of which no two of a kind are side by side but calls, and which have their arguments."""
    result: list[Segment] = []
    for kind, run in groupby(segments, type):
        if kind is Call:
            result += run
            continue
        text = "".join(map(_text, run))
        match result[-1:]:
            case [Call(name, arguments, call)] if kind is Arguments:
                result[-1] = Call(name, arguments + text, call)
            case _:
                result.append(
                    Arguments(text) if kind is Arguments else Thought(text) if kind is Thought else text
                )
    return result


def _text(segment: Segment) -> str:
    match segment:
        case str():
            return segment
        case Call():
            return segment.arguments
        case Arguments(text) | Thought(text):
            return text


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
            self.calls += isinstance(segment, Call)
            if self._one_call and self.calls > 1 and not isinstance(segment, str):
                continue
            segments.append(segment)
        return merged(segments)
