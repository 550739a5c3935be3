"""How the tokens of one sequence are chosen: a table of the sampling parameters, and what a user asks for.

Whatever treats the sampling parameters alike goes through `PARAMETERS`: the inputs of a step, the options of the
command line, the fields of generation_config.json, the values that `verify` tries. This module imports no NumPy, so
that `infernum --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import cast

from infernum.errors import RequestError

LARGEST_SEED = 2**32 - 1

MOST_LOGPROBS = 20
"""Number of most likely tokens whose log-probabilities may be asked for."""


def is_integer(value: object, least: int, most: int = 2**31 - 1) -> bool:
    """True for an integer in this range; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, least: float, most: float) -> bool:
    """True for a number in this range; True, False and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


@dataclass(frozen=True)
class SamplingParameter:
    """One sampling parameter: a number for each row of logits, in 32 bits on the device.

    kind                  int or float
    off                   the value that changes nothing; for `seed`, which has none, the first seed
    allows                True for the values that a user may ask for
    allowed               those values in words, the end of "NAME is VALUE; it must be …"
    help                  help of its option in `infernum run`
    bench_help            help of its option in `infernum bench latency`, which is off by default; None: no such option
    excludes              True where it excludes tokens from the draw
    in_generation_config  True where generation_config.json may give its value, under the same name
    tried                 values that `verify` distributes among the rows of a step; empty: any integer
    """

    name: str
    kind: type[int] | type[float]
    off: float
    allows: Callable[[object], bool]
    allowed: str
    help: str
    bench_help: str | None = None
    excludes: bool = False
    in_generation_config: bool = True
    tried: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """The name as it is written in sentences."""
        return self.name.replace("_", "-")

    @property
    def option(self) -> str:
        """The option of the command line."""
        return f"--{self.label}"


PARAMETERS = (
    SamplingParameter(
        "temperature",
        float,
        off=0.0,
        allows=lambda value: is_number(value, 0, 0) or is_number(value, 0.001, 1000),
        allowed="0 (the most likely token) or a number from 0.001 to 1000",
        help="Randomness of the choice; 0: always the most likely token.",
        bench_help="Temperature of sampling; 0: decode greedily.",
        tried=(0.8, 0.0, 1.0, 0.3, 2.0, 0.7, 1.3),
    ),
    SamplingParameter(
        "top_k",
        int,
        off=0,
        allows=lambda value: is_integer(value, 0),
        allowed="an integer of at least 1, or 0 for all tokens",
        help="Choose among the K most likely tokens; 0: among all.",
        bench_help="Sample among the K most likely tokens.  [default: all]",
        excludes=True,
        tried=(0, 5, 0, 1, 40, 0, 10**6, 3),
    ),
    SamplingParameter(
        "top_p",
        float,
        off=1.0,
        allows=lambda value: is_number(value, 0, 1) and value != 0,
        allowed="a number above 0, at most 1",
        help="Choose among the most likely tokens that together have this probability.",
        bench_help="Sample among the most likely tokens that together have this probability.",
        excludes=True,
        tried=(1.0, 0.9, 0.5, 1.0, 0.99),
    ),
    SamplingParameter(
        "min_p",
        float,
        off=0.0,
        allows=lambda value: is_number(value, 0, 1),
        allowed="a number from 0 to 1",
        help="Exclude tokens less likely than this share of the most likely token's probability.",
        bench_help="Exclude tokens less likely than this share of the best.",
        excludes=True,
        tried=(0.0, 0.05, 0.0, 0.5),
    ),
    SamplingParameter(
        "repetition_penalty",
        float,
        off=1.0,
        allows=lambda value: is_number(value, 0.01, 100),
        allowed="a number from 0.01 to 100, 1 for none",
        help="Make tokens less likely that the text already has; 1: off.",
        tried=(1.0, 1.3, 0.7),
    ),
    SamplingParameter(
        "presence_penalty",
        float,
        off=0.0,
        allows=lambda value: is_number(value, -2, 2),
        allowed="a number from -2 to 2",
        help="Subtracted from the logits of tokens that the output already has; 0: off.",
        in_generation_config=False,
        tried=(0.25, 0.0, 1.5, -2.0),
    ),
    SamplingParameter(
        "frequency_penalty",
        float,
        off=0.0,
        allows=lambda value: is_number(value, -2, 2),
        allowed="a number from -2 to 2",
        help="Subtracted from a token's logit once for every time that the output has it; 0: off.",
        in_generation_config=False,
        tried=(0.3, 0.0, 2.0, -0.7, 0.0),
    ),
    SamplingParameter(
        "seed",
        int,
        off=0,
        allows=lambda value: value is None or is_integer(value, 0, LARGEST_SEED),
        allowed=f"an integer from 0 to {LARGEST_SEED}",
        help="Seed of the random draws: the same seed gives the same text.",
        bench_help="Seed of prompts, sampling and random weights.",
        in_generation_config=False,
    ),
)
"""The sampling parameters, in the order in which the op `sample` takes their arrays."""

EXCLUDING = tuple(parameter for parameter in PARAMETERS if parameter.excludes)

PENALTIES: Mapping[str, float] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The parameters that need to know how often each token occurred, and the values that switch them off."""

_penalties, _NO_PENALTIES = attrgetter(*PENALTIES), tuple(PENALTIES.values())

GREEDY: Mapping[str, float] = {"temperature": 0.0, **PENALTIES}
"""With these values every token is the most likely one, whatever the other parameters are."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one sequence are chosen. Out-of-range values raise RequestError.

    The defaults are those of other programs that run models from a command line: mild randomness, the
    unlikely tail cut off. `temperature=0` takes the most likely token at every step.

    max_tokens          at most so many new tokens; less where the model's context or the KV cache ends before; 0 only
                        with `prompt_logprobs`
    temperature         logits are divided by it; 0: always the most likely token
    top_k               keep the k most likely tokens; 0: all
    top_p               keep the most likely tokens that together reach this probability; 1: all
    min_p               keep tokens at least so many times as likely as the most likely one; 0: all
    repetition_penalty  divides positive logits of tokens seen before, multiplies negative ones; 1: off
    presence_penalty    subtracted from the logits of tokens in the output; 0: off
    frequency_penalty   subtracted from a token's logit for every time that it is in the output; 0: off
    seed                same seed, same prompt, same device: same text; None: a fresh one for each sequence
    stop                generation ends before the first of these strings; it is not part of the text. Special tokens,
                        which are not shown, count where a string holds the text of one: ("<|eot_id|>",)
    stop_token_ids      generation ends with the first of these tokens, whose text is not shown
    ignore_eos          generate on past the model's end tokens
    n                   completions of the prompt, each with a seed of its own
    min_tokens          no end token and none of `stop_token_ids` before so many new tokens
    logprobs            log-probabilities of each new token and of so many most likely ones, 0 to 20; None: none
    prompt_logprobs     the same for each token of the prompt but the first. The prompt is then computed as a whole
    logit_bias          by token, a number from -100 to 100 that is added to its logit, before penalties
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)

    def __post_init__(self) -> None:
        least = 1 if self.prompt_logprobs is None else 0
        rules = {
            "max_tokens": (is_integer(self.max_tokens, least), f"an integer of at least {least}"),
            **{p.name: (p.allows(getattr(self, p.name)), p.allowed) for p in PARAMETERS},
            "stop": (_is_texts(self.stop), "a tuple of strings that are not empty"),
            "stop_token_ids": (_is_token_ids(self.stop_token_ids), "a tuple of integers of at least 0"),
            "ignore_eos": (_is_flag(self.ignore_eos), "True or False"),
            "n": (is_integer(self.n, 1), "an integer of at least 1"),
            "min_tokens": (
                is_integer(self.min_tokens, 0)
                and not (is_integer(self.max_tokens, 0) and self.min_tokens > self.max_tokens),
                "an integer from 0 to max_tokens",
            ),
            **{
                name: (
                    value is None or is_integer(value, 0, MOST_LOGPROBS),
                    f"None or an integer from 0 to {MOST_LOGPROBS}",
                )
                for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs))
            },
            "logit_bias": (_is_bias(self.logit_bias), "a mapping of token ids to numbers from -100 to 100"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @property
    def greedy(self) -> bool:
        """True when every token is simply the most likely one."""
        plain = not self.logit_bias and not self.min_tokens
        return plain and all(getattr(self, name) == value for name, value in GREEDY.items())

    @property
    def wants_logprobs(self) -> bool:
        """True when each new token comes with log-probabilities."""
        return self.logprobs is not None

    @property
    def penalised(self) -> bool:
        """True when a token's logit depends on how often the token occurred."""
        return _penalties(self) != _NO_PENALTIES


def derived_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th of several sequences that share one seed; the first keeps it."""
    return (seed + index * 0x9E3779B9) & LARGEST_SEED


def listed(words: Iterable[str], last: str) -> str:
    """Words as a sentence lists them: "a, b and c" where `last` is "and"."""
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, str) and item for item in cast("tuple[object, ...]", value)
    )


def _is_token_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(is_integer(item, 0) for item in cast("tuple[object, ...]", value))


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        is_integer(token, 0) and is_number(shift, -100, 100)
        for token, shift in cast("Mapping[object, object]", value).items()
    )
