"""What `verify` does on a GPU, without one: kernels are played by NumPy, right ones and wrong ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from breakages import BREAKAGES, broken_bundles
from conftest import Outcome, graphs_only
from fake_gpu import FakeStream
from msgspec.structs import replace as changed
from numpy_bench import NumpyBench, Spoil
from oracle.configs import case

from infernum import fusion, plugins
from infernum.bundle import Bundle
from infernum.cli import verify_command
from infernum.compiler import Options
from infernum.dtypes import BF16, DTYPES, F32, DType
from infernum.errors import BundleError, DeviceError
from infernum.ir.op import Fused
from infernum.lab.verify import bench as bench_module
from infernum.lab.verify.bench import REPETITIONS, Bench, Time
from infernum.lab.verify.check import check_unit, plan_trials
from infernum.lab.verify.compare import WRONG, compare
from infernum.lab.verify.decompose import decomposed_graph, decomposed_programs
from infernum.lab.verify.facts import STEPS, Chunks, count_tokens, ragged_step, steps_for
from infernum.lab.verify.image import Image
from infernum.lab.verify.trials import trials
from infernum.lab.verify.units import Unit, UnitProgram, units_of
from infernum.lab.verify.values import KINDS, Kind, draw, from_bits, smallest_normal, to_bits
from infernum.lab.verify.verdict import select_units, verify_units
from infernum.manifest import Edit, VariantSpec
from infernum.models.presets import resolve
from infernum.runtime import driver
from infernum.runtime.layout import block_variant

FIVE: Chunks = ((211, 3), (64, 1), (0, 1))


def bundle_of(folder: Path, name: str, dtype: str, fuse: bool, most_tokens: int = 4096) -> Bundle:
    """An oracle case's bundle as `compile_model` writes it, but for its machine code."""
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(case(name).config), encoding="utf-8")
    options = Options(dtype=dtype, fuse=fuse, max_batch_tokens=most_tokens)
    return graphs_only(resolve(str(folder / name)), options, folder / "bundle")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("fused"), "all_biases", "bfloat16", True)


def unit_with(bundle: Bundle, block: str, op: str, variant: str = "t8") -> Unit:
    """The unit of a block that computes `op`."""
    return next(u for u in units_of(bundle, block_variant(bundle.manifest, block, variant)) if op in u.ops)


@pytest.mark.parametrize(
    ("name", "dtype", "fuse"),
    [
        ("all_biases", "bfloat16", True),
        ("all_biases", "float32", False),
        ("fourteen_to_two", "float16", True),
        ("head_128_tied", "bfloat16", False),
    ],
)
def test_kernels_that_do_what_their_node_means_pass(
    tmp_path: Path, name: str, dtype: str, fuse: bool
) -> None:
    bundle = bundle_of(tmp_path, name, dtype, fuse)
    bench = NumpyBench()
    for variants in bundle.manifest.blocks.values():
        for variant in variants.values():
            for unit in units_of(bundle, variant):
                steps = None if variant.variant == "t8" else [plan_trials(unit)[-1][0]]
                assert check_unit(bench, unit, steps=steps).wrong == [], str(unit)


# What is found.


def differences(
    bundle: Bundle,
    block: str,
    op: str,
    spoil: Spoil,
    *,
    kind: Kind = "normal",
    variant: str = "t8",
    steps: Chunks = FIVE,
) -> str:
    """The sentences on the node that computes `op` when its kernel makes a mistake."""
    unit = unit_with(bundle, block, op, variant)
    return "\n".join(check_unit(NumpyBench(spoil), unit, steps=[steps], kinds=[kind]).wrong)


def test_an_element_that_was_not_written_is_found(fused: Bundle) -> None:
    def forget(program: str, name: str, bits: np.ndarray) -> None:
        bits[-1, -1] = 0xFFFF

    assert "1 elements in 1 of 5 rows are NaN" in differences(fused, "decoder", "silu", forget)


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinity_is_found_whatever_the_values(fused: Bundle, kind: Kind) -> None:
    def overflow(program: str, name: str, bits: np.ndarray) -> None:
        bits[0, 0] = 0x7F80

    assert "NaN or infinite, the first in row 0" in differences(fused, "decoder", "silu", overflow, kind=kind)


def test_a_row_that_is_a_little_off_is_found(fused: Bundle) -> None:
    def shift(program: str, name: str, bits: np.ndarray) -> None:
        bits[3] += 3  # three units in the last place

    assert "in 1 of 5 rows the relative error is more than 0.01" in differences(
        fused, "decoder", "silu", shift
    )


def test_writing_to_the_cache_beside_the_new_positions_is_found(fused: Bundle) -> None:
    def overwrite(program: str, name: str, bits: np.ndarray) -> None:
        if name == "kv":
            bits[np.argmax((bits == 0xFFFF).all(axis=1)), 7] = 0

    assert "2 bytes of kv changed" in differences(fused, "decoder", "append", overwrite)


@pytest.mark.parametrize("fuse", [True, False])
def test_reading_a_page_behind_a_window_is_found_even_where_it_has_no_weight(
    tmp_path: Path, fuse: bool
) -> None:
    class Greedy(NumpyBench):
        """Adds to each result nothing times the keys and values of the first page of the first sequence."""

        first_pages: ClassVar[set[int]] = set()

        def _evaluate(self, image: Image, memory: np.ndarray) -> None:
            super()._evaluate(image, memory)
            places = {place.tensor: place for place in image.program.operands}
            page = int(image.value(places["page_table"], memory).view(np.int32)[0, 0])
            self.first_pages.add(page)
            cache = from_bits(image.value(places["kv"], memory), BF16)
            out = image.program.results[0]
            bits = image.value(out, memory)
            bits[:] = to_bits(from_bits(bits, BF16) + 0 * cache[max(page, 0)].sum(), BF16)

    bundle = bundle_of(tmp_path, "gemma2", "bfloat16", fuse)
    windows = {
        node.attrs["window"]: unit
        for block in bundle.manifest.blocks
        for unit in units_of(bundle, block_variant(bundle.manifest, block, "t8"))
        for node in unit.body.calls_of("attention")
    }
    assert set(windows) == {0, 40}
    for window, unit in windows.items():
        bench = Greedy()
        wrong = check_unit(bench, unit, steps=[((127, 1), (63, 1))], kinds=["normal"]).wrong
        assert check_unit(NumpyBench(), unit, steps=[((127, 1), (63, 1))], kinds=["normal"]).wrong == []
        assert bool(wrong) == bool(window) and (bench.first_pages == {-1}) == bool(window)
        assert not wrong or "NaN" in wrong[0]


def test_writing_past_the_end_of_a_result_is_found(fused: Bundle) -> None:
    def overrun(program: str, name: str, bits: np.ndarray) -> None:
        np.lib.stride_tricks.as_strided(bits, (bits.shape[0] + 1, bits.shape[1]), bits.strides)[-1, 0] = 0

    assert "2 bytes behind" in differences(fused, "decoder", "silu", overrun)


def test_a_wrong_token_is_found(fused: Bundle) -> None:
    def other(program: str, name: str, bits: np.ndarray) -> None:
        bits[2] ^= 1

    assert "1 of 3 differ, the first at (2,)" in differences(fused, "greedy", "argmax", other)


def test_a_kernel_that_does_nothing_is_found(fused: Bundle) -> None:
    class Idle(NumpyBench):
        def run(self, image: Image) -> np.ndarray:
            return image.bytes.copy()

    for block in fused.manifest.blocks:
        for unit in units_of(fused, block_variant(fused.manifest, block, "t8")):
            assert check_unit(Idle(), unit, steps=[FIVE]).wrong, f"{unit}: its results may be left out"


def test_flushing_denormal_numbers_to_zero_is_found(fused: Bundle) -> None:
    def flush(program: str, name: str, bits: np.ndarray) -> None:
        bits[(bits & 0x7F80) == 0] = 0

    assert differences(fused, "decoder", "rope", flush) == ""
    assert "relative error" in differences(fused, "decoder", "rope", flush, kind="denormal")


def test_a_last_bit_of_a_denormal_number_is_no_error() -> None:
    smallest = np.full((1, 8), 2.0**-133, np.float32)
    assert compare(2 * smallest, smallest, np.ones((1, 8), bool), BF16, BF16.tolerance)[1] is None
    assert compare(4 * smallest, smallest, np.ones((1, 8), bool), BF16, BF16.tolerance)[1] is not None


@pytest.mark.parametrize(("block", "op"), [("embed", "embedding"), ("head", "select_rows")])
def test_a_copy_that_loses_the_sign_of_zero_is_found(fused: Bundle, block: str, op: str) -> None:
    def drop_sign(program: str, name: str, bits: np.ndarray) -> None:
        bits[bits == 0x8000] = 0

    assert differences(fused, block, op, drop_sign) == ""
    assert "differ, the first at" in differences(fused, block, op, drop_sign, kind="negative zero")


def test_what_computes_may_give_either_zero(fused: Bundle) -> None:
    def drop_sign(program: str, name: str, bits: np.ndarray) -> None:
        bits[bits == 0x8000] = 0

    assert differences(fused, "decoder", "silu", drop_sign, kind="negative zero") == ""


def test_the_last_of_equal_logits_is_a_wrong_token(fused: Bundle) -> None:
    def last(program: str, name: str, bits: np.ndarray) -> None:
        bits[:] = 130

    assert "differ" in differences(fused, "greedy", "argmax", last, kind="equal rows")


# Steps and values.


@pytest.mark.parametrize("chunks", STEPS, ids=lambda chunks: f"{count_tokens(chunks)}-{chunks[0][0]}")
def test_a_ragged_step_is_one_that_a_runtime_could_be_given(chunks: Chunks) -> None:
    facts = ragged_step(chunks, 131, np.random.default_rng(0))
    arrays, tokens = facts.arrays, count_tokens(chunks)
    assert len(arrays["token_ids"]) == len(arrays["positions"]) == len(arrays["sequence"]) == tokens
    assert arrays["query_start"][-1] == tokens and (np.diff(arrays["query_start"]) > 0).all()
    used = arrays["page_table"][arrays["page_table"] >= 0]
    assert len(set(used.tolist())) == len(used) and used.max() < facts.symbols["pages"]
    assert (arrays["page_table"][arrays["sequence"], arrays["positions"] // 64] >= 0).all()
    assert (np.diff(arrays["output_rows"]) > 0).all() or facts.symbols["rows"] == 1


VARIANTS = {"t1": (1, 1), "t8": (2, 8), "t64": (9, 64), "prefill": (65, 4096)}


def spec(name: str, low: int, high: int) -> VariantSpec:
    return VariantSpec(name=name, min_tokens=low, max_tokens=high, max_rows=high)


def test_single_tokens_are_tried_around_the_ends_of_pages() -> None:
    ends = {chunks[0][0] + 1 for chunks in steps_for(spec("t1", 1, 1), 2048)}
    assert ends >= {1, 63, 64, 65, 127, 128, 129}


@pytest.mark.parametrize("name", ["t8", "t64", "prefill"])
def test_chunks_begin_and_end_at_pages_and_counts_are_odd_and_even(name: str) -> None:
    steps = steps_for(spec(name, *VARIANTS[name]), 2048)
    chunks = [chunk for step in steps for chunk in step if chunk[1] > 1]
    assert any(start % 64 == 0 and start > 0 for start, _ in chunks)
    assert any((start + new) % 64 == 0 for start, new in chunks)
    assert any(start == 0 for start, _ in chunks)
    assert {count_tokens(step) % 2 for step in steps} == {0, 1}


def test_a_class_of_decodes_is_tried_on_single_tokens_alone() -> None:
    decode = changed(spec("decode", 65, 1024), decodes=True)
    steps = steps_for(decode, 2048)
    assert {count_tokens(step) for step in steps} == {65, 70, 130}
    assert all(new == 1 for step in steps for _, new in step)


@pytest.mark.parametrize(
    ("low", "high", "context"), [(1, 1, 8), (2, 3, 3), (2, 8, 40), (9, 11, 12), (65, 65, 65), (65, 300, 4096)]
)
def test_steps_keep_within_a_variant_and_the_context(low: int, high: int, context: int) -> None:
    steps = steps_for(spec("any", low, high), context)
    assert steps
    for chunks in steps:
        assert low <= count_tokens(chunks) <= high
        assert all(start + new <= context for start, new in chunks)


@pytest.mark.parametrize("dtype", [DTYPES["bf16"], DTYPES["f16"], F32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_what_their_type_can_store(kind: Kind, dtype: DType) -> None:
    values = draw(kind, (7, 300), dtype, np.random.default_rng(0), 4.0)
    assert np.array_equal(from_bits(to_bits(values, dtype), dtype).view(np.uint32), values.view(np.uint32))
    size = np.abs(values)
    tiny = (size > 0) & (size < smallest_normal(dtype))
    assert (tiny.mean() > 0.1) == (kind == "denormal")
    negative_zeros = np.signbit(values) & (values == 0)
    assert (negative_zeros.mean() > 0.1) == (kind == "negative zero")
    assert (len(np.unique(values)) == 1) == (kind == "equal rows")


def test_large_values_stay_finite_wherever_they_are_multiplied(tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        (tmp_path / dtype).mkdir()
        bundle = bundle_of(tmp_path / dtype, "all_biases", dtype, False)
        for unit in units_of(bundle, bundle.manifest.blocks["decoder"]["t8"]):
            (trial,) = trials(unit, FIVE, ["large"])
            for result, place in zip(trial.expected, unit.program.results, strict=True):
                assert np.isfinite(result).all() or place.tensor == "kv", str(unit)
            floats = [a for a in trial.operands if a.dtype == np.float32]
            assert max(np.nanmax(np.abs(a)) for a in floats) > 7, f"{unit} has small operands"


def test_kinds_that_make_the_same_operands_are_tried_once(fused: Bundle) -> None:
    advance, append = unit_with(fused, "greedy", "advance"), unit_with(fused, "decoder", "append")
    assert [t.kind for t in trials(advance, FIVE)] == ["normal"]
    assert [t.kind for t in trials(append, FIVE)] == list(KINDS)


def test_what_knows_no_positions_is_not_tried_at_many(fused: Bundle) -> None:
    embedding, rope = unit_with(fused, "embed", "embedding", "t1"), unit_with(fused, "decoder", "rope", "t1")
    assert len(plan_trials(embedding)) == 1 < len(plan_trials(rope))


# Fused nodes taken apart.


def test_every_fused_node_is_taken_apart_into_its_ops(fused: Bundle) -> None:
    for variant in fused.manifest.blocks["decoder"].values():
        for unit in (u for u in units_of(fused, variant) if isinstance(u.node.op, Fused)):
            graph = decomposed_graph(unit)
            assert sorted(n.op.name for n in graph.calls) == sorted(unit.ops)
            roles = {unit.role(place) for place in unit.program.operands}
            assert "weight" not in roles or any(n.op.role == "weight" for n in graph.inputs)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def t8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of one and of up to eight tokens, whose fused nodes are quickly taken apart."""
    return bundle_of(tmp_path_factory.mktemp("t8"), "all_biases", "bfloat16", True, most_tokens=8)


def test_a_fused_kernel_is_compared_with_its_decomposed_form(t8: Bundle) -> None:
    verdicts = verify_units(t8, NumpyBench(), select_units(t8, block="decoder", variant="t8"))
    assert all(verdict.ok for verdict in verdicts), [verdict.wrong for verdict in verdicts]
    fused = [verdict for verdict in verdicts if verdict.rules]
    assert fused
    for verdict in fused:
        assert not verdict.note
        assert verdict.decomposed_kernels > 1 and verdict.decomposed_error is not None
        assert verdict.between is not None and verdict.between <= 2 * verdict.tolerance
        assert verdict.speed_up == verdict.decomposed_kernels / len(verdict.kernel.split(" + "))


def test_a_wrong_decomposed_form_is_told_apart_from_a_wrong_kernel(t8: Bundle) -> None:
    def spoil(program: str, name: str, bits: np.ndarray) -> None:
        if program.endswith(".decomposed"):
            bits[0, 0] ^= 0x4000

    unit = unit_with(t8, "decoder", "rope")
    units = select_units(t8, kernels=[unit.kernels[0].name], variant="t8")
    verdicts = verify_units(t8, NumpyBench(spoil), units)
    assert [
        all(what.startswith("taken apart, ") for what in v.wrong) and v.wrong != [] for v in verdicts
    ] == [True]


def test_decomposed_forms_have_kernels_of_one_op_each(t8: Bundle) -> None:
    unit = unit_with(t8, "decoder", "rope")
    program = decomposed_programs([unit])[str(unit)]
    assert isinstance(program, UnitProgram)
    assert [len(kernel.ops) for kernel in program.variant.kernels] == [1] * len(program.variant.steps)


def test_a_program_is_timed_in_a_graph_over_copies_of_its_memory(
    t8: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: set[int] = set()

    def median_ms(device: object, stream: FakeStream, call: Callable[[], None], *, runs: int) -> float:
        before = bench.gpu.eager_launches
        call()
        stream.synchronize()
        assert bench.gpu.graph_launches == 1 and bench.gpu.eager_launches == before, (
            "all of it is in the graph"
        )
        return 3.0

    class Counted(NumpyBench):
        def _evaluate(self, image: Image, memory: np.ndarray) -> None:
            bases.add(memory.ctypes.data)
            super()._evaluate(image, memory)

    monkeypatch.setattr(bench_module, "median_ms", median_ms)
    bench, unit = Counted(), unit_with(t8, "decoder", "rope")
    trial = next(trials(unit, FIVE))
    image = Image(unit.program, trial.facts, trial.operands)
    bench.play(image)
    assert Bench.time(bench, image) == Time(3e3 / REPETITIONS, in_cache=True)
    assert len(bases) == REPETITIONS
    bench.close()
    assert bench.gpu.live == []


@pytest.mark.parametrize(("variant", "flushed_is_right"), [("t8", False), ("prefill", True)])
def test_only_the_library_may_take_denormal_numbers_for_zero(
    fused: Bundle, variant: str, flushed_is_right: bool
) -> None:
    def flush(program: str, name: str, bits: np.ndarray) -> None:
        bits[(bits & 0x7F80) == 0] = 0

    steps: Chunks = FIVE if variant == "t8" else ((0, 66),)
    unit = next(
        u
        for u in units_of(fused, fused.manifest.blocks["decoder"][variant])
        if {"linear", "add"} <= {*u.ops} and "rms_norm" not in u.ops
    )
    wrong = check_unit(NumpyBench(flush), unit, steps=[steps], kinds=["denormal"]).wrong
    assert (wrong == []) == flushed_is_right


# Verdicts on bundles.


def test_a_wrong_kernel_is_named_and_the_others_pass(t8: Bundle) -> None:
    def spoil(program: str, name: str, bits: np.ndarray) -> None:
        if program == "argmax + argmax_finish":
            bits[:] = 0

    verdicts = verify_units(t8, NumpyBench(spoil), select_units(t8, block="greedy"), timed=False)
    assert {(v.kernel, v.ok) for v in verdicts} == {("argmax + argmax_finish", False), ("advance", True)}


def test_a_sampler_is_tried_on_steps_of_every_size_or_of_the_variant_asked_for(t8: Bundle) -> None:
    def sizes(**chosen: Any) -> set[tuple[int, int]]:
        """Tokens of the smallest and the largest step of each unit of the sampler."""
        units = select_units(t8, block="greedy", **chosen)
        assert {unit.variant.variant for unit in units} == {"any"} and len(units) == 2
        steps = [[count_tokens(chunks) for chunks, _ in plan_trials(unit)] for unit in units]
        return {(min(tokens), max(tokens)) for tokens in steps}

    assert sizes() == sizes(variant="any") == {(1, 8)}
    assert sizes(variant="t1") == {(1, 1)}
    assert sizes(variant="t8") == {(2, 8)}


def test_after_a_lost_gpu_nothing_more_is_tried(t8: Bundle) -> None:
    class Lost(NumpyBench):
        def run(self, image: Image) -> np.ndarray:
            assert image.program.name != "advance", "the GPU is lost"
            raise DeviceError("waiting for the GPU: a kernel read or wrote an illegal address")

    verdicts = verify_units(t8, Lost(), select_units(t8, block="greedy", variant="t1"))
    assert ["illegal address" in v.wrong[0] for v in verdicts] == [True, False]
    assert "not tried: the GPU was lost by greedy.any" in verdicts[1].wrong[0]


def test_an_edited_kernel_is_marked(t8: Bundle) -> None:
    edits = {"greedy.any.cu": Edit(emitted_sha256="", kernels=["advance"])}
    edited = replace(t8, manifest=changed(t8.manifest, edits=edits))
    verdicts = verify_units(edited, NumpyBench(), select_units(edited, block="greedy"))
    assert {(v.kernel, v.variant) for v in verdicts if v.edited} == {("advance", "any")}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"kernels": ["argmx"]}, "has no kernel 'argmx'; it has argmax"),
        ({"block": "decodr"}, "has no block 'decodr'; it has decoder"),
        ({"rule": "rope_apend"}, "has no rule 'rope_apend'; it has rope_append"),
        ({"kernels": ["argmax"], "block": "embed"}, "has no kernel argmax in that block"),
    ],
)
def test_a_name_that_a_bundle_does_not_have_is_answered_with_names_that_are_near(
    t8: Bundle, names: dict[str, str], sentence: str
) -> None:
    with pytest.raises(BundleError, match=sentence):
        select_units(t8, **names)  # type: ignore[arg-type]


def test_a_rule_selects_the_kernels_that_it_made(t8: Bundle) -> None:
    verdicts = verify_units(t8, NumpyBench(), select_units(t8, rule="attend"), timed=False)
    assert verdicts and all("attend" in v.rules for v in verdicts)


def test_a_bundle_for_another_gpu_is_refused(t8: Bundle) -> None:
    bench = NumpyBench()
    bench.gpu.arch = (8, 0)
    with pytest.raises(BundleError, match="compiled for sm_90a"):
        verify_units(t8, bench, select_units(t8))


def test_no_number_is_an_infinite_error() -> None:
    one = np.ones((1, 4), np.float32)
    assert compare(np.full((1, 4), np.nan, np.float32), one, np.ones((1, 4), bool), F32, 1.0)[0] == WRONG


# Kernels that are broken on purpose, which tests/gpu/test_verify.py runs.


def test_every_breakage_is_in_the_emitted_source_and_compiles(dante_bundle: Bundle, tmp_path: Path) -> None:
    broken = broken_bundles(dante_bundle, BREAKAGES, tmp_path)
    assert len(broken) == len(BREAKAGES) >= 10
    for breakage in BREAKAGES:
        variant = dante_bundle.manifest.blocks[breakage.block][breakage.variant]
        assert breakage.kernel in {kernel.name for kernel in variant.kernels}
        assert broken[breakage.name].read(variant.cubin) != dante_bundle.read(variant.cubin)


# The command.


def test_without_a_gpu_only_rules_are_checked_and_that_is_said(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    outcome = infernum("verify", str(t8.folder), "--rule", "attend", "--json")
    assert outcome.code == 0 and "kernels were not run" in outcome.err
    report = json.loads(outcome.out)
    assert report["kernels"] is None and report["gpu"] is None and report["ok"]
    assert [rule["rule"] for rule in report["rules"]] == ["attend"]


def test_a_wrong_kernel_is_told_in_a_sentence_and_by_the_exit_code(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(program: str, name: str, bits: np.ndarray) -> None:
        if program == "advance":
            bits[:] = 0

    a_gpu(monkeypatch, NumpyBench(spoil))
    outcome = infernum("verify", str(t8.folder), "--block", "greedy", "--variant", "t1")
    assert outcome.code == 1
    assert "WRONG" in outcome.out and "greedy.any advance is wrong: at 1 token" in outcome.out
    assert "argmax is wrong" not in outcome.out


def test_the_json_of_kernels_has_their_errors_and_speed_ups(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu(monkeypatch, NumpyBench())
    outcome = infernum("verify", str(t8.folder), "--kernel", "attend_cluster", "--variant", "t8", "--json")
    assert outcome.code == 0
    (kernel,) = json.loads(outcome.out)["kernels"]
    assert kernel["kernel"] == "attend_cluster" and kernel["ok"]
    assert kernel["error"] <= kernel["tolerance"] and kernel["decomposed_kernels"] == 5
    assert kernel["speed_up"] == 5


PLUGIN = """\
from infernum.fusion import add_rule
from infernum.ir.rewrite import rewrite
from infernum.ops import add, silu

@add_rule
@rewrite(why="Loses an addend.")
def lost_addend(x, y):
    yield silu(add(x, y))
    yield silu(x)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin with a wrong rule that fires nowhere in a Llama; forgotten after the test."""
    monkeypatch.setattr(fusion, "RULES", [*fusion.RULES])
    monkeypatch.setattr(plugins, "_loaded", {})
    path = tmp_path / "losing.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


def test_a_rule_that_the_bundle_was_compiled_without_is_checked_anyway_and_that_is_said(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch, plugin: Path
) -> None:
    no_gpu(monkeypatch)
    arguments = ("verify", t8.folder, "--rule", "lost_addend", "--plugin", plugin)
    outcome = infernum(*arguments)
    assert outcome.code == 1, outcome.err
    assert re.search(r"lost_addend +0 +\d+ .* > 1000 × +WRONG, not in this bundle", outcome.out)
    assert "lost_addend is not in this bundle: no kernel of it was made by this rule" in outcome.out
    assert "lost_addend is wrong: " in outcome.out and "lost_addend is wrong: lost_addend:" not in outcome.out
    (rule,) = json.loads(infernum(*arguments, "--json").out)["rules"]
    assert (rule["in_bundle"], rule["sites"], rule["ok"]) == (False, 0, False)


def test_rules_of_plugins_are_checked_along_with_those_of_the_bundle(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch, plugin: Path
) -> None:
    no_gpu(monkeypatch)
    outcome = infernum("verify", t8.folder, "--plugin", plugin, "--json")
    in_bundle = {rule["rule"]: rule["in_bundle"] for rule in json.loads(outcome.out)["rules"]}
    assert outcome.code == 1
    assert in_bundle == dict.fromkeys(t8.manifest.rules, True) | {"lost_addend": False}


def test_a_bundle_without_rules_says_so(
    infernum: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    bundle = bundle_of(tmp_path, "all_biases", "float32", fuse=False, most_tokens=1)
    outcome = infernum("verify", bundle.folder)
    assert (outcome.code, outcome.out) == (0, "")
    assert f"note: {bundle.folder} was compiled without any rule, so" in outcome.err


def test_an_error_that_is_no_number_is_null_in_json(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch, plugin: Path
) -> None:
    no_gpu(monkeypatch)
    plugin.write_text(PLUGIN.replace("yield silu(x)", "yield 1 // 0"), encoding="utf-8")
    outcome = infernum("verify", t8.folder, "--rule", "lost_addend", "--plugin", plugin, "--json")

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    (rule,) = json.loads(outcome.out, parse_constant=refuse)["rules"]
    assert rule["worst_error"] is None and not rule["ok"]


@pytest.mark.parametrize(
    ("error", "cells"),
    [
        (0.0, ("0", "0%")),
        (5e-4, ("5.0e-04", "50%")),
        (0.011, ("1.1e-02", "11 ×")),
        (2.0, ("2.0e+00", "> 1000 ×")),
        (float("inf"), ("wrong", "")),
    ],
)
def test_an_error_is_told_beside_its_tolerance(error: float, cells: tuple[str, str]) -> None:
    assert verify_command._error(error, 1e-3) == cells  # pyright: ignore[reportPrivateUsage]
    assert verify_command._error(error, 0.0)[1] == ""  # pyright: ignore[reportPrivateUsage]


def test_an_unknown_kernel_is_refused_in_one_line_with_or_without_a_gpu(
    infernum: Callable[..., Outcome], t8: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    outcome = infernum("verify", str(t8.folder), "--kernel", "gemv_down")
    assert outcome.code == 2 and "it has gemv_down_proj" in outcome.err and outcome.err.count("\n") == 1


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpu_available", lambda: False)


def a_gpu(monkeypatch: pytest.MonkeyPatch, bench: NumpyBench) -> None:
    monkeypatch.setattr(driver, "gpu_available", lambda: True)
    monkeypatch.setattr(bench_module, "open_bench", lambda: nullcontext(bench))


def test_where_the_reference_is_no_number_a_result_must_be_the_same_and_written() -> None:
    def sentence_on(result: list[float], reference: list[float], poisoned: bool = False) -> str | None:
        arrays = [np.array([values], np.float32) for values in (result, reference)]
        every = np.ones((1, len(result)), bool)
        poison = np.full((1, len(result)), poisoned)
        return compare(arrays[0], arrays[1], every, F32, 1e-5, poisoned=poison)[1]

    inf, nan = np.inf, np.nan
    assert sentence_on([1, inf, nan], [1, inf, nan]) is None
    for result in ([1, -inf, nan], [1, inf, 3], [1, 3, nan], [nan, inf, nan], [2, inf, nan]):
        assert sentence_on(result, [1, inf, nan]) is not None
    assert sentence_on([1, nan], [1, nan], poisoned=True) is not None
