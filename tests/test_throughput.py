"""What `bench throughput` measures and checks, on the NumPy executor, and the comparison of two trees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Tiny

from infernum.errors import DeviceError, RequestError
from infernum.lab.measure import throughput
from infernum.lab.measure.bounds import Speeds
from infernum.lab.measure.requests import (
    Timeline,
    first_token_ms,
    gap_ms,
    mixed_lengths,
    poisson,
    prompt_tokens,
    requests_of,
    steady_rate,
)
from infernum.lab.measure.throughput import (
    Bench,
    ThroughputRequest,
    check_most_likely,
    measure_throughput,
    product_flops,
)
from infernum.models.presets import resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def request_(tiny: Callable[[str], Tiny]) -> ThroughputRequest:
    source = resolve(str(tiny("llama31").folder))
    return ThroughputRequest(source, "dummy", "float32", device="cpu", batches=(3,), prompt=9, tokens=5)


def test_the_mixed_load_is_the_one_that_published_numbers_were_measured_with() -> None:
    lengths = mixed_lengths()
    assert lengths[:3] == [(836, 211), (983, 231), (569, 104)]
    assert [sum(tokens) for tokens in zip(*lengths, strict=True)] == [267920, 82233]
    assert lengths[:7] == mixed_lengths(7)
    expected = [35118, 17023, 5945, 127218, 124679, 106301, 32688, 14960]
    assert prompt_tokens(0, 8, 128256) == expected
    assert max(prompt_tokens(3, 500, 90)) < 90


def test_no_two_requests_begin_alike() -> None:
    requests = requests_of([(8, 1)] * 600, 4096, iter(range(600)))
    assert len({tuple(request.prompt[:3]) for request in requests}) == 600


def test_the_steady_rate_leaves_out_the_time_in_which_a_sequence_is_missing() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 6.0, 7.0]
    timeline = Timeline(np.array([0.0, 0.5]), [first, second], [[1] * 5, [1] * 5])
    assert steady_rate(timeline) == (2 + 2) / (5.0 - 3.0)
    assert first_token_ms(timeline) == {"p50": 1000, "p90": 2500, "p99": 2500}
    assert gap_ms(timeline) == {"p50": 1000, "p90": 1000, "p99": 1000}
    assert timeline.end == 7 and timeline.output_tokens == 10
    apart = Timeline(np.zeros(2), [[1.0, 2.0], [2.0, 3.0]], [[1, 1], [1, 1]])
    assert steady_rate(apart) is None


def test_requests_come_at_the_rate_that_was_asked_for() -> None:
    due = poisson(4000, 8.0, seed=1)
    assert (np.diff(due) >= 0).all() and 4000 / due[-1] == pytest.approx(8, rel=0.05)
    assert np.array_equal(due, poisson(4000, 8.0, seed=1))


def test_the_results_hold_what_each_scenario_took(
    request_: ThroughputRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "mixed_lengths", lambda count: [(30, 7), (80, 9)][:count])
    short = replace(request_, mixed=True, rates=(50.0,), requests=2, repeats=1)
    results = measure_throughput(short)
    equal, mixed, rate = results["scenarios"]
    assert equal["ms_per_step"] == pytest.approx(3e3 / equal["tokens_per_second"])
    assert mixed["prompt_tokens"] == 110 and mixed["output_tokens"] == 16
    assert mixed["tokens_per_second"] == pytest.approx(126 / mixed["seconds"])
    assert 0 < rate["first_token_ms"]["p50"] <= rate["first_token_ms"]["p99"]
    assert equal["fraction_of_bound"] is None and results["read_bandwidth_gb_s"] is None


def test_no_number_is_given_when_a_token_is_not_the_one_that_the_request_has_alone(
    request_: ThroughputRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = throughput.serve

    def one_token_is_wrong(*arguments: Any) -> Timeline:
        timeline = right(*arguments)
        timeline.tokens[0][2] = (timeline.tokens[0][2] + 1) % 64
        return timeline

    monkeypatch.setattr(throughput, "serve", one_token_is_wrong)
    with pytest.raises(DeviceError, match="request 0 has other tokens than alone from output token 2"):
        measure_throughput(request_)


def test_a_token_may_lie_as_far_behind_the_most_likely_one_as_rounding_explains() -> None:
    logits = np.array([[4.0, 3.999, -4.0, 0.0], [4.0, 3.9, -4.0, 0.0]], np.float32)
    check_most_likely(0, logits[:1], [1], 1e-3)
    with pytest.raises(DeviceError, match="output token 1"):
        check_most_likely(0, logits, [1, 1], 1e-3)
    with pytest.raises(DeviceError, match="not finite"):
        check_most_likely(0, logits * np.float32(np.nan), [0, 0], 1e-3)


def test_the_bound_reads_weights_once_a_step_or_computes_products_of_all_tokens(
    tiny: Callable[[str], Tiny],
) -> None:
    bundle = tiny("llama31").bundle()
    of_token, of_row = product_flops(bundle)
    assert of_row == 2 * bundle.manifest.model.vocab_size * bundle.manifest.model.config["hidden_size"]
    none: Any = None

    def floor(bytes_per_second: float, flops_per_second: float, lengths: list[tuple[int, int]]) -> float:
        bench = Bench(none, none, bundle, Speeds(bytes_per_second, flops_per_second), iter(()))
        seconds = bench.floor_seconds(lengths)
        assert seconds is not None
        return seconds

    assert floor(1e30, 1.0, [(5, 2), (7, 3)]) == 17 * of_token + 5 * of_row
    assert (
        floor(1.0, 1e30, [(5, 4), (5, 4)])
        < 2 * floor(1.0, 1e30, [(5, 4)])
        < floor(1.0, 1e30, [(5, 8)]) * 1.01
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "2,x"), "'2,x' is no list of numbers"),
        (("--batch", "0"), "--batch is 0; it must be 1 or more"),
        (("--rate", "0"), "--rate is 0.0; it must be a number above 0"),
        (("--batch", "2", "--prompt", "4000"), "a request has 4256 tokens, more than the context of 2048"),
        (("--batch", "9000", "--prompt", "2", "--tokens", "3"), "a step has at most"),
        (("--batch", "2", "--rules", "-swiglu"), "--rules: no rule is applied in NumPy"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    infernum: Callable[..., Outcome], options: tuple[str, ...], message: str
) -> None:
    outcome = infernum("bench", "throughput", "--model", "dante", "--device", "cpu", *options)
    assert outcome.code == 2 and message in outcome.err


def test_equal_requests_that_never_decode_together_are_refused(request_: ThroughputRequest) -> None:
    with pytest.raises(RequestError, match="ends before the last has begun; give more tokens"):
        measure_throughput(replace(request_, batches=(90,), prompt=100, tokens=3))


def test_the_demo_is_measured_on_the_command_line(infernum: Callable[..., Outcome], tmp_path: Path) -> None:
    options = ("--batch", "2", "--prompt", "5", "--tokens", "4", "--repeats", "1")
    file = tmp_path / "throughput.json"
    outcome = infernum(
        "bench", "throughput", "--model", "dante", "--device", "cpu", *options, "--output", str(file)
    )
    assert outcome.code == 0, outcome.err
    assert "2 × 5 in, 4 out" in outcome.out and "ms a step" in outcome.out
    assert json.loads(file.read_text())["scenarios"][0]["output_tokens"] == 4


def test_two_trees_are_compared_and_a_scenario_that_fails_loses_no_other(
    tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    file = tmp_path / "compared.json"
    arguments = [
        "--model",
        str(tiny("llama31").folder),
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--output",
        str(file),
    ]
    sizes = ["--batch", "1,2", "--prompt", "9", "--tokens", "6", "--mixed", "0", "--overload", "3"]
    pages = ["--pages", "20", "--overload-pages", "1"]
    command = [sys.executable, "benchmarks/compare_engine.py", ".", ".", *arguments, *sizes, *pages]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1, outcome.stderr
    (results,) = json.loads(file.read_text())["models"].values()
    assert list(results) == ["batch 1", "batch 2", "overload, ample", "overload"]
    assert results["batch 1"]["equal"] == results["batch 1"]["sequences"] == 1
    assert results["overload, ample"]["equal"] == 3 and results["batch 2"]["new_over_old"] > 0
    assert "the process has ended" in results["overload"]["error"]
    assert "leaves no room for a new one in the KV cache of 64 tokens" in outcome.stderr
