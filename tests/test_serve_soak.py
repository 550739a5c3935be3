"""A few requests of each kind of `serve_soak.py`, which a person runs with thousands."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import pytest
from serve_ends import WAYS, stop_while_answering
from serve_soak import run
from serving import RunningServer, running

NONE = {
    "streams": 0,
    "disconnects": 0,
    "bodies": 0,
    "slow": 0,
    "counts": 0,
    "ends": 0,
    "soak": 0.0,
    "seed": 1,
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running("--max-model-len", "512")


@pytest.mark.parametrize(
    "part",
    [{"streams": 16}, {"disconnects": 60}, {"bodies": 200}, {"counts": 60}, {"soak": 0.05}],
    ids=lambda part: next(iter(part)),
)
def test_a_server_does_all_that_it_is_asked_and_nothing_is_left(
    server: RunningServer, part: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(server, argparse.Namespace(**{**NONE, **part}))
    assert not found, "\n".join(found)
    assert capsys.readouterr().out.startswith(f"{next(iter(part))}: ")


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_is_stopped_ends_each_answer_as_it_should_and_itself_with_0(way: str) -> None:
    assert stop_while_answering(way, random.Random(1), requests=5) == []
