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


def decisions(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the kernels whose parameters were kept, by key."""
    return {row["key"]: row for row in results["kernels"] if not row["why"].startswith("not decided")}


def check_parameters(folder: Path, decided: dict[str, dict[str, Any]]) -> None:
    """Every key that was decided has a kernel in a bundle, and its kernels have the parameters that were decided."""
    manifest = json.loads((folder / "manifest.json").read_text())
    blocks = [variant for variants in manifest["blocks"].values() for variant in variants.values()]
    parameters = [kernel["parameters"] for block in blocks for kernel in block["kernels"]]
    tuned = {each["key"]: (each["values"], each["why"]) for each in parameters if each}
    assert {key: tuned.get(key) for key in decided} == {
        key: (row["after"], row["why"]) for key, row in decided.items()
    }


def test_the_command_tunes_and_the_next_compile_makes_the_same_kernels(
    infernum: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    """Also where the GPU is so busy with other tests that nothing is decided in the time."""
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
    decided = decisions(results)
    assert len(list((cache / "tuned").glob("*.json"))) == bool(decided)
    again = infernum("compile", "dante", "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    diff = infernum("diff", out, tmp_path / "again", "--json", "--no-source")
    assert json.loads(diff.out)["kernels"] == []
    check_parameters(tmp_path / "again", decided)


def test_a_candidate_that_wins_is_right_by_numpy_and_in_the_next_compile(
    infernum: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every race is won by some candidate, however slow it is: what is put together must still be right."""

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
    decided = decisions(results)
    assert any(row["after"] != row["before"] for row in decided.values())
    assert results["products"] and all(p["m"] == 128 or p["m"] == 1 for p in results["products"])
    compiled = infernum("compile", "dante", "-o", tmp_path / "dante", "--json")
    assert compiled.code == 0, compiled.err
    check_parameters(tmp_path / "dante", decided)
