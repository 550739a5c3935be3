"""Finds the end of a bracketed value in text that comes piece by piece."""

from __future__ import annotations

import re

DEEPEST = 64
"""Brackets within brackets of a value. What is deeper is taken for broken."""

CLOSING = {"{": "}", "[": "]", "(": ")"}


class BracketedValue:
    """Counts the brackets of a value, which begins with its opening bracket, outside its strings.

    quotes  the characters that begin and end strings, in which a backslash hides what follows it
    """

    def __init__(self, quotes: str) -> None:
        self._of_interest = re.compile(rf"[{re.escape(quotes + '{}[]()')}]")
        self._in_string = {quote: re.compile(rf"[\\{quote}]") for quote in quotes}
        self._quote = ""
        self._escaped = False
        self._expected: list[str] = []
        self.ended = False

    @property
    def broken(self) -> bool:
        """True where the value has ended by a bracket that does not match, or by one too deep."""
        return self.ended and bool(self._expected)

    @property
    def in_string(self) -> bool:
        """True where the next character belongs to a string."""
        return bool(self._quote)

    def take(self, text: str) -> int:
        """Read on, and return the number of characters that belong to the value: all, unless it has ended."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            pattern = self._in_string[self._quote] if self._quote else self._of_interest
            match = pattern.search(text, place)
            if match is None:
                return len(text)
            place = match.end()
            self._pass(match[0])
            if self.ended:
                return place
        return place

    def _pass(self, character: str) -> None:
        """Read a quote, a backslash or a bracket."""
        if self._quote:
            self._escaped = character == "\\"
            self._quote = "" if character == self._quote else self._quote
        elif character in self._in_string:
            self._quote = character
        elif character in CLOSING:
            self._expected.append(CLOSING[character])
            self.ended = len(self._expected) > DEEPEST
        elif self._expected[-1] == character:
            self._expected.pop()
            self.ended = not self._expected
        else:
            self.ended = True
