"""Times the engines of two trees of Infernum in turns on one device: equal requests, mixed ones, and an overload.

    python benchmarks/compare_engine.py OLD NEW [--model NAME …] [--rounds 2] [--output FILE]

OLD and NEW are folders with a checkout each; `git archive REVISION | tar -x -C OLD` makes one. Each tree runs in a
process of its own, which serves the same requests with the same random weights. A scenario that fails is noted, and the
next one runs in a fresh process. One sequence alone must have the same tokens in both trees. Of more sequences the
results give how many have the same tokens, which depends on the kernels that serve the batch.

The rate of equal requests counts the tokens between the first token of the last sequence and the last token of the
first one. The other rates count the tokens of prompts and outputs over the whole time. `overload` runs many short
requests in a cache with pages for a part of them, `overload, ample` in a cache with pages for all that can run.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from infernum.lab.measure.origin import origin
from infernum.lab.measure.requests import (
    Request,
    Timeline,
    mixed_lengths,
    requests_of,
    steady_rate,
    warm_up_lengths,
)
from infernum.machine import choose_device
from infernum.models.presets import resolve

OPEN_SECONDS, SERVE_SECONDS = 400, 120
"""Longest times to open a model, which may compile it, and to serve the requests of a scenario."""

OVERLOAD = (64, 64)
"""Tokens of the prompt and of the output of each request of the overload."""


class ScenarioError(Exception):
    """A scenario has no result, for the reason that the message gives."""


@dataclass(frozen=True)
class Scenario:
    """Requests of these tokens in and out, in a cache of `pages` pages.

    steady      count only tokens that arrive while all sequences decode
    must_agree  the trees must give the same tokens
    """

    name: str
    lengths: list[tuple[int, int]]
    pages: int
    steady: bool = False
    must_agree: bool = False

    def rate(self, timeline: Timeline) -> float:
        """Tokens a second. Raises ScenarioError."""
        if any(len(t) != out for t, (_, out) in zip(timeline.tokens, self.lengths, strict=True)):
            raise ScenarioError("a sequence has fewer tokens than were to be generated")
        if not self.steady:
            return sum(map(sum, self.lengths)) / timeline.end
        if (rate := steady_rate(timeline)) is None:
            raise ScenarioError("the first sequence ended before the last had begun; give more --tokens")
        return rate


@dataclass
class Tree:
    """A checkout, and the process that serves requests by its code. `options`: those of the open model."""

    folder: Path
    cache: Path
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    process: subprocess.Popen[str] | None = None

    def begin_to_open(self, options: dict[str, Any]) -> bool:
        """Open a model in place of the open one, without waiting; False where it is open already."""
        if self.process is not None and self.options == options:
            return False
        if self.process is None:
            search = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("engine_process.py"))],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": search, "INFERNUM_CACHE": str(self.cache)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.options = options
        self._send({"open": options})
        return True

    def finish_opening(self) -> None:
        """Wait until the model is open. Raises ScenarioError."""
        self._receive(OPEN_SECONDS)

    def serve(self, requests: list[Request]) -> tuple[Timeline, int]:
        """The timeline of the requests, all sent at once, and the number of preemptions. Raises ScenarioError."""
        self._send({"requests": [(request.prompt, request.tokens) for request in requests]})
        reply = self._receive(SERVE_SECONDS)
        return Timeline(np.zeros(len(requests)), reply["seconds"], reply["tokens"]), reply["preemptions"]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None, "a model is opened first"
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            self.close()
            raise ScenarioError(f"{self.folder}: the process has ended") from error

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None, "a model is opened first"
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            reason = "the process has ended" if ready else f"no answer for {seconds} s"
            raise ScenarioError(f"{self.folder}: {reason}")
        return json.loads(line)


def scenarios_of(chosen: argparse.Namespace) -> list[Scenario]:
    """The scenarios in the order in which they run: those with the same cache one behind the other."""
    scenarios: list[Scenario] = []
    for batch in map(int, filter(None, chosen.batch.split(","))):
        lengths = [(chosen.prompt, chosen.tokens)] * batch
        scenarios.append(Scenario(f"batch {batch}", lengths, chosen.pages, True, must_agree=batch == 1))
    if chosen.mixed:
        scenarios.append(Scenario("mixed", mixed_lengths(chosen.mixed), chosen.pages))
    if chosen.overload:
        lengths = [OVERLOAD] * chosen.overload
        scenarios.append(Scenario("overload, ample", lengths, chosen.pages))
        scenarios.append(Scenario("overload", lengths, chosen.overload_pages))
    return scenarios


def compare(
    trees: dict[str, Tree],
    options: dict[str, Any],
    scenario: Scenario,
    numbers: Iterator[int],
    vocab: int,
    rounds: int,
) -> dict[str, Any]:
    """The rates of both trees, and how many sequences have the same tokens in all rounds. Raises ScenarioError."""
    opening = [tree for tree in trees.values() if tree.begin_to_open(options)]
    for tree in opening:
        tree.finish_opening()
    rates: dict[str, list[float]] = {label: [] for label in trees}
    preemptions: dict[str, list[int]] = {label: [] for label in trees}
    equal = 0
    warm_up = requests_of(warm_up_lengths(scenario.lengths[:256]), vocab, numbers)
    for tree in trees.values():
        tree.serve(warm_up)
    for number in range(rounds):
        requests = requests_of(scenario.lengths, vocab, numbers)
        tokens: list[list[list[int]]] = []
        for label in list(trees) if number % 2 == 0 else list(trees)[::-1]:
            timeline, preempted = trees[label].serve(requests)
            rates[label].append(scenario.rate(timeline))
            preemptions[label].append(preempted)
            tokens.append(timeline.tokens)
        equal += sum(one == other for one, other in zip(*tokens, strict=True))
    old, new = (median(rates[label]) for label in trees)
    return {
        "tokens_per_second": {"old": old, "new": new},
        "tokens_per_second_all": rates,
        "new_over_old": new / old,
        "ms_per_step": {"old": 1e3 * len(requests) / old, "new": 1e3 * len(requests) / new}
        if scenario.steady
        else None,
        "preemptions": preemptions,
        "equal": equal,
        "sequences": rounds * len(requests),
    }


def line_of(name: str, result: dict[str, Any]) -> str:
    """A result as a line of the printed table."""
    if "error" in result:
        return f"{name:30} {result['error']}"
    rates = result["tokens_per_second"]
    same = f"{result['equal']} of {result['sequences']} sequences agree"
    preempted = {label: sum(counts) for label, counts in result["preemptions"].items()}
    more = f", preemptions {preempted['old']} and {preempted['new']}" if any(preempted.values()) else ""
    return f"{name:30} {rates['old']:9.0f} {rates['new']:9.0f}  {result['new_over_old']:.3f}  {same}{more}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--model", action="append", help="presets or folders (default: llama and llama-3.1-8b)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", default="1,8,64,256")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--mixed", type=int, default=512, help="number of mixed requests; 0: none")
    parser.add_argument("--overload", type=int, default=2000, help="number of short requests; 0: none")
    parser.add_argument("--pages", type=int, default=5600, help="pages of the cache; two caches must fit")
    parser.add_argument("--overload-pages", type=int, default=600, help="pages of the cache under overload")
    parser.add_argument("--output", type=Path, help="all results, as JSON")
    chosen = parser.parse_args()
    device, scenarios = choose_device(chosen.device), scenarios_of(chosen)
    results: dict[str, Any] = {"benchmark": "compare_engine", **origin(None, device), "models": {}}
    results |= {name: str(value) for name, value in vars(chosen).items() if name in ("old", "new")}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for model in chosen.model or ("llama", "llama-3.1-8b"):
            vocab, numbers = resolve(model).config.vocab_size, count()
            trees = {
                "old": Tree(chosen.old.resolve(), Path(scratch) / "old"),
                "new": Tree(chosen.new.resolve(), Path(scratch) / "new"),
            }
            by_scenario: dict[str, Any] = results["models"].setdefault(model, {})
            for scenario in scenarios:
                options = {
                    "model": model,
                    "device": device,
                    "load_format": "dummy",
                    "gpu_memory_utilization": 0.95,
                    "max_model_len": max(sum(length) for each in scenarios for length in each.lengths),
                    "max_pages_total": scenario.pages,
                }
                begin = time.perf_counter()
                try:
                    result = compare(trees, options, scenario, numbers, vocab, chosen.rounds)
                    failed |= scenario.must_agree and result["equal"] < result["sequences"]
                except ScenarioError as error:
                    result, failed = {"error": str(error)}, True
                by_scenario[scenario.name] = result | {"wall_seconds": time.perf_counter() - begin}
                print(line_of(f"{model}, {scenario.name}", result), flush=True)
                if chosen.output:
                    chosen.output.parent.mkdir(parents=True, exist_ok=True)
                    chosen.output.write_text(json.dumps(results, indent=1) + "\n")
            for tree in trees.values():
                tree.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
