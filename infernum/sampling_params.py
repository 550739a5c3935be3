"""What a user asks of one generation: how long, how random, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from infernum.errors import RequestError

LARGEST_SEED = 2**32 - 1
LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one sequence are chosen. Out-of-range values raise RequestError.

    The defaults are those of other programs that run models from a command line: mild randomness, the
    unlikely tail cut off. `temperature=0` takes the most likely token at every step.

    max_tokens          at most so many new tokens; less where the model's context or the KV cache ends before
    temperature         logits are divided by it; 0: always the most likely token
    top_k               keep the k most likely tokens; 0: all
    top_p               keep the most likely tokens that together reach this probability; 1: all
    min_p               keep tokens at least so many times as likely as the most likely one; 0: all
    repetition_penalty  divides positive logits of tokens seen before, multiplies negative ones; 1: off
    seed                same seed, same prompt, same device: same text; None: a fresh one for each sequence
    stop                generation ends before the first of these strings; it is not part of the text
    ignore_eos          generate on past the model's end tokens
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        rules = {
            "max_tokens": (_is_int(self.max_tokens, 1), "an integer of at least 1"),
            "temperature": (
                self.temperature == 0 or _is_number(self.temperature, 0.001, 1000),
                "0 (the most likely token) or a number from 0.001 to 1000",
            ),
            "top_k": (_is_int(self.top_k, 0), "an integer of at least 1, or 0 for all tokens"),
            "top_p": (_is_number(self.top_p, 0, 1) and self.top_p > 0, "a number above 0, at most 1"),
            "min_p": (_is_number(self.min_p, 0, 1), "a number from 0 to 1"),
            "repetition_penalty": (
                _is_number(self.repetition_penalty, 0.01, 100),
                "a number from 0.01 to 100, 1 for none",
            ),
            "seed": (
                self.seed is None or _is_int(self.seed, 0, LARGEST_SEED),
                f"an integer from 0 to {LARGEST_SEED}",
            ),
            "stop": (_is_texts(self.stop), "a tuple of strings that are not empty"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @property
    def greedy(self) -> bool:
        """True when every token is simply the most likely one."""
        return self.temperature == 0 and self.repetition_penalty == 1


def derived_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th of several sequences that share one seed; the first keeps it."""
    return (seed + index * 0x9E3779B9) & LARGEST_SEED


def _is_int(value: object, least: int, most: int = LARGEST_INT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, str) and item for item in cast("tuple[object, ...]", value)
    )
