"""The picture of latencies: what it shows is what the results say, and it is well-formed and always the same."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

Run = Callable[..., Outcome]
SVG = "{http://www.w3.org/2000/svg}"


def result(**differences: Any) -> dict[str, Any]:
    """What `bench latency` writes, as far as the picture reads it."""
    return {
        "benchmark": "latency",
        "date": "2026-11-24T00:00:00+00:00",
        "gpu": "an imagined GPU",
        "model": "small & quick",
        "dtype": "bf16",
        "fuse": True,
        "batch": 1,
        "prompt_tokens": 512,
        "output_tokens": 256,
        "ms_per_token": 0.8,
        "floor_ms_per_token": 0.5,
        "fraction_of_bound": 0.625,
        "against": {"name": "transformers", "ms_per_token": 1.6, "speedup": 2.0},
    } | differences


@pytest.fixture
def plot(infernum: Run, tmp_path: Path) -> Callable[..., tuple[Outcome, Path]]:
    """Writes results to files and runs `bench plot` on them."""

    def invoke(*results: Any) -> tuple[Outcome, Path]:
        files = [tmp_path / f"{number}.json" for number in range(len(results))]
        for file, content in zip(files, results, strict=True):
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        out = tmp_path / "plots" / "latency.svg"
        return infernum("bench", "plot", *files, "--output", out), out

    return invoke


def test_bars_are_as_long_as_the_times_they_stand_for(plot: Callable[..., tuple[Outcome, Path]]) -> None:
    unfused = result(fuse=False, ms_per_token=1.0, fraction_of_bound=0.5)
    del unfused["against"]
    large = result(model="large", ms_per_token=4.0, floor_ms_per_token=3.0, against=None)
    done, out = plot(result(), unfused, large)
    assert done.code == 0, done.err
    root = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    bars = [(bar.get("class"), float(bar.get("width", 0))) for bar in root.iter(f"{SVG}rect")][1:]
    assert [kind for kind, _ in bars] == ["bound", "fused", "unfused", "other", "bound", "fused"]
    longest = bars[3][1]
    for (_, width), milliseconds in zip(bars, (0.5, 0.8, 1.0, 1.6), strict=False):
        assert width / longest == pytest.approx(milliseconds / 1.6, abs=1e-3)
    assert bars[4][1] / bars[5][1] == pytest.approx(0.75, abs=1e-3)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "small & quick, one sequence, 512 in, 256 out" in texts
    assert {"0.500", "0.800", "62% of the bound", "2.00× as long", "4.000"} <= set(texts)
    assert texts[-1] == "an imagined GPU, bf16, 2026-11-24"


def test_a_ratio_is_that_of_the_bars_beside_each_other(plot: Callable[..., tuple[Outcome, Path]]) -> None:
    sampling = {"temperature": 0.8}
    done, out = plot(result(ms_per_token=1.0, sampling=sampling, against=result()["against"]))
    assert done.code == 0, done.err
    assert "1.60× as long" in out.read_text(encoding="utf-8")


def test_everything_lies_within_the_picture(plot: Callable[..., tuple[Outcome, Path]]) -> None:
    _, out = plot(result(), result(batch=8))
    root = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width == 700
    for text in root.iter(f"{SVG}text"):
        content = text.text or ""
        assert float(text.get("y", 0)) < height
        start = float(text.get("x", 0))
        reach = 7.5 * len(content)  # wider than the letters are at 13 pixels, on average
        assert (start - reach >= 0) if text.get("text-anchor") else (start + reach <= width), content


def test_the_same_results_give_the_same_bytes(plot: Callable[..., tuple[Outcome, Path]]) -> None:
    first = plot(result())[1].read_bytes()
    assert plot(result())[1].read_bytes() == first
    assert plot(result(ms_per_token=0.81))[1].read_bytes() != first
    assert b"prefers-color-scheme: dark" in first


def test_results_in_the_repository_can_be_drawn(infernum: Run, tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
    files = [folder / f"llama-{size}-{how}.json" for size in ("1b", "8b") for how in ("fused", "unfused")]
    done = infernum("bench", "plot", *files, "--output", tmp_path / "all.svg")
    assert done.code == 0, done.err
    text = (tmp_path / "all.svg").read_text(encoding="utf-8")
    for file in files:
        assert f"{json.loads(file.read_text(encoding='utf-8'))['ms_per_token']:.3f}<" in text


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (({"benchmark": "kernels"},), "is no result of `bench latency`"),
        (("nothing",), "is no JSON"),
        ((result(date=None),), "its date is None; give what `bench latency --output`"),
        ((result(ms_per_token="fast"),), "its ms_per_token is 'fast'"),
        ((result(), result()), "two results are of small & quick, one sequence, 512 in, 256 out, fused"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    plot: Callable[..., tuple[Outcome, Path]], results: tuple[Any, ...], message: str
) -> None:
    done, out = plot(*results)
    assert done.code == 2 and message in done.err
    assert not out.exists()


def test_steps_of_equal_requests_are_groups_of_their_own(plot: Callable[..., tuple[Outcome, Path]]) -> None:
    about = {name: result()[name] for name in ("date", "gpu", "model", "dtype", "fuse")}
    sizes = {"scenario": "equal", "prompt_tokens": 512, "output_tokens": 256, "fraction_of_bound": 0.5}
    scenarios = [
        {**sizes, "batch": 8, "ms_per_step": 1.0, "floor_ms_per_step": 0.5},
        {"scenario": "mixed", "seconds": 3.0},
        {**sizes, "batch": 64, "ms_per_step": 2.0, "floor_ms_per_step": 1.0},
    ]
    served = {"benchmark": "throughput", **about, "scenarios": scenarios}
    done, out = plot(result(batch=8), served)
    assert done.code == 0, done.err
    titles = [text.text for text in ElementTree.parse(out).iter(f"{SVG}text") if text.get("class") == "group"]
    assert titles == [
        "small & quick, 8 sequences, 512 in, 256 out",
        "small & quick, 8 requests, 512 in, 256 out",
        "small & quick, 64 requests, 512 in, 256 out",
    ]
    done, _ = plot(served | {"scenarios": scenarios[1:2]})
    assert done.code == 2 and "has no step of equal requests; measure some by --batch" in done.err
    on_the_cpu = {**sizes, "batch": 8, "ms_per_step": 1.0, "floor_ms_per_step": None}
    done, _ = plot(served | {"scenarios": [on_the_cpu]})
    assert done.code == 2 and "its floor_ms_per_token is None" in done.err
