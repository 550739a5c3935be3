"""What `bench kernels` measures, on a fake GPU whose kernels take a known time: cutting, sums, bounds, refusals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock_gpu import MICROSECONDS, ClockGpu, clock_gpu, described_toy, open_clocked
from toy_bundle import LAYERS, VOCAB

from infernum.bundle import Bundle
from infernum.cli import bench_command
from infernum.errors import BundleError, DeviceError, RequestError
from infernum.lab.measure import kernels as measured
from infernum.lab.measure import origin, subject
from infernum.lab.measure.bounds import Speeds, cost_symbols
from infernum.lab.measure.cuts import KernelInStep, cuts, in_place, kernels_in_step
from infernum.lab.measure.workload import chunk_batch, decode_batch, workload
from infernum.lab.verify.check import Verdict
from infernum.roofline import step_symbols
from infernum.runtime.binding import StepPlace
from infernum.runtime.executor import CudaExecutor
from infernum.step import NO_TOKEN

SPEEDS = Speeds(bytes_per_second=1e9, flops_per_second=1e12)

STEP_US = (
    MICROSECONDS["embed"]
    + LAYERS * sum(MICROSECONDS[name] for name in ("append", "mean", "scale_add"))
    + sum(MICROSECONDS[name] for name in ("gather", "logits", "greedy"))
)


@pytest.fixture
def gpu() -> ClockGpu:
    return clock_gpu()


@pytest.fixture
def toy_on_gpu(tmp_path: Path, gpu: ClockGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """The toy's bundle; whatever is opened is opened on the fake GPU."""
    costs = {"mean": ("8 * cached", "2 * attended"), "logits": (1500, f"2 * rows * {10**6}")}
    opened = described_toy(tmp_path, costs)

    def open_executor(
        bundle: Bundle, checkpoint: Any, *, max_model_len: int, max_pages_total: int, seed: int
    ) -> Any:
        gpu.closed = False
        return open_clocked(gpu, bundle, max_model_len=max_model_len, pages=max_pages_total)

    facts = type("Facts", (), {"gpus": (gpu.facts,), "cuda_version": "13.0"})
    monkeypatch.setattr(CudaExecutor, "open", open_executor)
    monkeypatch.setattr(measured, "measure_speeds", lambda products_of: SPEEDS)
    monkeypatch.setattr(origin, "describe", lambda: facts)
    monkeypatch.setattr(subject, "describe", lambda: facts)
    yield opened
    assert not gpu.live, "device memory was not given back"


def right(bundle: Bundle, variant: str) -> None:
    """A check that finds nothing wrong."""


def by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["kernel"]: row for row in results["kernels"]}


def test_a_cut_keeps_the_first_kernels_of_a_block_in_every_layer() -> None:
    places = [
        StepPlace("embed", None, 0),
        *(StepPlace("layer", n, i) for n in range(2) for i in range(2)),
        StepPlace("head", None, 0),
    ]
    kernels = kernels_in_step(places, range(6))
    assert kernels == [
        KernelInStep("embed", 0, (0,)),
        KernelInStep("layer", 0, (1, 3)),
        KernelInStep("layer", 1, (2, 4)),
        KernelInStep("head", 0, (5,)),
    ]
    assert cuts(kernels) == [(0,), (0, 1, 3), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5)]


def test_blocks_that_take_turns_are_cut_one_after_the_other_and_run_in_program_order() -> None:
    places = [StepPlace(block, n, i) for n, block in enumerate("abab") for i in range(2)]
    kernels = kernels_in_step(places, range(8))
    assert [(k.block, k.index) for k in kernels] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert cuts(kernels) == [(0, 4), (0, 1, 4, 5), (0, 1, 2, 4, 5, 6), tuple(range(8))]


def test_a_launch_without_blocks_is_no_kernel_of_the_step() -> None:
    places = [StepPlace("a", None, 0), StepPlace("a", None, 1)]
    assert kernels_in_step(places, [1]) == [KernelInStep("a", 1, (1,))]


def test_times_in_place_sum_up_to_the_whole_even_where_noise_makes_one_negative() -> None:
    kernels = [KernelInStep("a", 0, (0,)), KernelInStep("b", 0, (1, 2, 3)), KernelInStep("b", 1, (4, 5, 6))]
    found = [in_place(kernels, {0: 2.0, 1: 8.0, 2: 7.4}, number) for number in range(3)]
    assert found == pytest.approx([2.0, 2.0, -0.2])
    assert sum(t * len(k.launches) for t, k in zip(found, kernels, strict=True)) == pytest.approx(7.4)


def test_costs_are_those_of_the_batch_and_agree_with_the_ones_that_emitted_kernels_are_given() -> None:
    pages = np.zeros((3, 4), np.int32)
    decode = decode_batch(np.zeros(3, np.int32), 99, pages)
    prompt = chunk_batch(np.zeros(70, np.int32), 30, pages[:1])
    for batch, tokens in ((decode, 3), (prompt, 70)):
        found, expected = cost_symbols({}, batch), step_symbols(tokens, context=100)
        assert found == {name: expected[name] for name in ("cached", "attended")}


def test_what_is_measured_goes_no_further_where_no_token_was_drawn() -> None:
    with pytest.raises(DeviceError, match="the logits are not finite"):
        decode_batch(np.array([3, NO_TOKEN], np.int32), 5, np.zeros((2, 4), np.int32))


def test_each_kernel_is_given_the_time_it_takes_and_its_bound(toy_on_gpu: Bundle) -> None:
    results = measured.measure_kernels(toy_on_gpu, None, right, context=11, repeats=2)
    rows = by_name(results)
    assert set(rows) == {"embed", "append", "mean", "scale_add", "gather", "logits", "greedy"}
    for name, row in rows.items():
        assert row["us"] == pytest.approx(MICROSECONDS[name]), name
        assert row["alone_us"] == pytest.approx(MICROSECONDS[name]), name
        assert row["layers"] == (LAYERS if row["block"] == "decoder" else 1)
        assert row["fraction"] == pytest.approx(row["floor_us"] / row["us"])
        assert row["gain_us"] == pytest.approx((row["us"] - row["floor_us"]) * row["layers"])
    assert rows["mean"]["bytes"] == 8 * 11 and rows["mean"]["flops"] == 2 * 11
    assert rows["logits"]["floor_us"] == pytest.approx(2.0), (
        "2 MFLOP at 1 TFLOP/s is more than 1.5 kB at 1 GB/s"
    )
    assert results["graph_ms"] == pytest.approx(STEP_US / 1e3)
    assert sum(row["us"] * row["layers"] for row in rows.values()) == pytest.approx(1e3 * results["graph_ms"])
    assert results["unaccounted_us"] == pytest.approx(1e3 * (results["ms_per_step"] - results["graph_ms"]))
    gains = [row["gain_us"] for row in results["kernels"]]
    assert gains == sorted(gains, reverse=True)
    json.dumps(results, allow_nan=False)


def test_a_prompt_is_measured_too(toy_on_gpu: Bundle) -> None:
    results = measured.measure_kernels(toy_on_gpu, None, right, tokens=7, context=9, repeats=1)
    assert (results["variant"], results["tokens"], results["context"]) == ("prefill", 7, 9)
    rows = by_name(results)
    assert (rows["mean"]["variant"], rows["greedy"]["variant"]) == ("prefill", "any")
    assert rows["mean"]["flops"] == 2 * sum(range(3, 10))
    assert rows["append"]["us"] == pytest.approx(MICROSECONDS["append"])


@pytest.mark.parametrize("context", [23, 24])
def test_a_prompt_that_fills_the_context_leaves_its_sampler_no_room_to_move_on(
    toy_on_gpu: Bundle, context: int
) -> None:
    results = measured.measure_kernels(toy_on_gpu, None, right, tokens=7, context=context, repeats=1)
    rows = by_name(results)
    assert rows["greedy"]["alone_us"] == pytest.approx(MICROSECONDS["greedy"])


@pytest.mark.parametrize("context", [1, 23, 24])
def test_decodes_that_move_on_stay_within_their_pages(toy_on_gpu: Bundle, context: int) -> None:
    results = measured.measure_kernels(toy_on_gpu, None, right, context=context, repeats=1)
    assert results["context"] == context
    assert results["graph_ms"] == pytest.approx(STEP_US / 1e3)


def test_decodes_that_move_on_have_the_context_asked_for_on_average() -> None:
    pages = np.zeros((1, 4), np.int32)
    prompts = np.zeros((1, 256), np.int32)
    load = measured.Workload("t1", 1, 100, True, prompts, pages, 256)
    start = load.start(21)
    assert start is not None and np.mean(np.arange(start, start + 21) + 1) == 100


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"context": 25}, "--context is 25; this bundle serves contexts of 1 to 24"),
        ({"context": 0}, "--context is 0"),
        ({"tokens": 13, "context": 13}, "--tokens is 13; this bundle serves steps of 1 to 12"),
        ({"tokens": 0}, "--tokens is 0"),
        ({"variant": "t9"}, "this bundle has t1, prefill"),
        ({"variant": "t1", "tokens": 1}, "exclude each other"),
        ({"repeats": 0}, "--repeats is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(toy_on_gpu: Bundle, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        measured.measure_kernels(toy_on_gpu, None, right, **{"context": 12, **sizes})


def test_no_kernel_is_timed_before_all_are_found_right(toy_on_gpu: Bundle, gpu: ClockGpu) -> None:
    asked: list[str] = []

    def wrong(bundle: Bundle, variant: str) -> None:
        asked.append(variant)
        raise DeviceError("decoder.t1: mean is wrong")

    with pytest.raises(DeviceError, match="mean is wrong"):
        measured.measure_kernels(toy_on_gpu, None, wrong, context=12)
    assert asked == ["t1"] and gpu.launched == []


def test_no_number_is_given_when_the_logits_are_not_finite(
    toy_on_gpu: Bundle, gpu: ClockGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = np.full((1, VOCAB), np.nan, np.float32)
    monkeypatch.setattr(CudaExecutor, "logits", lambda executor, batch: nan)
    with pytest.raises(DeviceError, match="not finite"):
        measured.measure_kernels(toy_on_gpu, None, right, context=12)


def test_a_variant_is_measured_at_its_most_decodes_or_at_a_prompt_of_the_context(
    dante_bundle: Bundle,
) -> None:
    sizes = {
        variant: workload(dante_bundle, variant=variant, tokens=None, context=200, room=64, seed=0)
        for variant in ("t1", "t8", "t64", "d128", "decode", "prefill")
    }
    assert {name: load.tokens for name, load in sizes.items()} == {
        "t1": 1,
        "t8": 8,
        "t64": 64,
        "d128": 128,
        "decode": 256,
        "prefill": 200,
    }
    assert {name: load.sequences for name, load in sizes.items()} == {
        "t1": 1,
        "t8": 8,
        "t64": 64,
        "d128": 128,
        "decode": 256,
        "prefill": 1,
    }
    for load in sizes.values():
        batch = load.batch()
        assert batch.tokens == load.tokens and set(batch.positions[batch.query_start[1:] - 1]) == {199}
        found = np.unique(load.pages)
        assert len(found) == load.pages.size, "two sequences share a page"


def measure_on_cli(infernum: Callable[..., Any], *args: str | Path) -> Any:
    return infernum("bench", "kernels", *args, "--context", "12", "--repeats", "1")


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "_check_kernels", lambda bundle, variant, names, progress: None)


@pytest.mark.usefixtures("verified")
def test_the_table_lists_every_kernel_and_what_is_unaccounted(
    infernum: Callable[..., Any], toy_on_gpu: Bundle
) -> None:
    found = measure_on_cli(infernum, toy_on_gpu.folder)
    assert found.code == 0, found.err
    for name in ("embed: embed", "decoder: scale_add", "head: logits", "greedy: greedy", "unaccounted"):
        assert name in found.out


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_step_whose_parts_come_to_more_than_itself_is_explained(
    infernum: Callable[..., Any], toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    real = measured.time_step

    def with_another_step(*args: Any) -> Any:
        times = real(*args)
        return dataclasses.replace(times, step=factor * times.graph)

    monkeypatch.setattr(measured, "time_step", with_another_step)
    found = measure_on_cli(infernum, toy_on_gpu.folder)
    assert ("at its power limit" in " ".join(found.out.split())) == (factor < 1)


@pytest.mark.usefixtures("verified")
def test_json_and_csv_hold_the_same_kernels(
    infernum: Callable[..., Any], toy_on_gpu: Bundle, tmp_path: Path
) -> None:
    kept = tmp_path / "results" / "toy.json"
    found = measure_on_cli(infernum, toy_on_gpu.folder, "--json", "--output", kept)
    results = json.loads(found.out)
    assert json.loads(kept.read_text()) == results
    assert results["benchmark"] == "kernels" and results["gpu"] == "a fake GPU"
    listed = list(csv.DictReader(io.StringIO(measure_on_cli(infernum, toy_on_gpu.folder, "--csv").out)))
    assert {row["kernel"] for row in listed} == {row["kernel"] for row in results["kernels"]}
    assert set(listed[0]) == set(results["kernels"][0])


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "--csv"), "exclude each other"),
        (("--load-format", "auto"), "say which by --model"),
        (("--no-fuse",), "compiled already"),
        (("--model", "dante"), "config differs from that of dante"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    infernum: Callable[..., Any], toy_on_gpu: Bundle, options: tuple[str, ...], message: str
) -> None:
    found = measure_on_cli(infernum, toy_on_gpu.folder, *options)
    assert found.code == 2 and message in found.err and found.out == ""


def test_a_kernel_that_is_wrong_is_named_and_nothing_is_printed(
    infernum: Callable[..., Any], toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = [verdict("append"), verdict("mean", "at 3 tokens: 7 elements were not written")]
    monkeypatch.setattr("infernum.lab.verify.bench.open_bench", nullcontext)
    monkeypatch.setattr("infernum.lab.verify.verdict.select_units", lambda bundle, **chosen: [])
    monkeypatch.setattr("infernum.lab.verify.verdict.verify_units", lambda *given, **chosen: verdicts)
    found = measure_on_cli(infernum, toy_on_gpu.folder, "--json")
    assert (found.code, found.out) == (2, "")
    assert (
        "decoder.t1: mean is wrong (at 3 tokens: 7 elements were not written); no result is given"
        in found.err
    )
    del verdicts[1]
    assert measure_on_cli(infernum, toy_on_gpu.folder, "--json").code == 0


def test_only_the_kernels_that_are_named_are_verified_and_told_of(
    infernum: Callable[..., Any], toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("infernum.lab.verify.bench.open_bench", nullcontext)
    monkeypatch.setattr(
        "infernum.lab.verify.verdict.select_units",
        lambda bundle, **chosen: asked.append(chosen["kernels"]) or [],
    )
    monkeypatch.setattr("infernum.lab.verify.verdict.verify_units", lambda *given, **chosen: [])
    named = ("--kernel", "mean", "--kernel", "append")
    found = measure_on_cli(infernum, toy_on_gpu.folder, *named, "--json")
    rows = {row["kernel"]: row["us"] for row in json.loads(found.out)["kernels"]}
    assert rows == pytest.approx({name: MICROSECONDS[name] for name in ("mean", "append")})
    shown = measure_on_cli(infernum, toy_on_gpu.folder, *named).out
    assert "decoder: mean" in shown and "logits" not in shown and "the sum over the table" not in shown
    assert "the sum over the table" in measure_on_cli(infernum, toy_on_gpu.folder).out
    assert asked == [("mean", "append"), ("mean", "append"), None]


def verdict(kernel: str, *wrong: str) -> Verdict:
    return Verdict(
        kernel=kernel,
        block="decoder",
        variant="t1",
        node=kernel,
        ops=(kernel,),
        rules=(),
        edited=False,
        trials=1,
        error=0.0,
        tolerance=1e-5,
        at="1 token",
        wrong=[*wrong],
    )


def test_a_bundle_for_another_gpu_is_refused(toy_on_gpu: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Facts", (), {"gpus": (ClockGpu({}, arch=(8, 0)).facts,), "cuda_version": "13.0"})
    monkeypatch.setattr(subject, "describe", lambda: other)
    with pytest.raises(BundleError, match="compiled for sm_90a"):
        subject.open_subject("bench kernels", toy_on_gpu.folder, None, load_format="dummy")


def test_without_a_gpu_one_line_says_so(
    infernum: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Any:
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr(subject, "describe", none)
    found = measure_on_cli(infernum, tmp_path)
    assert found.code == 2
    assert found.err.strip().splitlines() == [
        "error: bench kernels measures a GPU: no NVIDIA driver on this machine; see `infernum doctor`"
    ]
