"""What `profile` writes, on a fake GPU whose kernels take a known time: a trace that is valid, nested and complete."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clock_gpu import MICROSECONDS, ClockEvent, ClockGpu, clock_gpu, described_toy, open_clocked
from toy_bundle import LAYERS

from infernum.bundle import Bundle
from infernum.errors import RequestError
from infernum.lab.measure import origin, profile, subject
from infernum.lab.measure.trace import TracedKernel, TracedStep, trace
from infernum.runtime.binding import StepPlace
from infernum.runtime.executor import CudaExecutor

LAYER = ["append", "mean", "scale_add"]
STEP = ["embed", *LAYER * LAYERS, "gather", "logits", "greedy"]
BLOCKS = ["embed", *(f"decoder[{layer}]" for layer in range(LAYERS)), "head", "greedy"]


@pytest.fixture
def gpu() -> ClockGpu:
    return clock_gpu()


@pytest.fixture
def toy_on_gpu(tmp_path: Path, gpu: ClockGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """The toy's bundle; whatever is opened is opened on the fake GPU, and nvtx is not installed."""
    opened = described_toy(tmp_path, {"mean": ("8 * cached", "2 * attended")})

    def open_executor(
        bundle: Bundle, checkpoint: Any, *, max_model_len: int, max_pages_total: int, seed: int
    ) -> Any:
        return open_clocked(gpu, bundle, max_model_len=max_model_len, pages=max_pages_total)

    facts = type("Facts", (), {"gpus": (gpu.facts,), "cuda_version": "13.0"})
    monkeypatch.setattr(CudaExecutor, "open", open_executor)
    monkeypatch.setattr(origin, "describe", lambda: facts)
    monkeypatch.setattr(subject, "describe", lambda: facts)
    monkeypatch.setitem(sys.modules, "nvtx", None)
    yield opened
    assert not gpu.live, "device memory was not given back"


def on_track(found: dict[str, Any], track: int) -> list[dict[str, Any]]:
    return [event for event in found["traceEvents"] if event["ph"] == "X" and event["tid"] == track]


def check_trace(found: dict[str, Any]) -> None:
    """Times never go back, events of a track do not overlap, and each lies within one of the track above."""
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    names = {e["tid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "thread_name"}
    assert names == {0: "steps", 1: "blocks", 2: "kernels"}
    for track in names:
        events = on_track(found, track)
        assert events and all(event["dur"] >= 0 for event in events)
        for event, following in pairwise(events):
            assert following["ts"] >= round(event["ts"] + event["dur"], 3)
        for event in events if track else ():
            assert any(
                outer["ts"] <= event["ts"]
                and round(event["ts"] + event["dur"], 3) <= round(outer["ts"] + outer["dur"], 3)
                for outer in on_track(found, track - 1)
            ), event


def test_the_trace_holds_every_launch_of_every_step_in_order_with_its_time(toy_on_gpu: Bundle) -> None:
    found = profile.profile(toy_on_gpu, None, prompt=5, tokens=3)
    check_trace(found)
    assert [event["name"] for event in on_track(found, 0)] == ["prompt", "token 1", "token 2", "token 3"]
    assert [event["name"] for event in on_track(found, 1)] == BLOCKS * 4
    kernels = on_track(found, 2)
    assert [event["name"] for event in kernels] == STEP * 4
    for event in kernels:
        assert event["dur"] == pytest.approx(MICROSECONDS[event["name"]])
    first = next(event for event in kernels if event["name"] == "mean")
    assert first["args"] == {
        "block": "decoder",
        "layer": 0,
        "variant": "prefill",
        "ops": "mean",
        "from": "toy.py:4",
        "bytes": 8 * 5,
        "flops": 2 * 15,
        "grid": "5",
        "threads": "32",
        "shared": 0,
    }
    product = next(event for event in kernels if event["name"] == "logits")
    assert product["args"]["product"] == "1 × 40 × 8"
    assert found["otherData"]["time_source"].startswith("CUDA events")
    assert found["otherData"]["nvtx"] is False


def test_a_prompt_longer_than_a_step_is_several_steps(toy_on_gpu: Bundle) -> None:
    found = profile.profile(toy_on_gpu, None, prompt=14, tokens=1)
    check_trace(found)
    names = [event["name"] for event in on_track(found, 0)]
    assert names == ["prompt, part 1", "prompt, part 2", "token 1"]
    assert [event["args"]["tokens"] for event in on_track(found, 0)] == [12, 2, 1]


def test_the_traced_tokens_are_those_of_a_normal_run(
    toy_on_gpu: Bundle, gpu: ClockGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    decode_batch = profile.decode_batch

    def noted(tokens: Any, position: int, pages: Any) -> Any:
        fed.extend(int(token) for token in tokens)
        return decode_batch(tokens, position, pages)

    monkeypatch.setattr(profile, "decode_batch", noted)
    profile.profile(toy_on_gpu, None, prompt=5, tokens=6)
    from infernum.lab.measure.workload import greedy, page_table, prompt_steps, random_prompts

    gpu.closed = False
    pages = page_table(1, 11, toy_on_gpu.manifest.page_size, 0)
    with open_clocked(gpu, toy_on_gpu, max_model_len=11, pages=pages.size) as executor:
        (batch, _), *_ = prompt_steps(random_prompts(1, 5, 40, 0), pages, executor)
        tokens = [executor.run(batch, greedy(1)).tokens()]
        tokens.append(executor.run(decode_batch(tokens[0], 5, pages), greedy(1)).tokens())
        tokens += [executor.advance().tokens() for _ in range(4)]
    assert fed == [int(token[0]) for token in tokens]


def test_a_step_in_which_the_host_fell_behind_says_so(
    toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClockEvent, "passed", lambda event: True)
    found = profile.profile(toy_on_gpu, None, prompt=2, tokens=1)
    assert all("did not keep ahead" in event["args"]["note"] for event in on_track(found, 0))


def test_a_step_in_which_the_host_fell_behind_is_timed_again_with_a_longer_head_start(
    toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = [True, False, True, True, False]
    starts: list[float] = []
    monkeypatch.setattr(ClockEvent, "passed", lambda event: behind.pop(0))
    monkeypatch.setattr(profile.HeadStart, "queue", lambda start, seconds: starts.append(seconds))
    found = profile.profile(toy_on_gpu, None, prompt=2, tokens=1)
    assert not behind and not any("note" in event["args"] for event in on_track(found, 0))
    times = [starts[1] / starts[0], starts[3] / starts[2], starts[4] / starts[2]]
    assert times == pytest.approx([8, 8, 64])


def test_ranges_named_after_steps_and_blocks_surround_the_launches(
    toy_on_gpu: Bundle, gpu: ClockGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    @contextmanager
    def annotate(name: str, *, domain: str) -> Iterator[None]:
        assert domain == "infernum"
        opened.append(name)
        launches = gpu.eager_launches
        yield
        assert gpu.eager_launches > launches or name == "head", "nothing was launched inside"

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    found = profile.profile(toy_on_gpu, None, prompt=2, tokens=1)
    assert opened == ["prompt", *BLOCKS, "token 1", *BLOCKS]
    assert found["otherData"]["nvtx"] is True


def test_rounding_keeps_kernels_within_their_block() -> None:
    third = 1 / 3
    kernels = [
        TracedKernel(str(i), StepPlace("a", i // 2, i % 2), i * third, (i + 1) * third) for i in range(6)
    ]
    check_trace(trace("t", [TracedStep("s", "t1", 1, kernels), TracedStep("t", "t1", 1, kernels)], {}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"prompt": 0}, "--prompt-tokens is 0"),
        ({"tokens": 0}, "--tokens is 0"),
        ({"prompt": 20, "tokens": 5}, "make 25 tokens, more than the context of 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(toy_on_gpu: Bundle, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        profile.profile(toy_on_gpu, None, **sizes)


def test_the_command_writes_the_file_and_says_where_the_times_come_from(
    toy_on_gpu: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from infernum.cli.profile_command import command

    out = tmp_path / "traces" / "toy.json"
    options: list[str] = [str(toy_on_gpu.folder), "--prompt-tokens", "3", "--tokens", "2", "-o", str(out)]
    run: Callable[..., object] = command.main
    run(options, standalone_mode=False)
    found = json.loads(out.read_text())
    check_trace(found)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{len(STEP) * 3} kernels in 3 steps; CUDA events" in captured.err
    assert "nvtx is not installed" in captured.err
