"""Tokens to text for vocabularies of SentencePiece, which spell a character that has no token by its bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

BROKEN = "\ufffd"
"""The character that a decoder writes for bytes that are not, or not yet, a whole character."""

_CONTINUING = bytes(range(0x80, 0xC0))
"""The bytes of a character but its first, in UTF-8."""


class FallbackDecoder:
    """Tokens to text where each token is a text or one byte, whatever stands around it.

    `piece_of` gives the text of a token or its byte. Bytes in a row are characters if all of them are; else each is
    U+FFFD, as tokenizers has it. Characters that were returned before the first byte that is none stay what they are.

    `strips_space`: a text does not begin with the space of its first word. `before` are the last tokens of the prompt,
    which is a part of the text; what they have of a character is completed by the tokens that follow.
    """

    def __init__(
        self, piece_of: Callable[[int], str | int], before: Sequence[int], *, strips_space: bool
    ) -> None:
        self._piece_of = piece_of
        pieces = [piece for piece in map(piece_of, before) if piece != ""]
        self._strips = strips_space and not pieces
        row = bytes(
            [piece for piece in takewhile(_is_byte, reversed(pieces)) if isinstance(piece, int)][::-1]
        )
        row = row.lstrip(_CONTINUING)  # of a character whose first byte may lie in front of `before`
        self._bytes = row[codecs.utf_8_decode(row, "replace", False)[1] :]
        """The bytes of a character that is not whole yet. The first `_of_prompt` of them are the prompt's."""
        self._of_prompt = len(self._bytes)
        self._broken = False
        """True when a byte of this row was no part of a character."""

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that are complete with these tokens."""
        text = ""
        for token in tokens:
            piece = self._piece_of(token)
            if isinstance(piece, int):
                text += self._byte(piece)
            elif piece:
                text += self._end_of_row() + piece
        if self._strips and text:
            self._strips = False
            return text.removeprefix(" ")
        return text

    def rest(self) -> str:
        """What the tokens so far have besides; half a character becomes U+FFFD, a time for each byte."""
        count, self._bytes, self._of_prompt = len(self._bytes) - self._of_prompt, b"", 0
        return BROKEN * count

    def _byte(self, byte: int) -> str:
        self._bytes += bytes([byte])
        if self._broken:
            return self.rest()
        try:
            text, used = codecs.utf_8_decode(self._bytes, "strict", False)
        except UnicodeDecodeError:
            self._broken = True
            return self.rest()
        if used:
            self._bytes, self._of_prompt = self._bytes[used:], 0
        return text

    def _end_of_row(self) -> str:
        self._broken = False
        return self.rest() if self._bytes else ""


def _is_byte(piece: str | int) -> bool:
    return isinstance(piece, int)
