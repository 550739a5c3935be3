"""What `profile --requests` writes: the engine's steps on a fake GPU with a clock, and what they have in common."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock_gpu import MICROSECONDS, ClockGpu
from test_profile import STEP, gpu, toy_on_gpu

from infernum.bundle import Bundle
from infernum.cli.profile_command import command, load_lengths, rows
from infernum.engine.events import StepRecord, ahead_share
from infernum.errors import RequestError
from infernum.lab.measure.load_profile import load_events, profile_load, summary

__all__ = ["gpu", "toy_on_gpu"]

LENGTHS = [(5, 4), (9, 6), (3, 8), (9, 12)]
STEP_US = sum(MICROSECONDS[name] for name in STEP)


def record(
    number: int, sequences: list[int], lengths: list[int], sampled: list[int], **facts: Any
) -> StepRecord:
    base: dict[str, Any] = {
        "prompt_tokens": 0,
        "waiting": 0,
        "running": len(sequences),
        "free_pages": 10,
        "preemptions": 0,
        "cached_tokens": 0,
        "ahead": True,
        "host_seconds": 1e-3,
    }
    starts = np.zeros(len(sequences), np.int32)
    arrays = (np.array(each, np.int32) for each in (lengths, sampled))
    return StepRecord(number, np.array(sequences), starts, *arrays, **(base | facts))


def steps_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event.get("cat") == "step"]


def test_each_step_has_its_sequences_and_the_time_that_it_took_the_gpu(toy_on_gpu: Bundle) -> None:
    trace = profile_load(toy_on_gpu, None, LENGTHS, pages=40)
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace
    steps = steps_of(trace)
    assert all(step["dur"] == pytest.approx(STEP_US) for step in steps)
    assert all(after["ts"] >= step["ts"] + step["dur"] for step, after in pairwise(steps))
    computed = dict.fromkeys(range(len(LENGTHS)), 0)
    for step in steps:
        for sequence, length in zip(step["args"]["sequences"], step["args"]["lengths"], strict=True):
            computed[sequence] += length
    # The last token of a sequence is not computed; one more may be, since ends are read a step late.
    for sequence, (prompt, out) in enumerate(LENGTHS):
        assert computed[sequence] - (prompt + out - 1) in (0, 1)
    about = trace["otherData"]["summary"]
    assert about["kinds"]["all"]["steps"] == len(steps)
    assert about["kinds"]["all"]["busy_ms"] == pytest.approx(len(steps) * STEP_US / 1e3)
    assert about["preemptions"] == 0 < about["most_pages"] <= 40


def test_a_request_is_a_track_of_what_it_did(toy_on_gpu: Bundle) -> None:
    trace = profile_load(toy_on_gpu, None, LENGTHS, pages=40)
    for sequence in range(len(LENGTHS)):
        spans = [e for e in trace["traceEvents"] if e.get("cat") == "request" and e["tid"] == sequence]
        assert [span["name"] for span in spans] == ["prompt", "decode"]


def test_preemptions_are_counted_and_split_the_track_of_a_request(toy_on_gpu: Bundle) -> None:
    lengths = [(3, 20)] * 3
    trace = profile_load(toy_on_gpu, None, lengths, pages=8)
    assert trace["otherData"]["summary"]["preemptions"] > 0
    names = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "request"]
    assert names.count("prompt") > len(lengths)


def test_the_gpu_is_idle_from_the_end_of_a_step_to_the_begin_of_the_next() -> None:
    records = [
        record(6, [0], [3], [0], preemptions=2, cached_tokens=5),
        record(7, [0, 1], [1, 4], [0, 1], preemptions=2, cached_tokens=9, prompt_tokens=4, ahead=False),
        record(8, [0, 1], [1, 1], [0, 1], preemptions=3, cached_tokens=9, free_pages=4),
        record(9, [0, 1], [1, 1], [0, 1], preemptions=3, cached_tokens=9, host_seconds=3e-3, waiting=2),
    ]
    about = summary(records, [(0.0, 2.0), (3.0, 5.0), (5.0, 6.0)], pages=12)
    assert about["kinds"]["decode"] == {
        "steps": 2,
        "sequences": 2,
        "busy_ms": 3,
        "idle_ms": 1,
        "idle_share": 0.25,
        "host_ms": 2,
    }
    assert about["kinds"]["with prompts"]["idle_ms"] == 0
    assert about["launched_ahead"] == pytest.approx(2 / 3)
    assert about["masked"] == 0
    assert (about["preemptions"], about["cached_tokens"]) == (1, 4)
    assert (about["most_pages"], about["most_waiting"]) == (8, 2)


def test_steps_with_masks_are_counted_apart() -> None:
    records = [
        record(step, [0], [1], [0], ahead=ahead, masked=masked)
        for step, (ahead, masked) in enumerate([(True, False), (True, False), (False, False), (True, True)])
    ]
    about = summary(records, [(step, step + 1.0) for step in range(3)], pages=12)
    assert (about["launched_ahead"], about["masked"]) == (0.5, 1)
    lines = dict(rows({"summary": about, "pages": 12, "prompt_tokens": 1}))
    assert lines["launched ahead"] == "50.0% of the steps without masks"
    assert lines["masks"] == "steps whose samplers waited for the tokens of the last: 1"
    assert ahead_share(records[3:]) == 1


def test_the_name_of_a_step_says_how_many_decode_and_what_it_has_of_prompts() -> None:
    records = [record(0, [4, 5, 6], [1, 7, 3], [0, 2]), record(1, [4, 6], [1, 1], [0, 1])]
    steps = steps_of({"traceEvents": load_events("t", records, [(0.0, 1.0), (1.0, 2.0)])})
    assert [step["name"] for step in steps] == ["1 decode, 10 tokens of 2 prompts", "2 decode"]
    assert steps[0]["args"]["sequences"] == [0, 1, 2]


def test_requests_are_mixed_ones_or_equal_ones() -> None:
    assert load_lengths(None, False, 64, 8) is None
    assert load_lengths(3, False, 64, 8) == [(64, 8)] * 3
    lengths = load_lengths(2, True, 64, 8)
    assert lengths == [(836, 211), (983, 231)]
    assert len(load_lengths(None, True, 64, 8) or ()) == 512
    with pytest.raises(RequestError, match="--requests is 0; it must be 1 or more"):
        load_lengths(0, True, 64, 8)


def test_requests_longer_than_the_context_are_refused(toy_on_gpu: Bundle) -> None:
    with pytest.raises(RequestError, match="a request has 25 tokens, more than the context of 24"):
        profile_load(toy_on_gpu, None, [(20, 5)])


def test_the_command_prints_the_idle_time(
    toy_on_gpu: Bundle, gpu: ClockGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.json"
    sizes = ["--requests", "3", "--prompt-tokens", "4", "--tokens", "5", "--pages", "30"]
    command.main([str(toy_on_gpu.folder), *sizes, "-o", str(file)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "idle between them 0.0 ms (0.0%)" in printed and "of 30" in printed
    assert steps_of(json.loads(file.read_text()))
