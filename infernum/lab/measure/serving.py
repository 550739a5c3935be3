"""What a server makes its clients wait, at given concurrencies and rates; and what the front of our own costs."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import uvloop

from infernum.errors import RequestError
from infernum.lab.measure.http_client import Address, Answer, Connection, connect
from infernum.lab.measure.origin import cpu_name, versions
from infernum.lab.measure.requests import (
    Float64,
    Request,
    mixed_lengths,
    poisson,
    quantiles_ms,
    requests_of,
    warm_up_lengths,
)
from infernum.opening import Progress

VOCAB = 2304
"""Prompts have the token ids 256 to 1303: ordinary tokens of every vocabulary that is not tiny."""

WARM_UP = 16
"""Most requests ahead of the timed ones of a scenario."""

NULL_TOKEN_US = 100.0
"""A token of the engine without a model, where the front must keep up: 10 000 tokens/s."""

CPU_SECONDS = re.compile(rb"^process_cpu_seconds_total(?:\{.*\})? (\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ServingRequest:
    """The scenarios for a server.

    url, key       the server, and the key that its requests need
    model          its name of the model; None: the first that it lists
    concurrencies  a scenario for each: so many requests at once, a new one for each that ends
    rates          a scenario for each: so many requests a second on average, at random times
    requests       of a scenario; None: 4 for each of its concurrency, at least 16; at a rate 64
    prompt, tokens tokens of each prompt and each output; `mixed`: of mixed lengths instead
    goodput        limits in ms of a good request: "first", to its first token, and "gap", between tokens on average
    seed           of the random times
    """

    url: str
    key: str | None = None
    model: str | None = None
    concurrencies: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    requests: int | None = None
    prompt: int = 512
    tokens: int = 128
    mixed: bool = False
    goodput: dict[str, float] = field(default_factory=dict[str, float])
    seed: int = 0

    def lengths(self, concurrency: int | None) -> list[tuple[int, int]]:
        """Tokens of the prompt and the output of each request of a scenario."""
        number = self.requests or (64 if concurrency is None else max(16, 4 * concurrency))
        return mixed_lengths(number) if self.mixed else [(self.prompt, self.tokens)] * number


def measure_serving(request: ServingRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Send the requests of each scenario, and say how long their clients waited. Raises RequestError."""
    return uvloop.run(_measure(request, progress))


def measure_front(
    streams: Sequence[int], tokens: int, requests: int | None, progress: Progress | None = None
) -> dict[str, Any]:
    """The CPU time of our server's own process for each streamed token, over an engine that computes nothing.

    Two scenarios for each number of streams: at a pace that the front can hold, so that nearly every token is an event
    of its own, and as fast as the front is.
    """
    results: list[dict[str, Any]] = []
    model = ""
    for token_us in (NULL_TOKEN_US, 0.0):
        with _null_server(token_us) as url:
            asked = ServingRequest(
                url=url, concurrencies=tuple(streams), prompt=16, tokens=tokens, requests=requests
            )
            measured = measure_serving(asked, progress)
            model = measured["model"]
            results += [{"paced": token_us > 0, **scenario} for scenario in measured["scenarios"]]
    return {"model": model, "cpu": cpu_name(), "versions": versions(), "scenarios": results}


async def _measure(request: ServingRequest, progress: Progress | None) -> dict[str, Any]:
    client = _Client(Address.of(request.url, request.key))
    try:
        return await _measure_with(client, request, progress)
    finally:
        await client.close()


async def _measure_with(
    client: _Client, request: ServingRequest, progress: Progress | None
) -> dict[str, Any]:
    model = request.model or await client.first_model()
    scenarios: list[tuple[str, int | float]] = [
        *(("concurrency", concurrency) for concurrency in request.concurrencies),
        *(("rate", rate) for rate in request.rates),
    ]
    numbers = count(secrets.randbelow(1 << 28))  # no cache has seen these prompts
    results: list[dict[str, Any]] = []
    for done, (kind, size) in enumerate(scenarios):
        lengths = request.lengths(int(size) if kind == "concurrency" else None)
        at_once = int(size) if kind == "concurrency" else WARM_UP
        warm_up = requests_of(warm_up_lengths(lengths[: min(WARM_UP, at_once)]), VOCAB, numbers)
        await client.at_concurrency(_bodies(warm_up, model), at_once)
        bodies = _bodies(requests_of(lengths, VOCAB, numbers), model)
        cpu = await client.cpu_seconds()
        begin = time.perf_counter()
        if kind == "concurrency":
            served = await client.at_concurrency(bodies, int(size))
        else:
            served = await client.at_times(bodies, poisson(len(bodies), size, request.seed))
        results.append(
            {
                "scenario": kind,
                kind: size,
                **_waits(served, begin, request.goodput),
                **_cpu(served, cpu, await client.cpu_seconds()),
            }
        )
        if progress:
            progress("measuring", done + 1, len(scenarios))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "url": request.url,
        "model": model,
        "prompt": "mixed" if request.mixed else request.prompt,
        "tokens": "mixed" if request.mixed else request.tokens,
        "scenarios": results,
    }


@dataclass(frozen=True)
class _Served:
    """An answer, and when its request was due, in seconds of `time.perf_counter`."""

    due: float
    answer: Answer

    @property
    def good(self) -> bool:
        """True for a whole answer."""
        return self.answer.error is None and self.answer.status == 200 and bool(self.answer.times)

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.answer.times[0] - self.due

    @property
    def token(self) -> float:
        """Seconds of a token after the first, on average."""
        times = self.answer.times
        return (times[-1] - times[0]) / max(1, self.answer.tokens - 1)


class _Client:
    """Connections to one server, which are used again."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Connection] = []

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # the event loop closes sockets in its next turn

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """The answer to one request. Raises RequestError where the server cannot be reached."""
        connection = self._idle.pop() if self._idle else await connect(self._address)
        if connection.closed:
            connection = await connect(self._address)
        answer = await connection.ask(method, path, body)
        if not connection.closed:
            self._idle.append(connection)
        return answer

    async def first_model(self) -> str:
        """The name of the first model that the server lists. Raises RequestError."""
        answer = await self.ask("GET", "/v1/models")
        if answer.status != 200:
            raise RequestError(f"the server lists no models ({_why(answer)}); give --model")
        return str(json.loads(answer.body)["data"][0]["id"])

    async def cpu_seconds(self) -> float | None:
        """The CPU time of the server's process; None where its metrics do not have it."""
        answer = await self.ask("GET", "/metrics")
        match = CPU_SECONDS.search(answer.body)
        return float(match[1]) if match else None

    async def at_concurrency(self, bodies: Sequence[bytes], concurrency: int) -> list[_Served]:
        """Send requests, so many at once."""
        waiting, served = iter(bodies), list[_Served]()

        async def work() -> None:
            for body in waiting:
                served.append(await self._completion(body, time.perf_counter()))

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(bodies)))))
        return served

    async def at_times(self, bodies: Sequence[bytes], due: Float64) -> list[_Served]:
        """Send each request when it is due, in seconds from now."""
        begin = time.perf_counter()

        async def send(body: bytes, when: float) -> _Served:
            await asyncio.sleep(begin + when - time.perf_counter())
            return await self._completion(body, begin + when)

        return list(
            await asyncio.gather(*(send(body, when) for body, when in zip(bodies, due.tolist(), strict=True)))
        )

    async def _completion(self, body: bytes, due: float) -> _Served:
        return _Served(due, await self.ask("POST", "/v1/completions", body))


def _bodies(requests: Sequence[Request], model: str) -> list[bytes]:
    return [
        json.dumps(
            {
                "model": model,
                "prompt": request.prompt,
                "max_tokens": request.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        for request in requests
    ]


def _waits(served: Sequence[_Served], begin: float, goodput: dict[str, float]) -> dict[str, Any]:
    """What a scenario's clients have seen. Raises RequestError where none was served."""
    good = [one for one in served if one.good]
    errors = Counter(_why(one.answer) for one in served if not one.good)
    if not good:
        raise RequestError(f"no request was served: {next(iter(errors))}")
    seconds = max(one.answer.times[-1] for one in good) - begin
    tokens = sum(one.answer.tokens for one in good)
    within = [
        one
        for one in good
        if 1e3 * one.first <= goodput.get("first", np.inf) and 1e3 * one.token <= goodput.get("gap", np.inf)
    ]
    return {
        "requests": len(served),
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds,
        "tokens_per_event": tokens / sum(len(one.answer.times) for one in good),
        "first_token_ms": quantiles_ms([one.first for one in good]),
        "gap_ms": quantiles_ms([gap for one in good for gap in np.diff(one.answer.times).tolist()] or [0.0]),
        "token_ms": quantiles_ms([one.token for one in good]),
        "goodput": {"limits_ms": goodput, "requests_per_second": len(within) / seconds} if goodput else None,
        "errors": dict(errors),
    }


def _cpu(served: Sequence[_Served], before: float | None, after: float | None) -> dict[str, Any]:
    if before is None or after is None:
        return {"server_cpu_us_per_token": None}
    return {"server_cpu_us_per_token": 1e6 * (after - before) / sum(one.answer.tokens for one in served)}


def _why(answer: Answer) -> str:
    if answer.error is not None:
        return answer.error
    if answer.status == 200:
        return "an answer without text"
    return f"status {answer.status}: {answer.body[:300].decode(errors='replace')}"


@contextmanager
def _null_server(token_us: float) -> Generator[str]:
    """The URL of a server of our own over an engine without a model. Raises RequestError."""
    command = [sys.executable, "-m", "infernum", "serve", "dante-chat", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--null-token-us", str(token_us)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    reading: threading.Thread | None = None
    try:
        url = _served_at(process.stderr)
        reading = threading.Thread(target=process.stderr.read)  # the log must not fill the pipe
        reading.start()
        yield url
    finally:
        process.terminate()
        process.wait()
        if reading is not None:
            reading.join()
        process.stderr.close()


def _served_at(lines: Iterator[str]) -> str:
    last = ""
    for last in lines:
        if match := re.search(r" is served at (\S+),", last):
            return match[1]
    raise RequestError(f"the server did not start: {last.strip()}")
