"""Parts the reasoning at the start of an answer, between <think> and </think>, from the answer itself."""

from __future__ import annotations

from typing import Literal

from infernum.chat.calls.scanner import beginning_at_end

OPENING = "<think>"
CLOSING = "</think>"


State = Literal["start", "opened", "inside", "closed", "over"]


class Reasoning:
    """Takes the text of an answer piece by piece, and parts it alike wherever the pieces part.

    White space beside the marks is dropped. With `opened`, the prompt ends behind the opening mark, so that the answer
    begins with reasoning; it may write the mark once more.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._unread = ""
        self._begins_inside = opened
        self._state: State = "start"

    def push(self, text: str, *, final: bool = False) -> tuple[str, str]:
        """Add text, and return what is certain now: of the reasoning, and of the answer behind it."""
        self._unread += text
        if self._state == "start":
            self._read_start(final)
        if self._state == "opened":
            self._skip_white("inside")
        thought = self._read_inside(final) if self._state == "inside" else ""
        if self._state == "closed":
            self._skip_white("over")
        if self._state != "over":
            return thought, ""
        answer, self._unread = self._unread, ""
        return thought, answer

    def _read_start(self, final: bool) -> None:
        text = self._unread.lstrip()
        if text.startswith(OPENING):
            self._unread, self._state = text[len(OPENING) :], "opened"
        elif final or not OPENING.startswith(text):
            self._state = "opened" if self._begins_inside else "over"

    def _skip_white(self, behind: State) -> None:
        self._unread = self._unread.lstrip()
        if self._unread:
            self._state = behind

    def _read_inside(self, final: bool) -> str:
        """What is certain of the reasoning. White space waits, since the closing mark may follow it."""
        place = self._unread.find(CLOSING)
        if place >= 0:
            thought = self._unread[:place].rstrip()
            self._unread, self._state = self._unread[place + len(CLOSING) :], "closed"
            return thought
        half = 0 if final else beginning_at_end(self._unread, CLOSING)
        thought = self._unread[: len(self._unread) - half].rstrip()
        self._unread = self._unread[len(thought) :]
        return thought
