"""What a reader makes of the tokens of one sequence: its text, and its end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from infernum.engine.events import FinishReason
from infernum.engine.slots import integers
from infernum.engine.tokenizer import CONTEXT, TextStream, Tokenizer
from infernum.sampling_params import SamplingParams
from infernum.step import Int32

_TAIL = 4 * CONTEXT
"""Number of prompt tokens that a text may depend on."""


class Transcript:
    """The output of one sequence as text. Without a tokenizer the text is empty.

    `stopped` is True once a stop string has ended the text. The engine knows nothing of stop strings: whoever reads
    then cancels the sequence, which may have computed a few tokens more.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt: Int32, params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._stop = params.stop
        self._text: TextStream | None = None

    @property
    def has_stops(self) -> bool:
        """True when a stop string may end the text."""
        return bool(self._stop)

    def read(
        self, tokens: Ordered[int], finish_reason: FinishReason | None
    ) -> tuple[str, FinishReason | None]:
        """Add tokens, the last ones if there is a finish reason. Returns the text that is complete now, and the end.

        The end is "stop" when a stop string has ended the text.
        """
        if self._tokenizer is None:
            return "", finish_reason
        if self._text is None:
            self._text = TextStream(self._tokenizer, integers(self._prompt[-_TAIL:]), self._stop)
        text = self._text
        # A token that ends the sequence is not shown. Special tokens are never shown, but may complete a stop string.
        if finish_reason == "stop" and not text.hides(tokens[-1]):
            tokens = tokens[:-1]
        shown = "".join([text.push(token) for token in tokens]) if text.stops else text.push_all(tokens)
        if finish_reason is not None:
            shown += text.flush()
        return shown, "stop" if text.stopped else finish_reason
