"""`infernum bench serve`: a server over an engine without a model is timed by its own client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Outcome
from serving import RunningServer, running

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running("--null-token-us", "0", "--api-key", "key", "--max-queue", "8")


def test_every_scenario_is_timed_and_every_token_counted(
    infernum: Run, server: RunningServer, tmp_path: Path
) -> None:
    output = tmp_path / "serve.json"
    scenarios = (
        "--concurrency",
        "1,4",
        "--rate",
        "200",
        "--requests",
        "12",
        "--prompt",
        "20",
        "--tokens",
        "9",
    )
    arguments = ("bench", "serve", server.url + "/v1", "--api-key", "key", *scenarios)
    done = infernum(*arguments, "--goodput", "first:0,gap:60000", "--json", "--output", output)
    results = json.loads(done.out)
    assert results == json.loads(output.read_text()) and results["model"] == "dante-chat"
    assert [scenario["scenario"] for scenario in results["scenarios"]] == [
        "concurrency",
        "concurrency",
        "rate",
    ]
    for scenario in results["scenarios"]:
        assert scenario["requests"] == 12 and scenario["output_tokens"] == 12 * 9 and not scenario["errors"]
        assert 0 < scenario["first_token_ms"]["p50"] <= scenario["first_token_ms"]["p99"]
        assert scenario["goodput"]["requests_per_second"] <= 12 / scenario["seconds"]
        assert scenario["server_cpu_us_per_token"] >= 0


def test_refused_requests_are_counted_by_their_reasons(infernum: Run, server: RunningServer) -> None:
    arguments = ("--concurrency", "32", "--requests", "64", "--tokens", "400", "--prompt", "20")
    out = infernum("bench", "serve", server.url, "--api-key", "key", *arguments).out
    assert "64 requests" in out and "× status 429" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("http://127.0.0.1:9",), "cannot be reached"),
        (("ftp://nowhere",), "no URL of a server"),
        (("URL",), "the server lists no models"),
        (("URL", "--api-key", "key", "--model", "other"), "no request was served: status 404"),
        (("URL", "--goodput", "last:3"), "first:200,gap:20"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, infernum: Run, server: RunningServer
) -> None:
    url = server.url if arguments[0] == "URL" else arguments[0]
    done = infernum("bench", "serve", url, *arguments[1:], "--concurrency", "1", "--tokens", "4")
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_the_front_is_measured_alone(infernum: Run) -> None:
    arguments = ("--null", "--concurrency", "4", "--requests", "8", "--tokens", "40", "--json")
    results = json.loads(infernum("bench", "serve", *arguments).out)
    assert [scenario["paced"] for scenario in results["scenarios"]] == [True, False]
    assert all(scenario["output_tokens"] == 8 * 40 for scenario in results["scenarios"])
