"""`infernum tune`: what may be chosen, the race, what is kept and told, and the whole search on a made-up GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import toy_bundle as toy
from clock_gpu import MICROSECONDS, clock_gpu, described_toy, open_clocked
from conftest import Outcome, graphs_only

from infernum import machine
from infernum.bundle import Bundle, open_bundle, write_bundle
from infernum.codegen.emit import emit_block
from infernum.codegen.plan import plan_block
from infernum.codegen.tuned import load_tuned, store_tuned, tuned_path
from infernum.compiler import Options, cached_bundle, emit_sources
from infernum.dtypes import BF16
from infernum.errors import DeviceError, RequestError
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Layout, Refusal, Target, Template, Tuned, alternatives
from infernum.ir.parameters import MOST_CANDIDATES, ParameterSpace, settle
from infernum.lab.explain.kernel import explain_kernels
from infernum.lab.explain.kernel_text import kernel_text
from infernum.lab.measure import tune as tuning
from infernum.lab.measure.candidates import (
    CandidateBundle,
    Tunable,
    candidates_of,
    compile_candidates,
    compile_default,
    tunables,
    write_candidates,
)
from infernum.lab.measure.race import PairedDifferences, race, winner
from infernum.lab.measure.tuning_result import TuningResult
from infernum.lab.measure.variant_timer import VariantTimer
from infernum.lab.measure.workload import workload
from infernum.lab.rebuild.edited import rebuild_bundle
from infernum.manifest import ANY, SCHEMA, Kernel, Launch
from infernum.models.config import config_hash
from infernum.models.presets import resolve
from infernum.runtime.driver import DriverFacts, GpuFacts
from infernum.runtime.layout import block_variant

H200 = "NVIDIA H200"
T1 = Target(90, "t1", 1, 1, BF16)
CALL = Call("linear", {"x": TensorType(("tokens", 64), BF16)}, {}, {"scale": 0.5})


def template(**candidates: tuple[int, ...]) -> Template:
    """A kernel of these parameters, of which 3 is never possible."""

    def layouts(call: Call, target: Target) -> Iterator[Layout | Refusal]:
        for values in alternatives(**candidates):
            yield Refusal("three") if 3 in values.values() else Layout({}, values)

    return Template("made_up", layouts)


def settled(
    spec: Template, target: Target = T1, call: Call = CALL, ops: Sequence[str] = ("linear",)
) -> ParameterSpace:
    """What may be chosen of a kernel, and what was chosen."""
    _, parameters = settle(spec, call, target, ops)
    assert parameters is not None
    return parameters


def every_kernel(bundle: Bundle) -> list[Kernel]:
    return [k for block in bundle.manifest.blocks.values() for v in block.values() for k in v.kernels]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own for what is tuned; compiled kernels are shared, as they take long."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("infernum.codegen.tuned.cache_folder", lambda: folder)
    return folder


# What may be chosen.


def test_the_first_candidates_are_the_default() -> None:
    found = settled(template(THREADS=(512, 256), LOADS=(4, 8)))
    assert dict(found.values) == dict(found.default) == {"THREADS": 512, "LOADS": 4}
    assert len(found.candidates) == 4 and found.why == ""


def test_a_kernel_without_a_real_choice_has_no_parameters() -> None:
    for spec in (
        template(),
        template(THREADS=(512,)),
        template(THREADS=(512, 512)),
        template(THREADS=(512, 3)),
    ):
        layout, parameters = settle(spec, CALL, T1, ["linear"])
        assert isinstance(layout, Layout) and parameters is None


def test_a_kernel_that_cannot_serve_a_call_has_neither_a_layout_nor_parameters() -> None:
    assert settle(template(THREADS=(3, 256)), CALL, T1, ["linear"]) == (Refusal("three"), None)


def test_tuned_values_are_taken_and_values_that_are_no_longer_offered_are_not() -> None:
    spec = template(THREADS=(512, 256))
    found = settled(spec)
    for value, expected, why in ((256, 256, "timed"), (128, 512, "")):
        target = dataclasses.replace(T1, tuned={found.key: Tuned({"THREADS": value}, "timed")})
        again = settled(spec, target)
        assert again.key == found.key
        assert (again.values["THREADS"], again.why) == (expected, why)


def test_what_is_refused_is_no_candidate_and_many_combinations_are_tried_one_parameter_at_a_time() -> None:
    assert [c["A"] for c in settled(template(A=(1, 2, 3))).candidates] == [1, 2]
    many = settled(template(A=tuple(range(10)), B=tuple(range(10))))
    assert len(many.candidates) == 17 < MOST_CANDIDATES, "10 + 9, without those of a 3"
    assert all(sum(value != 0 for value in each.values()) <= 1 for each in many.candidates)


@pytest.mark.parametrize(
    "change",
    [
        lambda call, target, ops: (call, dataclasses.replace(target, variant="t8", max_tokens=8), ops),
        lambda call, target, ops: (call, dataclasses.replace(target, arch=80), ops),
        lambda call, target, ops: (call, target, [*ops, "add"]),
        lambda call, target, ops: (dataclasses.replace(call, attrs={"scale": 0.25}), target, ops),
        lambda call, target, ops: (
            dataclasses.replace(call, operands={"x": TensorType(("tokens", 128), BF16)}),
            target,
            ops,
        ),
    ],
    ids=["variant", "architecture", "fused ops", "attribute", "shape"],
)
def test_a_choice_is_known_by_all_that_it_may_depend_on(change: Callable[..., Any]) -> None:
    spec = template(THREADS=(512, 256))
    call, target, ops = change(CALL, T1, ["linear"])
    assert settled(spec).key != settled(spec, target, call, ops).key


@pytest.mark.parametrize("model", ["dante", "llama"])
@pytest.mark.parametrize("fuse", [True, False])
def test_every_candidate_can_be_planned(model: str, fuse: bool) -> None:
    sources = emit_sources(resolve(model), Options(fuse=fuse, max_batch_tokens=512))
    seen = 0
    for variant in ("t1", "t8", "prefill"):
        blocks = {block.name for block, _ in sources.program.stages} | {"greedy"}
        for tunable in tunables(sources, variant, blocks):
            for candidate in candidates_of(tunable, seen):
                values = candidate.changes[tunable.parameters.key]
                tuned = {tunable.parameters.key: Tuned(values, "tried")}
                again = emit_again(sources, variant, tuned)
                assert [dict(p.values) for p in again if p.key == tunable.parameters.key] == [
                    dict(values)
                ] * len(tunable.kernels)
                seen += 1
    assert seen >= 20


def emit_again(sources: Any, variant: str, tuned: Mapping[str, Tuned]) -> list[Any]:
    """The parameters of all kernels of a variant's blocks, emitted again with some tuned."""
    found = []
    for block in (b for b in sources.blocks if b.target.variant in (variant, ANY) and b.block != "sample"):
        plan = plan_block(block.plan.graph, dataclasses.replace(block.target, tuned=tuned))
        assert emit_block(plan, "again")
        found += [s.parameters for s in plan.steps if getattr(s, "parameters", None) is not None]
    return found


def test_a_sampler_is_tuned_once_in_the_step_of_the_first_variant() -> None:
    sources = emit_sources(resolve("dante"), Options(max_batch_tokens=8))
    for variants in (("t1", "t8"), ("t8", "t1")):
        found = tuning.tunables_of(tuning.TuneRequest(resolve("dante"), variants=variants), sources)
        of_sampler = [each for each in found if any(block == "greedy" for block, _ in each.kernels)]
        assert [each.variant for each in of_sampler] == [variants[0]]
        assert {each.variant for each in found} == set(variants)


def test_a_candidate_for_a_sampler_runs_in_its_own_variant_and_the_others_run_the_default(
    tmp_path: Path,
) -> None:
    sources = emit_sources(resolve("dante"), Options(max_batch_tokens=8))
    base = compile_default(sources)
    (argmax,) = tunables(sources, "t1", ["greedy"])
    (compiled,) = compile_candidates(sources, base, candidates_of(argmax, 0)[:1])
    manifest = write_candidates(tmp_path / "candidate_bundle", sources, base, [compiled]).manifest
    assert set(manifest.blocks["greedy"]) == {ANY, "t1.0"} and set(manifest.blocks["sample"]) == {ANY}
    default, tried = (block_variant(manifest, "greedy", name) for name in ("t1", "t1.0"))
    assert default.variant == ANY and tried.variant == "t1.0"
    assert tried.buffers.keys() == default.buffers.keys() and tried.source != default.source


def test_candidates_compile_and_what_spills_or_comes_too_late_is_refused() -> None:
    sources = emit_sources(resolve("dante"), Options(max_batch_tokens=1))
    base = compile_default(sources)
    (argmax,) = tunables(sources, "t1", ["greedy"])
    candidates = candidates_of(argmax, 0)
    compiled = compile_candidates(sources, base, candidates)
    assert [c.candidate for c in compiled] == candidates
    assert not any(c.refused for c in compiled), [c.refused for c in compiled]
    late = compile_candidates(sources, base, candidates, lambda: False)
    assert all("time was up" in c.refused for c in late)
    nothing_spills = {
        name: dataclasses.replace(
            c, kernels={k: dataclasses.replace(r, spill_bytes=-1) for k, r in c.kernels.items()}
        )
        for name, c in base.items()
    }
    spilling = compile_candidates(sources, nothing_spills, candidates[:1])
    assert "spills" in spilling[0].refused


# The race.


def clocked(
    times: Mapping[str, float], seed: int = 0, noise: float = 0.2, drift: float = 0.5
) -> Callable[[str], float]:
    """A GPU's clock that drifts: each sample is later, and so slower, than the one before."""
    rng, now = random.Random(seed), [0.0]

    def sample(name: str) -> float:
        now[0] += drift
        return times[name] + now[0] + rng.gauss(0, noise)

    return sample


def test_the_fastest_wins_although_the_clock_drifts() -> None:
    times = {"default": 700.0, "a": 703.0, "b": 695.0, "c": 698.0}
    found = race("default", ["a", "b", "c"], clocked(times), lambda: True)
    assert winner(found, 100.0) == "b"
    assert found["b"].median == pytest.approx(
        -4.5, abs=0.5
    )  # half a microsecond of drift between two samples
    assert found["b"].last and not found["a"].last


def test_noise_hardly_ever_wins_and_a_real_gain_hardly_ever_loses() -> None:
    wrong = missed = 0
    for seed in range(200):
        times = dict.fromkeys(("default", *"abcdef"), 700.0)
        found = race("default", list("abcdef"), clocked(times, seed, noise=1.0, drift=0.0), lambda: True)
        wrong += winner(found, 100.0) is not None
        found = race("default", list("abcdef"), clocked(times | {"c": 696.0}, seed, noise=1.0), lambda: True)
        missed += winner(found, 100.0) != "c"
    assert wrong <= 4 and missed <= 4


def test_a_gain_below_half_a_percent_of_the_kernel_is_none() -> None:
    comparison = PairedDifferences([-0.4] * 8, last=True)
    assert winner({"a": comparison}, 100.0) is None
    assert winner({"a": comparison}, 50.0) == "a"


def test_a_few_samples_decide_nothing() -> None:
    assert winner({"a": PairedDifferences([-10.0] * 7, last=True)}, 1.0) is None
    assert winner({"a": PairedDifferences([-10.0] * 8)}, 1.0) is None, (
        "the first rounds choose who takes part in the last"
    )
    assert winner({}, 1.0) is None


def test_a_race_ends_when_the_time_is_up() -> None:
    left = iter([True] * 5)
    found = race("default", ["a", "b"], lambda name: 1.0, lambda: next(left, False))
    assert sum(each.samples for each in found.values()) == 5


def test_variants_that_are_still_to_come_share_what_is_left_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 42.0  # compiling took that long
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    ends: list[float] = []
    for to_come in (3, 2, 1):
        ends.append(tuning.end_of_turn(90.0, to_come))
        assert tuning.still_before(ends[-1])()
        clock = ends[-1]
        assert not tuning.still_before(ends[-1])()
    assert ends == [58.0, 74.0, 90.0]
    clock = 100.0
    assert not tuning.still_before(tuning.end_of_turn(90.0, 2))()


# What is kept, and told.


def test_what_was_kept_is_found_again_for_that_gpu_and_model_alone() -> None:
    store_tuned(H200, "model", {"one": Tuned({"THREADS": 256}, "timed")})
    store_tuned(H200, "model", {"two": Tuned({"LOADS": 8}, "timed")})
    found = load_tuned(H200, "model")
    assert found == {"one": Tuned({"THREADS": 256}, "timed"), "two": Tuned({"LOADS": 8}, "timed")}
    assert load_tuned("NVIDIA A100", "model") == {} == load_tuned(H200, "another")


def test_several_processes_keep_what_they_found_at_the_same_time() -> None:
    def keep(number: int) -> None:
        for each in range(20):
            store_tuned(H200, "model", {f"{number}.{each}": Tuned({"LOADS": each}, "timed")})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep, range(4)))
    assert len(load_tuned(H200, "model")) == 80


def test_what_was_kept_holds_for_the_templates_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tuned_path(H200, "model")
    plugin = tmp_path / "templates"
    plugin.mkdir()
    (plugin / "gemv.cu.j2").write_text("// another\n")
    monkeypatch.setattr("infernum.codegen.tuned.FOLDERS", [plugin])
    assert tuned_path(H200, "model") != before


def test_a_damaged_file_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    path = store_tuned(H200, "model", {})
    path.write_text("{")
    assert load_tuned(H200, "model") == {}
    assert "tune the model again" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file in the way")
    with pytest.raises(RequestError, match="INFERNUM_CACHE"):
        store_tuned(H200, "model", {})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle, str]:
    """The demo as it is by default, the same with argmax tuned, and the key that was tuned."""
    folder = tmp_path_factory.mktemp("tuned")
    default = graphs_only(resolve("dante"), Options(), folder / "default")
    chosen = block_variant(default.manifest, "greedy", "t1").kernels[0].parameters
    assert chosen is not None
    tuned = {
        chosen.key: Tuned({**chosen.default, "THREADS": 128}, "tuned on NVIDIA H200, 2026-11-23: 3.10 µs")
    }
    return default, graphs_only(resolve("dante"), Options(tuned=tuned), folder / "tuned"), chosen.key


def test_the_manifest_says_what_was_chosen_and_why(bundles: tuple[Bundle, Bundle, str]) -> None:
    default, tuned, key = bundles
    for bundle, threads, why in ((default, 256, "default for sm_90a"), (tuned, 128, "tuned on NVIDIA H200")):
        chosen = [k.parameters for k in every_kernel(bundle) if k.parameters and k.parameters.key == key]
        assert len(chosen) == 2, "the kernel that finishes the search has the same choice"
        assert all(p.values["THREADS"] == threads and p.default["THREADS"] == 256 for p in chosen)
        assert all(p.why.startswith(why) and p.candidates > 2 for p in chosen)
    changed = [k for k in every_kernel(tuned) if k.parameters and k.parameters.values != k.parameters.default]
    assert {k.template for k in changed} == {"argmax", "argmax_finish"}
    step = block_variant(tuned.manifest, "greedy", "t1").steps[0]
    assert isinstance(step, Launch) and step.block == [128, 1, 1]


def test_explain_tells_the_parameters_of_a_kernel(bundles: tuple[Bundle, Bundle, str]) -> None:
    default, tuned, _ = bundles
    text = explained(tuned)
    assert "Parameters" in text and "default 256" in text and "tuned on NVIDIA H200, 2026-11-23" in text
    text = explained(default)
    assert "default for sm_90a; 8 combinations to choose among" in text and "default 256" not in text


def explained(bundle: Bundle) -> str:
    (told,) = explain_kernels(bundle, "argmax", [block_variant(bundle.manifest, "greedy", "t1")])
    return "\n".join(str(line) for line in kernel_text(told, 160))


def test_diff_names_the_parameters(
    infernum: Callable[..., Outcome], bundles: tuple[Bundle, Bundle, str]
) -> None:
    default, tuned, _ = bundles
    found = infernum("diff", default.folder, tuned.folder, "--json")
    assert found.code == 0, found.err
    kernels = {k["name"]: k["what"] for k in json.loads(found.out)["kernels"]}
    assert "parameters" in kernels["argmax"] and "launch" in kernels["argmax"]


def test_the_choice_outlives_an_edit_by_hand(dante_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(dante_bundle.folder, folder)
    source = folder / "greedy.any.cu"
    source.write_text(source.read_text() + "// edited\n")
    outcome = rebuild_bundle(open_bundle(folder), cache=None)
    assert [file.file for file in outcome.files] == ["greedy.any.cu"]
    kept = block_variant(outcome.bundle.manifest, "greedy", "t1").kernels[0].parameters
    assert kept is not None
    assert kept == block_variant(dante_bundle.manifest, "greedy", "t1").kernels[0].parameters


def test_an_older_bundle_is_refused_with_what_to_do(
    infernum: Callable[..., Outcome], bundles: tuple[Bundle, Bundle, str], tmp_path: Path
) -> None:
    default, *_ = bundles
    files = {name: default.read(name) for name in default.checksums if name != "manifest.json"}
    old = write_bundle(tmp_path / "old", msgspec.structs.replace(default.manifest, schema=2), files)
    found = infernum("inspect", old.folder)
    assert found.code == 2 and f"schema 2, this version reads {SCHEMA}; compile the model again" in found.err


def test_a_bundle_with_other_choices_is_another_bundle_in_the_cache(
    bundles: tuple[Bundle, Bundle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, key = bundles
    made: list[Path] = []
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "infernum.compiler.compile_model", lambda s, o, folder, progress=None: made.append(folder)
    )
    for tuned in ({}, {key: Tuned({"TILE": 1024}, "timed")}, {key: Tuned({"TILE": 4096}, "timed")}, {}):
        cached_bundle(resolve("dante"), Options(tuned=tuned))
    assert len(set(made)) == 3 and made[0] == made[3]


# On a GPU with a clock.


@pytest.fixture
def candidate_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CandidateBundle:
    """The toy with two more variants of its decode: one whose `mean` is faster, one whose `mean` is wrong."""
    bundle = described_toy(tmp_path)
    manifest, kernels = bundle.manifest, {"t1.0": "fast_mean", "t1.1": "wrong_mean"}
    blocks = {name: dict(each) for name, each in manifest.blocks.items()}
    for name, kernel in kernels.items():
        for of_block in (each for each in blocks.values() if "t1" in each):
            steps = [
                msgspec.structs.replace(s, kernel=kernel)
                if isinstance(s, Launch) and s.kernel == "mean"
                else s
                for s in of_block["t1"].steps
            ]
            of_block[name] = msgspec.structs.replace(of_block["t1"], variant=name, steps=steps)
    specs = [*manifest.variants, *(msgspec.structs.replace(manifest.variants[0], name=n) for n in kernels)]
    manifest = msgspec.structs.replace(manifest, blocks=blocks, variants=specs)
    written = toy.toy_bundle(tmp_path / "candidate_bundle", manifest)
    return CandidateBundle(written.folder, written.manifest, written.checksums)


def test_variants_are_timed_in_the_whole_step_and_wrong_ones_are_refused(
    candidate_bundle: CandidateBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = clock_gpu()
    signature, mean = toy.KERNELS["mean"]

    def fast(*arguments: Any) -> None:
        mean(*arguments)
        gpu.tick("fast_mean")

    def wrong(grid: Any, h: int, *arguments: Any) -> None:
        mean(grid, h, *arguments)
        toy.at(h, "float32", grid[0], toy.WIDTH)[:] *= -3
        gpu.tick("fast_mean")

    monkeypatch.setitem(MICROSECONDS, "fast_mean", 1.0)
    gpu.kernels |= {"fast_mean": (signature, fast), "wrong_mean": (signature, wrong)}
    load = workload(candidate_bundle, variant="t1", tokens=None, context=12, room=8, seed=0)
    with (
        open_clocked(gpu, candidate_bundle, max_model_len=load.length, pages=load.pages.size) as executor,
        ExitStack() as stack,
    ):
        timer = VariantTimer(executor, candidate_bundle, load, stack)
        with ExitStack() as opened:
            assert timer.open("t1.0", opened) == ""
            assert "logits differ" in timer.open("t1.1", opened)
            gain = timer.sample("t1") - timer.sample("t1.0")
            assert gain == pytest.approx(toy.LAYERS * (MICROSECONDS["mean"] - 1.0))
        with pytest.raises(KeyError):
            timer.sample("t1.0")
        launches, us = timer.kernel_us()["decoder", "mean"]
        assert (launches, us) == (toy.LAYERS, pytest.approx(MICROSECONDS["mean"]))
    assert candidate_bundle.serving == [] and not gpu.live


# The whole search, with times that are made up.


class FakeTimer:
    """Times of the step by what is chosen: argmax is best with 128 threads and the largest tile, all else as it is."""

    def __init__(self, executor: Any, candidate_bundle: CandidateBundle, load: Any, stack: ExitStack) -> None:
        self._bundle, self._variant, self._rng = candidate_bundle, load.variant, random.Random(1)

    def open(self, variant: str, stack: ExitStack) -> str:
        return ""

    def sample(self, variant: str) -> float:
        us = 700.0 + self._rng.gauss(0, 0.05)
        for name, block in self._bundle.manifest.blocks.items():
            for kernel in block.get(variant, block.get(ANY)).kernels:
                chosen = kernel.parameters
                if chosen is None or chosen.values == chosen.default:
                    continue
                if kernel.template == "argmax":
                    us -= chosen.values["TILE"] / 1024 if chosen.values["THREADS"] == 128 else -3.0
                elif name == "decoder":
                    us += 3.0
        return us

    def kernel_us(self) -> dict[tuple[str, str], tuple[int, float]]:
        blocks = self._bundle.manifest.blocks
        return {
            (name, kernel.name): (4 if name == "decoder" else 1, 5.0)
            for name, block in blocks.items()
            if name != "sample"
            for kernel in block.get(self._variant, block.get(ANY)).kernels
        }


def few(sources: Any, variant: str, blocks: Any) -> list[Tunable]:
    """All candidates of argmax, and two of one kernel of the decoder, since each is compiled."""
    first, *_ = tunables(sources, variant, ["decoder"])
    less = dataclasses.replace(first.parameters, candidates=first.parameters.candidates[:3])
    of_sampler = tunables(sources, variant, {"greedy"} & set(blocks))
    return [dataclasses.replace(first, parameters=less), *of_sampler]


@pytest.fixture
def gpu_made_up(monkeypatch: pytest.MonkeyPatch) -> type[FakeTimer]:
    facts = DriverFacts("13.0", (GpuFacts(0, H200, (9, 0), 132, 232448, 1 << 37),))
    for module in ("lab.measure.subject", "lab.measure.origin", "runtime.driver"):
        monkeypatch.setattr(f"infernum.{module}.describe", lambda: facts)
    monkeypatch.setattr(tuning, "VariantTimer", FakeTimer)
    monkeypatch.setattr(tuning.CudaExecutor, "open", lambda *given, **more: contextlib.nullcontext())
    monkeypatch.setattr(tuning, "tunables", few)
    monkeypatch.setattr(machine.driver, "gpu_available", lambda: True)
    monkeypatch.setattr(machine.driver, "gpu_facts", lambda index: facts.gpus[0])
    return FakeTimer


def fine(bundle: Bundle, variant: str, kernels: Any) -> dict[tuple[str, str], str]:
    return {}


@pytest.mark.usefixtures("gpu_made_up")
def test_the_fastest_that_is_right_is_kept_and_the_next_compile_takes_it_up(
    infernum: Callable[..., Outcome], tmp_path: Path
) -> None:
    request = tuning.TuneRequest(resolve("dante"), variants=("t1",), context=128, budget=600.0)
    results = tuning.tune(request, fine)
    other, argmax = results["kernels"]
    assert argmax["kernel"] == "argmax + argmax_finish"
    assert argmax["after"] == {"TILE": 4096, "THREADS": 128} != argmax["before"]
    assert argmax["after_us"] == pytest.approx(argmax["before_us"] - 4.0, abs=0.2)
    assert (
        argmax["why"].startswith(f"tuned on {H200}, 20") and "default TILE 2048, THREADS 256" in argmax["why"]
    )
    assert other["after"] == other["before"] and "none was faster" in other["why"]
    assert results["complete"] and all(row["decided"] for row in results["kernels"])
    (step,) = results["steps"]
    assert step["before_us"] - step["after_us"] == pytest.approx(4.0, abs=0.2)
    json.dumps(results, allow_nan=False)
    for options, threads, kernels in (((), 128, 2), (("--no-tuned",), 256, 0)):
        out = tmp_path / f"dante{threads}"
        found = infernum("compile", "dante", "-o", out, "--json", *options)
        assert found.code == 0, found.err
        assert json.loads(found.out)["tuned_kernels"] == kernels
        told = infernum("explain", out, "kernel:argmax", "--variant", "t1", "--json")
        chosen = json.loads(told.out)["kernels"][0]["facts"]["kernel"]["parameters"]
        assert chosen["values"]["THREADS"] == threads
    assert load_tuned(H200, config_hash(resolve("dante").config))[argmax["key"]].values["THREADS"] == 128


@pytest.mark.usefixtures("gpu_made_up")
def test_a_winner_that_numpy_does_not_agree_with_is_not_kept() -> None:
    asked: list[str] = []

    def check(bundle: Bundle, variant: str, kernels: Any) -> dict[tuple[str, str], str]:
        asked.append(variant)
        return {name: "3 elements differ" for name in kernels if name[1] == "argmax"}

    request = tuning.TuneRequest(resolve("dante"), variants=("t1",), context=128, budget=600.0)
    results = tuning.tune(request, check)
    row = next(r for r in results["kernels"] if r["kernel"].startswith("argmax"))
    assert asked == ["t1.with0"]
    assert row["after"] == row["before"] and "wrong: 3 elements differ" in row["refused"].values()
    assert results["steps"][0]["after_us"] == results["steps"][0]["before_us"]


@pytest.mark.usefixtures("gpu_made_up")
def test_a_budget_that_is_used_up_keeps_what_was_decided_and_says_what_was_not() -> None:
    results = tuning.tune(
        tuning.TuneRequest(resolve("dante"), variants=("t1",), context=128, budget=1e-6), fine
    )
    assert not results["complete"] and results["kept"] is None
    assert {row["why"] for row in results["kernels"]} == {"not decided: the time was up"}


def found_of(name: str, values: dict[str, int]) -> TuningResult:
    chosen = settled(template(A=(1, 2)), ops=[name])
    return TuningResult(Tunable("t1", (("decoder", name),), chosen), 4, 5.0, 1.0, values, True)


def test_of_the_winners_those_are_kept_that_are_fastest_together() -> None:
    winners = [found_of(name, {"A": 2}) for name in ("one", "two")]
    tried = tuning.combinations("t1", winners)
    assert [len(each.changes) for each in tried] == [2, 1, 1]
    without_one = next(c for c in tried if list(c.changes) == [winners[1].key])
    times = {c.name: PairedDifferences([-6.0 if c is without_one else -2.0] * 8, last=True) for c in tried}
    assert tuning.settle_together(winners, tried, times) == 6.0
    assert not winners[0].changed and winners[1].changed
    nothing = {c.name: PairedDifferences([1.0] * 8, last=True) for c in tried}
    assert tuning.settle_together(winners, tried, nothing) == 0.0
    assert not any(each.changed for each in winners)


# The command line.


def test_without_a_gpu_the_command_says_so_on_one_line(
    infernum: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> DriverFacts:
        raise DeviceError("no NVIDIA driver is installed")

    monkeypatch.setattr("infernum.lab.measure.subject.describe", none)
    found = infernum("tune", "dante")
    assert found.code == 2 and found.out == ""
    assert (
        found.err.strip()
        == "error: tune measures a GPU: no NVIDIA driver is installed; see `infernum doctor`"
    )


@pytest.mark.usefixtures("gpu_made_up")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variant", "t9"), "--variant is 't9'; this model has t1, t8, t64, d128, decode, prefill"),
        (("--budget", "0"), "it must be more than 0 seconds"),
        (("--context", "0"), "contexts of 1 to"),
        (("--variant", "prefill", "--prompt", "0"), "--prompt is 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    infernum: Callable[..., Outcome], options: tuple[str, ...], message: str
) -> None:
    found = infernum("tune", "dante", *options)
    assert found.code == 2 and message in found.err and len(found.err.splitlines()) == 1


@pytest.mark.usefixtures("gpu_made_up")
def test_the_table_tells_what_was_changed(
    infernum: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infernum.cli.tune_command._check", fine)
    found = infernum(
        "tune", "dante", "--variant", "t1", "--context", "128", "--budget", "600", "-o", tmp_path / "dante"
    )
    assert found.code == 0, found.err
    words = " ".join(found.out.split())
    assert "TILE 2048, THREADS 256" in words and "TILE 4096, THREADS 128" in words and "the same" in words
    assert "The step, as one graph" in words and str(tmp_path / "dante") in words
    assert (tmp_path / "dante" / "manifest.json").is_file()
