"""Requests that load an engine, served and timed: equal ones, mixed ones, all at once or at a rate."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infernum.engine.engine import Engine
from infernum.sampling_params import SamplingParams

MIXED = 512
"""Number of requests of the mixed load."""

MIXED_SEED = 20261123
MIXED_PROMPT, MIXED_OUTPUT = (64, 1024), (64, 256)
"""Least and most tokens of a prompt and of an output of the mixed load."""

WARM_UP_TOKENS = 8
"""Most output tokens of a request ahead of the timed ones."""

QUANTILES = (50, 90, 99)

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, continued greedily by `tokens` tokens, end tokens included."""

    prompt: list[int]
    tokens: int


@dataclass(frozen=True)
class Timeline:
    """The tokens of each request, and the seconds from the start at which each of them arrived.

    `due`: seconds from the start at which each request was to be sent, float64 [requests].
    """

    due: Float64
    seconds: list[list[float]]
    tokens: list[list[int]]

    @property
    def end(self) -> float:
        """Seconds from the start to the last token."""
        return max(times[-1] for times in self.seconds)

    @property
    def output_tokens(self) -> int:
        return sum(map(len, self.tokens))


def prompt_tokens(number: int, length: int, vocab: int) -> list[int]:
    """The prompt of request `number`: tokens by a hash, clear of the ends of a vocabulary, where special tokens are."""
    first, count = (256, vocab - 1256) if vocab >= 2048 else (0, vocab)
    places = np.arange(length, dtype=np.uint32)
    x = np.uint32((number + 1) * 2654435761 & 0xFFFFFFFF) + places * np.uint32(40503)
    x ^= x >> 16
    x *= np.uint32(73244475)
    x ^= x >> 16
    return (first + x % np.uint32(count)).tolist()


def mixed_lengths(count: int = MIXED) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the output of each request of the mixed load."""
    draw = random.Random(MIXED_SEED)
    return [(draw.randint(*MIXED_PROMPT), draw.randint(*MIXED_OUTPUT)) for _ in range(count)]


def requests_of(lengths: Iterable[tuple[int, int]], vocab: int, numbers: Iterable[int]) -> list[Request]:
    """Requests of these numbers of tokens. `numbers` must not repeat over a run, so that no prompt is sent twice."""
    return [
        Request(prompt_tokens(number, prompt, vocab), tokens)
        for (prompt, tokens), number in zip(lengths, numbers, strict=False)
    ]


def warm_up_lengths(lengths: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Tokens of requests ahead of the timed ones, which load kernels, choose algorithms and capture graphs."""
    return [(prompt, min(out, WARM_UP_TOKENS)) for prompt, out in lengths]


def poisson(count: int, rate: float, seed: int) -> Float64:
    """Seconds at which `count` requests are due that come at random, `rate` of them a second on average."""
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def serve(engine: Engine, requests: Sequence[Request], due: Float64 | None = None) -> Timeline:
    """Send each request when it is due (None: all at once), and return when all have ended."""
    due = np.zeros(len(requests)) if due is None else due
    seconds: list[list[float]] = [[] for _ in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    index: dict[int, int] = {}
    begin = time.perf_counter()
    while len(index) < len(requests) or engine.busy:
        now = time.perf_counter() - begin
        while len(index) < len(requests) and due[len(index)] <= now:
            request = requests[len(index)]
            params = SamplingParams(max_tokens=request.tokens, temperature=0, ignore_eos=True)
            index[engine.add(request.prompt, params)] = len(index)
        if not engine.busy:
            time.sleep(max(0.0, due[len(index)] - now))
            continue
        events = engine.step()
        now = time.perf_counter() - begin
        for event in events:
            tokens[index[event.sequence]] += event.tokens
            seconds[index[event.sequence]] += [now] * len(event.tokens)
    return Timeline(due, seconds, tokens)


def steady_rate(timeline: Timeline) -> float | None:
    """Tokens a second after every request has its first token and before any has its last; None: at no time."""
    begin = max(times[0] for times in timeline.seconds)
    end = min(times[-1] for times in timeline.seconds)
    count = sum(begin < second <= end for times in timeline.seconds for second in times)
    return count / (end - begin) if count else None


def first_token_ms(timeline: Timeline) -> dict[str, float]:
    """Milliseconds from when a request was due to its first token, at each of QUANTILES."""
    return quantiles_ms([times[0] - due for times, due in zip(timeline.seconds, timeline.due, strict=True)])


def gap_ms(timeline: Timeline) -> dict[str, float]:
    """Milliseconds between two tokens of one request, at each of QUANTILES, over all requests."""
    return quantiles_ms([gap for times in timeline.seconds for gap in np.diff(times).tolist()])


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Seconds in milliseconds, at each of QUANTILES."""
    ranked = np.percentile(1e3 * np.array(seconds), QUANTILES, method="inverted_cdf").tolist()
    return {f"p{quantile}": value for quantile, value in zip(QUANTILES, ranked, strict=True)}
