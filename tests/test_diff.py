"""`infernum diff`: the same bundle, one with and one without rules, one edited by hand, and what counts as worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Outcome

from infernum.bundle import Bundle, open_bundle, write_bundle
from infernum.errors import BundleError
from infernum.lab.explain.diff_text import diff_text
from infernum.lab.explain.difference import BundleDiff, difference, regressions
from infernum.lab.explain.measurements import MeasuredKernel, Measurements
from infernum.lab.explain.text_diff import graph_diff
from infernum.manifest import Edit, Manifest


def shown(told: BundleDiff, width: int = 160) -> str:
    return "\n".join(line.plain for line in diff_text(told, width))


def altered(
    bundle: Bundle,
    folder: Path,
    files: dict[str, Callable[[str], str]],
    change: Callable[[Manifest], Manifest],
) -> Bundle:
    """A copy of a bundle with some of its texts and its manifest changed."""
    texts = {
        name: (bundle.folder / name).read_bytes() for name in bundle.checksums if name != "manifest.json"
    }
    texts |= {name: edit(texts[name].decode()).encode() for name, edit in files.items()}
    return write_bundle(folder, change(bundle.manifest), texts)


def with_kernel(manifest: Manifest, block: str, variant: str, kernel: str, **changes: Any) -> Manifest:
    """The manifest with some facts of one kernel changed."""
    found = manifest.blocks[block][variant]
    kernels = [msgspec.structs.replace(k, **changes) if k.name == kernel else k for k in found.kernels]
    variants = manifest.blocks[block] | {variant: msgspec.structs.replace(found, kernels=kernels)}
    return msgspec.structs.replace(manifest, blocks=manifest.blocks | {block: variants})


@pytest.fixture
def edited(dante_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Dante with one line of one kernel changed by hand, and said so."""
    edit = Edit(emitted_sha256=dante_bundle.checksums["decoder.t1.cu"], kernels=["gemv_mma_o_proj"])

    def in_source(text: str) -> str:
        before, mark, after = text.partition("\n// ---- gemv_mma_o_proj\n")
        return before + mark + after.replace("int slot = 0;", "int slot = 0;  // mine", 1)

    def in_manifest(manifest: Manifest) -> Manifest:
        manifest = with_kernel(manifest, "decoder", "t1", "gemv_mma_o_proj", registers=200, spill_bytes=16)
        return msgspec.structs.replace(manifest, edits={"decoder.t1.cu": edit})

    return altered(dante_bundle, tmp_path / "edited", {"decoder.t1.cu": in_source}, in_manifest)


def test_a_bundle_does_not_differ_from_itself(dante_bundle: Bundle) -> None:
    found = difference(dante_bundle, dante_bundle)
    assert found.is_empty
    assert shown(found).splitlines()[-1] == "no differences"
    assert regressions(found) == []


def test_a_bundle_without_rules_has_each_kernel_apart(dante_bundle: Bundle, dante_unfused: Bundle) -> None:
    found = difference(dante_unfused, dante_bundle, block="decoder", variant="t1")
    assert {fact.name: (fact.a, fact.b) for fact in found.facts}["fuse"] == ("no", "yes")
    (summary,) = found.summary
    assert summary.a is not None
    assert summary.b is not None
    assert (summary.a.kernels, summary.b.kernels) == (18, 5)
    status = {kernel.name: kernel.status for kernel in found.kernels}
    assert status["gemv_mma_q_k_v_proj"] == "added"
    assert status["gemv_mma_q_proj"] == "removed"
    assert status["gemv_mma_o_proj"] == "changed"
    instead = {kernel.name: kernel.instead for kernel in found.kernels}
    assert instead["gemv_mma_gate_up_proj"] == [
        "rms_norm_post_attention_layernorm", "gemv_mma_gate_proj", "gemv_mma_up_proj", "silu", "mul",
    ]  # fmt: skip
    assert instead["silu"] == ["gemv_mma_gate_up_proj"]
    fired = {rule.rule: (rule.fired_a, rule.fired_b) for rule in found.rules}
    assert fired["into_prologue"] == (0, 4)
    assert "18 → 5" in shown(found)


def test_a_rule_that_is_refused_in_one_bundle_only_says_why(
    dante_bundle: Bundle, dante_unfused: Bundle
) -> None:
    found = difference(dante_unfused, dante_bundle, block="head", variant="decode")
    (refused,) = [rule for rule in found.rules if rule.rule == "into_prologue"]
    reason = "linear_1 is computed by cublaslt: the library reads rows as they are: it has no prologue"
    assert refused.refusals_new == [f"rms_norm_1, linear_1: {reason}"]
    assert f"now refused at rms_norm_1, linear_1: {reason}" in shown(found)


def test_every_kernel_is_told_of_or_alike(dante_bundle: Bundle, dante_unfused: Bundle) -> None:
    found = difference(dante_unfused, dante_bundle, source=False)
    for where in (summary.where for summary in found.summary):
        block, variant = where.split(".")
        names = [
            {k.name for k in b.manifest.blocks[block][variant].kernels} for b in (dante_unfused, dante_bundle)
        ]
        told = [kernel for kernel in found.kernels if kernel.where == where]
        assert {k.name for k in told if k.status == "added"} == names[1] - names[0]
        assert {k.was for k in told if k.status == "removed"} == names[0] - names[1]


def test_a_sampler_belongs_to_the_step_of_every_variant(dante_bundle: Bundle, dante_unfused: Bundle) -> None:
    for variant, tokens in (("t1", 1), ("t8", 8)):
        found = difference(dante_unfused, dante_bundle, variant=variant, source=False)
        assert {s.where: s.tokens for s in found.summary}["greedy.any"] == tokens
    with pytest.raises(BundleError, match="the variants t1, t8, t64, d128, decode, prefill, any"):
        difference(dante_unfused, dante_bundle, variant="t9")


def test_the_graph_of_a_block_is_compared_by_node_and_by_line(
    dante_bundle: Bundle, dante_unfused: Bundle
) -> None:
    (graph,) = difference(dante_unfused, dante_bundle, block="head", variant="t1").graphs
    assert (graph.added, graph.removed, graph.changed) == ([], ["rms_norm_1"], ["linear_1"])
    assert any(line.startswith("-  %rms_norm_1 = rms_norm(") for line in graph.lines)
    assert any(line.startswith("+  %linear_1 = fused into_prologue(") for line in graph.lines)


def test_a_node_whose_line_of_python_moved_has_not_changed() -> None:
    before = "graph g {\n\n  %a = add(%x, %y)  # f.py:1\n  return %a\n}\n"
    found = graph_diff("g.t1", before, before.replace("f.py:1", "f.py:2"))
    assert found is not None
    assert (found.added, found.removed, found.changed) == ([], [], [])
    assert "+  %a = add(%x, %y)  # f.py:2" in found.lines


def test_an_edited_kernel_is_a_hunk_under_its_name(dante_bundle: Bundle, edited: Bundle) -> None:
    found = difference(dante_bundle, edited)
    (source,) = found.sources
    assert (source.name, source.status, source.files) == ("gemv_mma_o_proj", "changed", ["decoder.t1.cu"])
    assert [line for line in source.lines if line[0] in "+-"] == [
        "-    int slot = 0;",
        "+    int slot = 0;  // mine",
    ]
    (kernel,) = found.kernels
    assert kernel.what == ["registers", "spills", "edited by hand"]
    (fact,) = found.facts
    assert (fact.name, fact.b) == ("edited by hand", "decoder.t1.cu: gemv_mma_o_proj")
    text = shown(found)
    assert "Source of gemv_mma_o_proj in decoder.t1.cu: changed" in text
    assert "spilled bytes 0 → 16" in text
    assert "\n+    int slot = 0;  // mine" in text


def test_without_source_no_code_is_shown(dante_bundle: Bundle, edited: Bundle) -> None:
    found = difference(dante_bundle, edited, source=False)
    assert found.sources == []
    assert "mine" not in shown(found)


def test_a_kernel_of_another_name_is_found_by_the_work_it_does(dante_bundle: Bundle, tmp_path: Path) -> None:
    def rename(manifest: Manifest) -> Manifest:
        found = manifest.blocks["embed"]["t1"]
        step = msgspec.structs.replace(found.steps[0], kernel="look_up")
        changed = msgspec.structs.replace(found, steps=[step])
        blocks = manifest.blocks | {"embed": manifest.blocks["embed"] | {"t1": changed}}
        renamed = msgspec.structs.replace(manifest, blocks=blocks)
        return with_kernel(renamed, "embed", "t1", "embedding", name="look_up")

    def in_source(text: str) -> str:
        return text.replace("// ---- embedding", "// ---- look_up").replace(" embedding(", " look_up(")

    other = altered(dante_bundle, tmp_path / "renamed", {"embed.t1.cu": in_source}, rename)
    found = difference(dante_bundle, other)
    (kernel,) = found.kernels
    assert (kernel.name, kernel.was, kernel.status) == ("look_up", "embedding", "changed")
    (source,) = found.sources
    assert (source.name, source.status) == ("look_up", "changed, was embedding")
    assert sum(line[0] in "+-" for line in source.lines) == 2


def test_a_helper_that_changed_is_told_once_for_all_files(dante_bundle: Bundle, tmp_path: Path) -> None:
    names = [f"{block}.t1.cu" for block in ("decoder", "head", "embed")]

    def in_source(text: str) -> str:
        return text.replace("// ---- numeric.cuh\n", "// ---- numeric.cuh\n// new\n", 1)

    edits = dict.fromkeys(names, in_source)
    other = altered(dante_bundle, tmp_path / "helper", edits, lambda manifest: manifest)
    (source,) = difference(dante_bundle, other).sources
    assert (source.name, sorted(source.files)) == ("numeric.cuh", sorted(names))
    assert [line for line in source.lines if line[0] == "+"] == ["+// new"]


def test_cubins_that_differ_from_the_same_source_are_named(dante_bundle: Bundle, tmp_path: Path) -> None:
    texts = {
        n: (dante_bundle.folder / n).read_bytes() for n in dante_bundle.checksums if n != "manifest.json"
    }
    other = write_bundle(tmp_path / "cubin", dante_bundle.manifest, texts | {"head.t1.cubin": b"other"})
    found = difference(dante_bundle, other)
    assert found.cubins == ["head.t1.cubin"]
    assert not found.is_empty
    assert "Compiled otherwise from the same source: head.t1.cubin" in shown(found)


# ---- what is worse


def test_more_spills_kernels_and_bytes_are_regressions(
    dante_bundle: Bundle, dante_unfused: Bundle, edited: Bundle
) -> None:
    assert regressions(difference(dante_bundle, edited)) == ["decoder.t1: spilled bytes: 0 → 16"]
    assert regressions(difference(edited, dante_bundle)) == []
    worse = regressions(difference(dante_bundle, dante_unfused, block="head", variant="t1"))
    assert worse == ["head.t1: kernels: 2 → 3", "head.t1: bytes moved at 1 tokens: 2115588 → 2116612"]
    assert regressions(difference(dante_unfused, dante_bundle)) == []


def bench(us: float, ms: float) -> Measurements:
    time = MeasuredKernel(
        block="decoder",
        variant="t1",
        kernel="gemv_mma_o_proj",
        us=us,
        bytes=1,
        flops=1,
        floor_us=1.0,
        fraction=0.5,
        gain_us=1.0,
        layers=4,
    )
    return Measurements(benchmark="kernels", read_bandwidth_gb_s=1.0, kernels=[time], ms_per_step=ms)


@pytest.mark.parametrize(
    ("ms", "worse"), [(1.02, []), (1.05, ["a step takes 1.000 ms → 1.050 ms, 5.0% more"])]
)
def test_a_step_that_takes_over_three_percent_longer_is_a_regression(
    dante_bundle: Bundle, ms: float, worse: list[str]
) -> None:
    found = difference(dante_bundle, dante_bundle, benches=(bench(2.0, 1.0), bench(2.5, ms)))
    assert regressions(found) == worse
    assert shown(found).splitlines()[-1] == "no differences but in time"
    assert f"one step: 1.000 ms → {ms:.3f} ms" in shown(found)


def test_times_stand_beside_the_kernels_that_changed(dante_bundle: Bundle, edited: Bundle) -> None:
    found = difference(dante_bundle, edited, benches=(bench(2.0, 1.0), bench(2.5, 1.0)))
    (kernel,) = found.kernels
    assert kernel.a is not None
    assert kernel.b is not None
    assert (kernel.a.us, kernel.b.us) == (2.0, 2.5)
    assert "2.00 µs → 2.50 µs (+25.0%)" in shown(found)


# ---- the command


def test_the_command_exits_with_1_only_for_a_regression_it_was_asked_to_find(
    dante_bundle: Bundle, edited: Bundle, infernum: Callable[..., Outcome]
) -> None:
    a, b = dante_bundle.folder, edited.folder
    assert infernum("diff", a, a, "--fail-on-regression").code == 0
    assert infernum("diff", a, b).code == 0
    assert infernum("diff", b, a, "--fail-on-regression").code == 0
    answer = infernum("diff", a, b, "--fail-on-regression")
    assert answer.code == 1
    assert answer.err == "regression: decoder.t1: spilled bytes: 0 → 16\n"
    assert "Source of gemv_mma_o_proj" in answer.out
    assert "Source of" not in infernum("diff", a, b, "--no-source").out
    assert infernum("diff", a, b, "--fail-on-regression", "--block", "head").code == 0


def test_json_has_everything_on_stdout_and_nothing_else(
    dante_bundle: Bundle, edited: Bundle, infernum: Callable[..., Outcome]
) -> None:
    answer = infernum("diff", dante_bundle.folder, edited.folder, "--json", "--fail-on-regression")
    told = json.loads(answer.out)
    expected = json.loads(msgspec.json.encode(difference(dante_bundle, edited)))
    assert told == expected | {"regressions": ["decoder.t1: spilled bytes: 0 → 16"]}
    assert answer.code == 1


def test_times_are_read_from_files(
    dante_bundle: Bundle, infernum: Callable[..., Outcome], tmp_path: Path
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, result in zip(files, (bench(2.0, 1.0), bench(2.0, 1.1)), strict=True):
        file.write_bytes(msgspec.json.encode(result))
    times = ["--bench-a", files[0], "--bench-b", files[1]]
    answer = infernum("diff", dante_bundle.folder, dante_bundle.folder, *times, "--fail-on-regression")
    assert (answer.code, answer.err) == (1, "regression: a step takes 1.000 ms → 1.100 ms, 10.0% more\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no result of `bench kernels`"),
        ('{"benchmark": "latency", "kernels": []}', "is a result of `bench latency`"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_times_is_refused_in_one_line(
    dante_bundle: Bundle, infernum: Callable[..., Outcome], tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "times.json"
    if text is not None:
        file.write_text(text)
    folder = dante_bundle.folder
    answer = infernum("diff", folder, folder, "--bench-a", file, "--bench-b", file)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert message in answer.err
    assert "go together" in infernum("diff", folder, folder, "--bench-a", file).err


def test_a_broken_or_older_bundle_and_an_unknown_block_are_refused_in_one_line(
    dante_bundle: Bundle, infernum: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = dante_bundle.folder
    assert "no such bundle" in infernum("diff", folder, tmp_path / "none").err
    assert (
        "neither bundle has --block mlp; the blocks are embed"
        in infernum("diff", folder, folder, "--block", "mlp").err
    )
    old = altered(dante_bundle, tmp_path / "old", {}, lambda m: msgspec.structs.replace(m, schema=1))
    answer = infernum("diff", folder, old.folder)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "schema 1" in answer.err
    (old.folder / "manifest.json").write_text("{}")
    assert "differs from its checksum" in infernum("diff", folder, old.folder).err
    assert open_bundle(folder).manifest == dante_bundle.manifest
