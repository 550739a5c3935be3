"""`infernum compile --dump-passes`: the graph after each pass, what the pass changed, and how long it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

from infernum.bundle import Bundle, open_bundle
from infernum.compiler import Options, compile_model, emit_sources
from infernum.errors import CompileError
from infernum.ir.apply import Pass
from infernum.ir.graph import Graph
from infernum.ir.text import parse_graph, print_graph
from infernum.manifest import Firing
from infernum.models.presets import resolve
from infernum.passes import Passes, record_passes

Run = Callable[..., Outcome]


@dataclass(frozen=True)
class Dumped:
    """A bundle, and the folder of the passes that made it."""

    bundle: Bundle
    folder: Path

    def pass_files(self, stem: str) -> list[Path]:
        """The graphs of one block for one variant, in order."""
        return sorted((self.folder / stem).glob("*.ir"))

    def summary(self) -> dict[str, dict[str, Any]]:
        """What passes.json says of each block for each variant."""
        blocks = json.loads((self.folder / "passes.json").read_text())["blocks"]
        return {f"{block['block']}.{block['variant']}": block for block in blocks}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Dumped:
    """The demo model, compiled with --dump-passes."""
    out = tmp_path_factory.mktemp("dumped") / "dante"
    passes = out.with_name("dante-passes")
    return Dumped(compile_model(resolve("dante"), Options(dump=passes), out), passes)


def test_there_is_one_file_for_every_rule_that_fired_in_order(dumped: Dumped) -> None:
    assert [path.name for path in dumped.pass_files("decoder.t1")] == [
        "00-traced.ir",
        "01-merge_products.ir",
        "02-attend.ir",
        "03-into_epilogue.ir",
        "04-into_prologue.ir",
    ]
    variants = [v for block in dumped.bundle.manifest.blocks.values() for v in block.values()]
    assert {path.name for path in dumped.folder.iterdir() if path.is_dir()} == {
        f"{v.block}.{v.variant}" for v in variants
    }
    for v in variants:
        names = [path.name for path in dumped.pass_files(f"{v.block}.{v.variant}")]
        fired = [rule for rule, times in v.fired.items() if times]
        assert names == [f"{i:02}-{rule}.ir" for i, rule in enumerate(["traced", *fired])]


def test_every_file_is_a_graph_the_first_as_traced_and_the_last_as_in_the_bundle(dumped: Dumped) -> None:
    for block in dumped.bundle.manifest.blocks.values():
        for v in block.values():
            graphs = [parse_graph(path.read_text()) for path in dumped.pass_files(f"{v.block}.{v.variant}")]
            assert print_graph(graphs[0]) == dumped.bundle.read(v.traced).decode()
            assert print_graph(graphs[-1]) == dumped.bundle.read(v.graph).decode()


def test_a_file_begins_with_what_the_rule_did_and_why_and_how_long_it_took(dumped: Dumped) -> None:
    text = dumped.pass_files("decoder.t1")[3].read_text()
    heading = [line for line in text.splitlines() if line.startswith("#")]
    assert heading[0].startswith("# decoder.t1: into_epilogue: What is done to each element of a result")
    assert heading[1].startswith("# fired 3 time(s), ") and heading[1].endswith(" ms, 22 -> 16 nodes")
    assert heading[2:] == [
        "#   at linear_4, add_1 -> add_1",
        "#   at linear_1, columns_4, columns_5, silu_1, mul_1 -> mul_1",
        "#   at linear_7, add_2 -> add_2",
    ]


def test_the_table_lists_every_pass_with_what_it_did_and_its_time(dumped: Dumped) -> None:
    lines = (dumped.folder / "decoder.decode" / "passes.txt").read_text().splitlines()
    assert lines[0] == "decoder.decode: 21 nodes traced, 18 after the rules, 10 kernels"
    assert lines[2].split() == ["pass", "fired", "refused", "nodes", "ms"]
    table = lines[3 : lines.index("", 3)]
    rules = dumped.bundle.manifest.rules
    assert [line.split()[0] for line in table[:-1]] == ["trace", *rules, "plan", "emit", "nvrtc"]
    by_name = {line.split()[0]: line.split()[1:-1] for line in table}
    assert by_name["merge_products"] == ["2", "21", "->", "23"]
    assert by_name["into_prologue"] == ["2", "21"]
    assert by_name["into_library"] == ["1", "1", "20", "->", "19"]
    total = sum(float(line.split()[-1]) for line in table[:-1])
    assert float(table[-1].split()[-1]) == pytest.approx(total, abs=0.2)


def test_the_diff_of_a_pass_shows_the_products_that_were_merged(dumped: Dumped) -> None:
    text = (dumped.folder / "decoder.t1" / "passes.txt").read_text()
    section = text[text.index("\nmerge_products: ") : text.index("\nattend: ")].splitlines()
    assert "  fired at linear_1, linear_2, linear_3 -> " in section[2]
    assert "  fired at linear_5, linear_6 -> " in section[3]
    assert section[4:6] == ["--- 00-traced.ir", "+++ 01-merge_products.ir"]
    added, removed = ([line[1:] for line in section[6:] if line.startswith(sign)] for sign in ("+", "-"))
    before, after = (dumped.pass_files("decoder.t1")[i].read_text().splitlines() for i in (0, 1))
    assert any("= linear(%rms_norm_1, %q_k_v_proj)" in line for line in added)
    assert sum("= linear(%rms_norm_1, " in line for line in removed) == 3
    assert set(added) <= set(after) - set(before)
    assert set(removed) <= set(before) - set(after)


def test_a_rule_that_was_only_refused_says_where_and_why(dumped: Dumped) -> None:
    text = (dumped.folder / "head.decode" / "passes.txt").read_text()
    refused = "linear_1 is computed by cublaslt: the library reads rows as they are: it has no prologue"
    assert f"  refused at rms_norm_1, linear_1: {refused}\n" in text


def test_the_summary_for_tools_has_what_the_manifest_knows_and_every_time(dumped: Dumped) -> None:
    manifest, summary = dumped.bundle.manifest, dumped.summary()
    assert len(summary) == sum(len(block) for block in manifest.blocks.values())
    for stem, block in summary.items():
        v = manifest.blocks[block["block"]][block["variant"]]
        passes = block["passes"]
        assert [p["name"] for p in passes] == ["trace", *manifest.rules, "plan", "emit", "nvrtc"]
        assert [(f["rule"], f["at"], f["made"]) for p in passes for f in p["firings"]] == [
            (f.rule, f.at, f.made) for f in v.firings
        ]
        assert [(r["rule"], r["at"], r["reason"]) for p in passes for r in p["refused"]] == [
            (r.rule, r.at, r.reason) for r in v.refused
        ]
        assert all(p["ms"] > 0 and p["why"] for p in passes)
        assert all(p["nodes_after"] == q["nodes_before"] for p, q in pairwise(passes))
        assert [p["file"] for p in passes if p["file"]] == [path.name for path in dumped.pass_files(stem)]
        assert all(bool(p["diff"]) == bool(p["firings"]) for p in passes)
        assert block["kernels"] == len(v.steps)


def test_a_bundle_is_the_same_whether_its_passes_are_kept_or_not(
    dumped: Dumped, dante_bundle: Bundle
) -> None:
    assert dumped.bundle.checksums == dante_bundle.checksums


def test_compile_says_where_the_passes_are(tmp_path: Path, infernum: Run) -> None:
    command = ("compile", "dante", "--max-batch-tokens", "1", "-o", tmp_path / "out")
    passes = str(tmp_path / "out-passes")
    assert json.loads(infernum(*command, "--dump-passes", "--json").out)["passes"] == passes
    assert passes in infernum(*command, "--dump-passes").out
    assert "passes" not in json.loads(infernum(*command, "--json").out)


ONE = Options(max_batch_tokens=1)


def dump(folder: Path) -> None:
    """What a compilation writes into the folder before NVRTC."""
    with record_passes(folder) as passes:
        emit_sources(resolve("dante"), ONE, passes)


def test_what_an_earlier_compilation_left_is_replaced(tmp_path: Path) -> None:
    dump(tmp_path / "passes")
    (tmp_path / "passes" / "decoder.t1" / "99-stale.ir").write_text("stale")
    (tmp_path / "passes" / "gone.t1").mkdir()
    dump(tmp_path / "passes")
    assert not (tmp_path / "passes" / "decoder.t1" / "99-stale.ir").exists()
    assert not (tmp_path / "passes" / "gone.t1").exists()


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    dump(tmp_path)
    assert (tmp_path / "decoder.t1" / "passes.txt").is_file()


def test_a_folder_of_someone_elses_is_refused_and_left_alone(tmp_path: Path, infernum: Run) -> None:
    (tmp_path / "out-passes").mkdir()
    (tmp_path / "out-passes" / "thesis.tex").write_text("years of work")
    done = infernum("compile", "dante", "-o", tmp_path / "out", "--dump-passes")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: {tmp_path / 'out-passes'}: not made by --dump-passes, since it has no passes.json; "
        "move it away or choose another -o\n"
    )
    assert (tmp_path / "out-passes" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_a_file_and_a_link_are_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    dump(tmp_path / "ours")
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(CompileError, match=f"{name}: "):
            dump(tmp_path / name)
    assert (tmp_path / "ours" / "passes.json").is_file()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, infernum: Run) -> None:
    (tmp_path / "file").write_text("text")
    done = infernum("compile", "dante", "-o", tmp_path / "file" / "out", "--dump-passes")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "out-passes" in done.err and "cannot be written (Not a directory)" in done.err


def test_an_output_without_a_name_is_one_line(infernum: Run) -> None:
    done = infernum("compile", "dante", "-o", ".", "--dump-passes")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "name the folder" in done.err


GRAPH = """\
graph g {
  stream %x : bf16[tokens, 64]

  %silu_1 = silu(%x) : bf16[tokens, 64]  # m.py:1
  return %silu_1
}
"""


def test_a_compilation_that_fails_leaves_what_it_did_until_then(tmp_path: Path) -> None:
    def fail(passes: Passes) -> None:
        block = passes.over(traced, "t1")
        fired = Firing(rule="renames", at="silu_1", made="silu_1")
        block.rule(Pass("renames", "It's a rule\nthat says # much.", traced, renamed, (fired,), (), 0.25))
        raise CompileError("no kernel")

    traced: Graph = parse_graph(GRAPH)
    renamed = parse_graph(GRAPH.replace("silu_1", "silu_2"))
    for _ in range(2):  # and the next compilation takes the folder for ours
        with pytest.raises(CompileError, match="no kernel"), record_passes(tmp_path / "passes") as passes:
            fail(passes)
    folder = tmp_path / "passes" / "g.t1"
    assert print_graph(parse_graph((folder / "01-renames.ir").read_text())) == print_graph(renamed)
    assert "-  %silu_1 = silu(%x)" in (folder / "passes.txt").read_text()
    (block,) = json.loads((tmp_path / "passes" / "passes.json").read_text())["blocks"]
    assert [(p["name"], p["ms"]) for p in block["passes"]] == [("trace", 0.0), ("renames", 250.0)]


def test_the_folder_is_marked_as_ours_from_the_first_moment(tmp_path: Path) -> None:
    with record_passes(tmp_path / "passes"):
        assert json.loads((tmp_path / "passes" / "passes.json").read_text()) == {"blocks": []}


def test_without_a_folder_nothing_is_kept(tmp_path: Path, infernum: Run) -> None:
    passes = Passes()
    emit_sources(resolve("dante"), ONE, passes)
    assert [block.done for block in passes.blocks.values()] == [[]] * 6
    infernum("compile", "dante", "--max-batch-tokens", "1", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_bundle(tmp_path / "out").manifest.model.name == "dante"
