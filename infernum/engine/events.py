"""The results of an engine: events of a sequence, completions, and statistics."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.engine.sequence import FinishReason


@dataclass(frozen=True)
class Event:
    """One advance of a sequence: its new tokens, the text that they complete, and whether the sequence has ended.

    An end token or stop token is in `tokens` but not in `text`. `text` is empty without a tokenizer.
    """

    sequence: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """The generated tokens and text of one prompt."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Statistics:
    """Tokens and wall-clock seconds since the engine was created.

    The time of a step with prompt tokens counts as prompt time. Tokens sampled by such a step count as output tokens
    but not as decoded tokens.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    output_tokens: int = 0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0

    def plus(self, prompt_tokens: int, sampled_tokens: int, seconds: float) -> Statistics:
        """These statistics plus one step."""
        in_prompt = prompt_tokens > 0
        return Statistics(
            prompt_tokens=self.prompt_tokens + prompt_tokens,
            prompt_seconds=self.prompt_seconds + (seconds if in_prompt else 0.0),
            output_tokens=self.output_tokens + sampled_tokens,
            decoded_tokens=self.decoded_tokens + (0 if in_prompt else sampled_tokens),
            decode_seconds=self.decode_seconds + (0.0 if in_prompt else seconds),
        )
