"""`infernum bench engine --null`: a steady load, measured without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from infernum.lab.measure.host import OUTPUT, measure_steps

Run = Callable[..., Outcome]


def test_the_load_is_steady_and_every_step_is_launched_ahead() -> None:
    cost = measure_steps(20, OUTPUT)
    assert cost.arrivals == pytest.approx(20 / OUTPUT, rel=0.3)
    assert 200 * cost.arrivals < cost.prompt_tokens < 520 * cost.arrivals
    assert 0.1 < cost.cached_share < 0.5
    assert (cost.ahead_share, cost.masked) == (1, 0)
    assert 0 < cost.least_us <= cost.p10_us <= cost.us <= cost.p99_us


def test_the_command_prints_the_cost_of_each_number_of_sequences_and_the_cpu(
    infernum: Run, tmp_path: Path
) -> None:
    sizes = ("--seqs", "3,8", "--steps", "3")
    done = infernum("bench", "engine", "--null", *sizes, "--json", "--output", tmp_path / "host.json")
    results = json.loads(done.out)
    assert results == json.loads((tmp_path / "host.json").read_text())
    assert results["cpu"] and [cost["sequences"] for cost in results["costs"]] == [3, 8]
    assert "µs a step" in infernum("bench", "engine", "--null", *sizes).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--null", "--seqs", "64,no"),
            "'64,no' is not a list of numbers from 1 to 1024, such as 64,256,512",
        ),
        (("--null", "--seqs", "0"), "'0' is not a list"),
        ((), "Missing option '--null'"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_to_give(
    infernum: Run, arguments: tuple[str, ...], message: str
) -> None:
    done = infernum("bench", "engine", *arguments)
    assert done.code == 2 and message in done.err
