"""What an engine tells its caller: news of one sequence, all of one sequence, and what the work has cost."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.engine.sequence import FinishReason


@dataclass(frozen=True)
class Event:
    """News of one sequence: the tokens that came, the text that is certain now, and whether it has ended.

    An end token or stop token is among the tokens but not in the text. `text` is empty without a tokenizer.
    """

    sequence: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """All that was generated for one prompt."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Statistics:
    """What an engine has done since it was made; seconds are wall-clock.

    Steps with some prompt in them count as prompt time, and the tokens that they sample are output, but not
    decoded.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    output_tokens: int = 0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0

    def plus(self, prompt_tokens: int, sampled_tokens: int, seconds: float) -> Statistics:
        """These statistics and one more step."""
        in_prompt = prompt_tokens > 0
        return Statistics(
            prompt_tokens=self.prompt_tokens + prompt_tokens,
            prompt_seconds=self.prompt_seconds + (seconds if in_prompt else 0.0),
            output_tokens=self.output_tokens + sampled_tokens,
            decoded_tokens=self.decoded_tokens + (0 if in_prompt else sampled_tokens),
            decode_seconds=self.decode_seconds + (0.0 if in_prompt else seconds),
        )
