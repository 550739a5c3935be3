"""`infernum tune` on a real GPU, with the demo model: every candidate runs and is right, and what is kept is used."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infernum.lab.measure.candidates import Tunable, tunables
from infernum.lab.measure.race import PairedDifferences
from infernum.lab.measure.tune import TuneRequest, tune
from infernum.lab.verify.bench import open_bench
from infernum.lab.verify.verdict import wrong_kernels
from infernum.models.presets import resolve

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_command_tunes_and_the_next_compile_takes_up_what_was_kept(
    infernum: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "dante"
    found = infernum("tune", "dante", "--context", "128", "--budget", "60", "-o", out, "--json")
    assert found.code == 0, found.err
    results = json.loads(found.out)
    assert [step["variant"] for step in results["steps"]] == ["t1", "t8"]
    assert all(step["after_us"] <= step["before_us"] for step in results["steps"])
    assert {row["variant"] for row in results["kernels"]} == {"t1", "t8"}
    for row in results["kernels"]:
        assert row["launches"] > 0 and math.isfinite(row["before_us"])
        wrong = [reason for reason in row["refused"].values() if reason.startswith("wrong")]
        assert not wrong, f"{row['kernel']}: {wrong}"
    decided = {row["key"]: row for row in results["kernels"] if row["decided"]}
    assert decided, "nothing was decided in the time"
    assert len(list((cache / "tuned").glob("*.json"))) == 1
    again = infernum("compile", "dante", "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    told = infernum("diff", out, tmp_path / "again", "--json", "--no-source")
    assert json.loads(told.out)["kernels"] == [], "the next compile makes the same kernels"
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    kernels = [
        k for b in manifest["blocks"].values() for v in b.values() for k in v["kernels"] if k["parameters"]
    ]
    for kernel in kernels:
        row = decided.get(kernel["parameters"]["key"])
        if row is not None:
            assert (
                kernel["parameters"]["values"] == row["after"] and kernel["parameters"]["why"] == row["why"]
            )


def test_a_candidate_that_is_taken_is_right_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every race is won by some candidate, whatever it takes: what is put together must still be right."""

    def any_wins(comparisons: dict[str, PairedDifferences], kernel_us: float) -> str | None:
        return min(comparisons, key=lambda name: comparisons[name].median, default=None)

    def few(*given: Any) -> list[Tunable]:
        found = tunables(*given)
        less = [dataclasses.replace(t.parameters, candidates=t.parameters.candidates[:3]) for t in found]
        return [dataclasses.replace(t, parameters=p) for t, p in zip(found, less, strict=True)]

    monkeypatch.setattr("infernum.lab.measure.tune.tunables", few)
    monkeypatch.setattr("infernum.lab.measure.tune.winner", any_wins)
    checked: list[str] = []

    def check(bundle: Any, variant: str, kernels: Any) -> Any:
        checked.extend(name for _, name in kernels)
        with open_bench() as bench:
            wrong = wrong_kernels(bundle, bench, variant, kernels)
        assert not wrong, wrong
        return wrong

    results = tune(
        TuneRequest(resolve("dante"), variants=("t1", "prefill"), context=128, prompts=(128,)), check
    )
    assert "argmax" in checked and len(set(checked)) > 2
    assert any(row["after"] != row["before"] for row in results["kernels"])
    assert results["products"] and all(p["m"] == 128 or p["m"] == 1 for p in results["products"])
