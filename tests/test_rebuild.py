"""Kernels edited by hand: compiled again, recorded and shown; what does not fit is refused and changes nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from test_bad_input import rewrite_manifest

from infernum import bundle as bundles
from infernum.bundle import Bundle, file_state, not_rebuilt, open_bundle
from infernum.codegen.cubin import KernelResources
from infernum.codegen.nvrtc import compile_cuda
from infernum.errors import BundleError, CompileError, DeviceError
from infernum.lab.rebuild import edited as rebuilding
from infernum.lab.rebuild.edited import rebuild_bundle
from infernum.lab.rebuild.fit import KernelSignature, objections, signature_of
from infernum.manifest import Edit, Kernel, Launch, Plugin
from infernum.runtime import driver
from infernum.runtime.driver import GpuFacts

Run = Callable[..., Outcome]

EMBED, DECODER = "embed.t1.cu", "decoder.t1.cu"
STORE = "out[token * 256 + column] = from_float<bf16_t>(add_1);"
"""How `gemv_mma_o_proj` of the demo stores a result; no other kernel does it so."""

DOUBLED = STORE.replace("(add_1)", "(2.0f * add_1)")
TOKEN_ID = "const size_t id = token_ids[token];"
OTHER_ID = "const size_t id = token_ids[token] ^ 1;"


@pytest.fixture
def folder(dante_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the demo's bundle, to be edited."""
    return shutil.copytree(dante_bundle.folder, tmp_path / "dante")


def edit(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """Replace texts that a file has once; the file's new text."""
    text = (folder / name).read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return text


def rebuild(folder: Path) -> rebuilding.Rebuild:
    return rebuild_bundle(open_bundle(folder), cache=None)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kernels(folder: Path, block: str = "decoder", variant: str = "t1") -> dict[str, Kernel]:
    return {k.name: k for k in open_bundle(folder).manifest.blocks[block][variant].kernels}


def check_refused(folder: Path, *told: str) -> None:
    """Rebuilding is refused, says all this, and changes no byte."""
    before = contents(folder)
    with pytest.raises(CompileError) as refused:
        rebuild(folder)
    for part in told:
        assert part in str(refused.value)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_edited_kernel_is_compiled_and_the_manifest_and_checksums_are_true(
    folder: Path, dante_bundle: Bundle
) -> None:
    text = edit(folder, DECODER, (STORE, DOUBLED))
    outcome = rebuild(folder)
    wanted = compile_cuda(text, name=DECODER, arch="sm_90a", cache=None)
    found = open_bundle(folder)
    assert found.read("decoder.t1.cubin") == wanted.data != dante_bundle.read("decoder.t1.cubin")
    assert found.manifest.edits == {
        DECODER: Edit(emitted_sha256=dante_bundle.checksums[DECODER], kernels=["gemv_mma_o_proj"])
    }
    for kernel in found.manifest.blocks["decoder"]["t1"].kernels:
        assert kernel.registers == wanted.kernels[kernel.name].registers
    lines = (folder / "checksums.txt").read_text().splitlines()
    assert {line[66:]: line[:64] for line in lines} == {
        name: sha256(data) for name, data in contents(folder).items() if name != "checksums.txt"
    }
    assert lines == sorted(lines, key=lambda line: line[66:])
    assert [c.after.name for f in outcome.files for c in f.changes] == ["gemv_mma_o_proj"]
    assert outcome.warnings == ()


def test_all_other_files_stay_as_they_are(folder: Path, dante_bundle: Bundle) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "manifest.json").write_text("mine too")
    rebuild(folder)
    changed = {EMBED, "embed.t1.cubin", "manifest.json", "checksums.txt"}
    assert {
        name
        for name in dante_bundle.folder.iterdir()
        if name.read_bytes() != (folder / name.name).read_bytes()
    } == {dante_bundle.folder / name for name in changed}
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "sub" / "manifest.json").read_text() == "mine too"


def test_hashes_of_emitted_kernels_are_kept(folder: Path, dante_bundle: Bundle) -> None:
    edit(folder, DECODER, (STORE, DOUBLED))
    rebuild(folder)
    emitted = {k.name: k.source_hash for k in dante_bundle.manifest.blocks["decoder"]["t1"].kernels}
    assert {name: k.source_hash for name, k in kernels(folder).items()} == emitted


def test_registers_of_an_edited_kernel_are_those_it_has_now(folder: Path) -> None:
    before = kernels(folder)["gemv_mma_gate_up_proj"]
    old = "__launch_bounds__(256, 1) gemv_mma_gate_up_proj("
    edit(folder, DECODER, (old, old.replace("(256, 1)", "(256, 8)")))
    outcome = rebuild(folder)
    after = kernels(folder)["gemv_mma_gate_up_proj"]
    assert before.registers > 32 >= after.registers
    assert before.spill_bytes == 0 < after.spill_bytes
    assert [
        w for w in outcome.warnings if "gemv_mma_gate_up_proj spills" in w and str(after.spill_bytes) in w
    ]


def test_an_edit_that_is_undone_leaves_the_bundle_as_it_was_compiled(
    folder: Path, dante_bundle: Bundle
) -> None:
    edit(folder, DECODER, (STORE, DOUBLED))
    rebuild(folder)
    edit(folder, DECODER, (DOUBLED, STORE))
    (restored,) = rebuild(folder).files
    assert restored.restored
    assert [(c.after.name, c.edited) for c in restored.changes] == [("gemv_mma_o_proj", False)]
    assert contents(folder) == contents(dante_bundle.folder)


def test_a_second_edit_is_still_compared_with_what_was_emitted(folder: Path, dante_bundle: Bundle) -> None:
    edit(folder, DECODER, (STORE, DOUBLED))
    rebuild(folder)
    edit(
        folder,
        DECODER,
        ("// ---- gemv_mma_down_proj\n", "// ---- gemv_mma_down_proj\n// tried\n"),
        (DOUBLED, STORE),
    )
    rebuild(folder)
    recorded = open_bundle(folder).manifest.edits[DECODER]
    assert recorded == Edit(emitted_sha256=dante_bundle.checksums[DECODER], kernels=["gemv_mma_down_proj"])


HELPER = ("float warp_sum(float x) {\n", "float warp_sum(float x) {\n    x += 0.0f;\n")
HEAD = ("// dante: block decoder", "#define TRIED 1\n// dante: block decoder")


@pytest.mark.parametrize(
    "changes",
    [[HELPER], [HELPER, (STORE, DOUBLED)], [HEAD], [HEAD, (STORE, DOUBLED)]],
    ids=["helper", "helper and kernel", "head", "head and kernel"],
)
def test_code_that_kernels_share_changes_all_of_them(folder: Path, changes: list[tuple[str, str]]) -> None:
    edit(folder, DECODER, *changes)
    rebuild(folder)
    launched = [name for name, k in kernels(folder).items() if k.source_hash]
    assert open_bundle(folder).manifest.edits[DECODER].kernels == launched
    assert len(launched) > 1


def test_several_files_are_rebuilt_at_once(folder: Path) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    edit(folder, "embed.t8.cu", (TOKEN_ID, OTHER_ID))
    outcome = rebuild(folder)
    assert [file.file for file in outcome.files] == [EMBED, "embed.t8.cu"]
    assert list(open_bundle(folder).manifest.edits) == [EMBED, "embed.t8.cu"]
    assert not_rebuilt(outcome.bundle) == []


def test_without_an_edit_nothing_is_written(folder: Path, infernum: Run) -> None:
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    done = infernum("rebuild", folder)
    assert (done.code, done.err) == (0, "")
    assert "no .cu file was edited" in done.out
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


def test_a_compile_error_is_told_at_its_line_of_the_file_and_nothing_changes(
    folder: Path, infernum: Run
) -> None:
    text = edit(folder, EMBED, (TOKEN_ID, TOKEN_ID.replace("token_ids", "token_idz")))
    line = text[: text.index("token_idz")].count("\n") + 1
    before = contents(folder)
    done = infernum("rebuild", folder)
    assert done.code == 2
    assert f'{folder / EMBED}:{line}: error: identifier "token_idz" is undefined' in done.err
    assert "kept as" not in done.err
    assert contents(folder) == before


def test_every_file_that_does_not_compile_is_told(folder: Path) -> None:
    for name in (EMBED, "embed.t8.cu"):
        edit(folder, name, (TOKEN_ID, "nonsense;"))
    edit(folder, "embed.t64.cu", (TOKEN_ID, OTHER_ID))
    check_refused(folder, f"{folder / EMBED}:", f"{folder / 'embed.t8.cu'}:")


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / EMBED).write_bytes((folder / EMBED).read_bytes() + b"// \xff\n")
    check_refused(folder, f"{folder / EMBED}: is not UTF-8")


PARAMETERS = "const int* token_ids,\n    const bf16_t* __restrict__ weight,\n    bf16_t* out)"
BIG = "__shared__ bf16_t big[{}]; big[threadIdx.x] = out[0]; __syncthreads(); out[1] = big[31 - threadIdx.x];"


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        (EMBED, " embedding(\n", " embeding(\n", "embedding is launched, but is no longer there"),
        (
            EMBED,
            PARAMETERS,
            PARAMETERS[:-1] + ", int more)",
            "has 4 parameters, but is launched with 3 arguments",
        ),
        (
            EMBED,
            "__launch_bounds__(32)",
            "__launch_bounds__(16)",
            "allows 16 threads in a block, but is launched with 32; write __launch_bounds__(32)",
        ),
        (
            DECODER,
            "bf16_t* out,\n    int tokens) {\n    using T = bf16_t;\n    // out[tokens, COLUMNS], summed over WIDTH\n"
            "    constexpr int WIDTH = 256, COLUMNS = 512,",
            "int tokens,\n    bf16_t* out) {\n    using T = bf16_t;\n    // out[tokens, COLUMNS], summed over WIDTH\n"
            "    constexpr int WIDTH = 256, COLUMNS = 512,",
            "takes `int tokens` where it is given the address of",
        ),
    ],
    ids=["renamed", "one parameter more", "small launch bounds", "swapped parameters"],
)
def test_a_kernel_that_no_longer_fits_its_launch_is_refused(
    folder: Path, name: str, old: str, new: str, told: str
) -> None:
    edit(folder, name, (old, new))
    check_refused(folder, f"{folder / name}: ", told)


@pytest.mark.parametrize(
    ("registers", "static", "told"),
    [
        (128, 227 * 1024 - 4096, ""),
        (
            128,
            227 * 1024 - 4095,
            "of static and 4096 of dynamic shared memory, but a block has at most 232448 on sm_90a",
        ),
        (129, 0, "takes 129 registers in each of 512 threads, more than a multiprocessor has"),
    ],
)
def test_what_no_block_can_have_is_refused(registers: int, static: int, told: str) -> None:
    """65536 registers and 227 KiB of shared memory on sm_90a; registers are given eight at a time."""
    launch = Launch(kernel="k", args=[], grid=[1, 1, 1], block=[512, 1, 1], shared_bytes=4096)
    compiled = {"k": KernelResources(registers, 0, 0, static)}
    found = objections('extern "C" __global__ void k() {}', launch, compiled, "sm_90a")
    assert len(found) == bool(told) and all(told in reason for reason in found)


def test_more_static_shared_memory_than_the_compiler_allows_is_its_error(folder: Path) -> None:
    edit(folder, EMBED, (TOKEN_ID, TOKEN_ID + BIG.format(60 * 1024)))
    check_refused(folder, "uses too much shared data")


@pytest.mark.parametrize("name", ["embed.t1.ir", "embed.t1.cubin", "rules.txt"])
def test_files_other_than_cuda_are_not_for_editing(folder: Path, name: str) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    check_refused(folder, f"{folder / name}: differs from its checksum, and only .cu files can be rebuilt")


def test_an_edited_manifest_is_refused(folder: Path, infernum: Run) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("sm_90a", "sm_80"))
    done = infernum("rebuild", folder)
    assert done.code == 2
    assert "manifest.json: differs from its checksum; compile the model again" in done.err


def test_each_missing_or_damaged_file_has_its_line(folder: Path) -> None:
    (folder / EMBED).unlink()
    (folder / "rules.txt").write_text("mine")
    check_refused(folder, f"{folder / EMBED}: is missing", f"\n{folder / 'rules.txt'}: differs")


def test_the_current_folder_is_not_replaced_under_ones_feet(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError, match="run it from outside"):
        rebuild(Path())


def test_a_link_to_a_bundle_stays_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    rebuild(link)
    assert link.is_symlink()
    assert list(open_bundle(folder).manifest.edits) == [EMBED]


@pytest.mark.parametrize("stage", ["linking", "writing", "swapping"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_bundle(
    folder: Path, stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    before, rename, fsync = contents(folder), Path.rename, os.fsync
    synced: list[int] = []

    def failing_rename(path: Path, target: Path) -> Path:
        if target == folder and not path.name.endswith(".old"):
            raise error
        return rename(path, target)

    def failing_fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise error
        fsync(descriptor)

    def failing_link(source: str, target: str) -> None:
        raise error

    match stage:
        case "linking":
            monkeypatch.setattr(bundles, "_link", failing_link)
        case "writing":
            monkeypatch.setattr(os, "fsync", failing_fsync)
        case _:
            monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(BundleError if isinstance(error, OSError) else KeyboardInterrupt):
        rebuild(folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    rebuild(folder)
    assert list(open_bundle(folder).manifest.edits) == [EMBED]


def test_what_is_saved_while_the_compiler_works_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))

    def saved_meanwhile(*args: object, **more: object) -> object:
        cubin = compile_cuda(*args, **more)  # type: ignore[arg-type]
        edit(folder, EMBED, (OTHER_ID, TOKEN_ID + "  // on second thoughts"))
        return cubin

    monkeypatch.setattr(rebuilding, "compile_cuda", saved_meanwhile)
    rebuild(folder)
    assert "on second thoughts" in (folder / EMBED).read_text()
    assert not_rebuilt(open_bundle(folder)) == [EMBED]


def test_a_kernel_that_no_longer_waits_for_the_one_before_is_warned_of(folder: Path) -> None:
    edit(folder, EMBED, ("    wait_for_previous_kernel();\n", "    // wait_for_previous_kernel();\n"))
    (warning,) = rebuild(folder).warnings
    assert warning.startswith("embed.t1.cu: embedding starts before the kernel ahead of it has ended")


def test_another_compiler_than_the_bundles_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    monkeypatch.setattr(rebuilding, "nvrtc_version", lambda: "99.1.2")
    (warning,) = rebuild(folder).warnings
    assert warning.startswith("compiled with NVRTC 99.1.2; the rest of")


def test_the_command_shows_registers_before_and_after(folder: Path, infernum: Run) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    before = kernels(folder, "embed")["embedding"].registers
    done = infernum("rebuild", folder)
    assert (done.code, done.err) == (0, "")
    after = kernels(folder, "embed")["embedding"].registers
    (row,) = (line for line in done.out.splitlines() if EMBED in line)
    assert row.split()[1:6] == ["embedding", "edited", str(before), "→", str(after)]


def test_json_is_one_object_also_with_a_run(folder: Path, infernum: Run) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    more = ("--run", "Midway upon", "--json", "--", "-n", "3", "--greedy", "--device", "cpu")
    done = infernum("rebuild", folder, *more)
    found = json.loads(done.out)
    assert done.code == 0
    (file,) = found["rebuilt"]
    assert (file["file"], file["restored"]) == (EMBED, False)
    assert file["kernels"][0]["name"] == "embedding"
    assert set(file["kernels"][0]["registers"]) == {"before", "after"}
    assert found["edits"][EMBED]["kernels"] == ["embedding"]
    assert len(found["run"]["tokens"]) == 3


def test_rebuild_then_runs_as_run_does(folder: Path, infernum: Run) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    line = "Midway upon the journey of our life"
    done = infernum("rebuild", folder, "--run", line, "--", "-n", "9", "--greedy", "--device", "cpu")
    assert done.code == 0
    assert done.out.index("rebuilt") < done.out.index("\nI found myself within a forest")
    again = infernum("rebuild", folder, "--run", line, "--", "-n", "9", "--greedy", "--device", "cpu")
    assert "no .cu file was edited" in again.out and "I found myself within a forest" in again.out


def test_options_of_run_without_a_prompt_are_a_mistake(folder: Path, infernum: Run) -> None:
    for more in (("--model", "dante"), ("--", "-n", "3")):
        done = infernum("rebuild", folder, *more)
        assert done.code == 2
        assert "--run PROMPT" in done.err


def plain(table: str) -> str:
    """The words of a table, whose cells may be folded."""
    return " ".join(table.split())


def test_inspect_shows_what_was_edited_and_what_is_not_yet_rebuilt(folder: Path, infernum: Run) -> None:
    edit(folder, DECODER, (STORE, DOUBLED))
    rebuild(folder)
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    waiting = f"{EMBED} differs from what was compiled; run `infernum rebuild {folder}`"
    overview = infernum("inspect", folder).out
    assert f" edited by hand {DECODER} (gemv_mma_o_proj) not rebuilt " in plain(overview)
    assert waiting in plain(overview)
    block = infernum("inspect", folder, "--block", "decoder", "--variant", "t1").out
    assert [line.split()[1] for line in block.splitlines() if line.startswith("  edited   ")] == [
        "gemv_mma_o_proj"
    ]
    assert "edited" not in infernum("inspect", folder, "--block", "decoder", "--variant", "t8").out
    assert waiting in plain(infernum("inspect", folder, "--block", "embed", "--variant", "t1").out)
    kernel = infernum("inspect", folder, "--kernel", "gemv_mma_o_proj").out
    assert f"{DECODER}, edited by hand" in kernel
    assert plain(infernum("inspect", folder, "--kernel", "embedding").out).count(waiting) == 1


def test_inspect_as_json_says_it_too(folder: Path, infernum: Run) -> None:
    edit(folder, DECODER, ("// ---- attend_cluster\n", "// ---- attend_cluster\n// tried\n"))
    rebuild(folder)
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    whole = json.loads(infernum("inspect", folder, "--json").out)
    assert whole["edits"][DECODER]["kernels"] == ["attend_cluster"]
    assert whole["not_rebuilt"] == [EMBED]
    found = json.loads(infernum("inspect", folder, "--kernel", "attend_cluster", "--json").out)["kernels"]
    edited = {k["variant"]: k["edited"] for k in found}
    assert edited.pop("t1") and edited and not any(edited.values())
    (block,) = json.loads(infernum("inspect", folder, "--block", "embed", "--variant", "t1", "--json").out)[
        "blocks"
    ]
    assert (block["edited"], block["not_rebuilt"]) == ([], True)


def test_inspect_prints_an_edited_source_with_a_note(folder: Path, infernum: Run) -> None:
    text = edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    done = infernum("inspect", folder, "--block", "embed", "--variant", "t1", "--source")
    assert (done.code, done.out) == (0, text)
    assert done.err == f"note: {EMBED} differs from what was compiled; run `infernum rebuild {folder}`\n"
    kernel = infernum("inspect", folder, "--kernel", "embedding", "--source")
    assert OTHER_ID in kernel.out and "note: " in kernel.err


def test_inspect_shows_products_of_the_library_and_what_rules_did(folder: Path, infernum: Run) -> None:
    block = infernum("inspect", folder, "--block", "decoder", "--variant", "decode").out
    (row,) = (line for line in block.splitlines() if "gemm_q_k_v_proj" in line)
    assert row.split()[0] == "gemm" and row.split()[-2:] == ["3", "linear"]
    fired = block[block.index("rules fired, in order") : block.index("rules refused")]
    assert "merge_products" in fired and "linear_1, linear_2, linear_3" in fired
    product = infernum("inspect", folder, "--kernel", "gemm_q_k_v_proj").out
    assert "a product of cuBLASLt" in product and "3 kernel(s)" in product and "registers" not in product
    done = infernum("inspect", folder, "--kernel", "gemm_q_k_v_proj", "--source")
    assert (done.code, done.out) == (2, "") and "no source to show" in done.err


def look(found: dict[str, dict[str, list[dict[str, str]]]], what: str) -> dict[str, str]:
    return next(each for each in found["bundle"]["found"] if each["what"] == what)


def test_doctor_tells_of_edits_and_files_of_a_bundle_that_runs(folder: Path, infernum: Run) -> None:
    edit(folder, DECODER, (STORE, DOUBLED))
    rebuild(folder)
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    (folder / "notes.txt").write_text("mine")
    (folder / "rules.txt").unlink()
    done = infernum("doctor", folder, "--json")
    found = json.loads(done.out)
    assert done.code == 0
    states = found["bundle"]["files"]
    assert (states[EMBED], states["notes.txt"], states["rules.txt"], states[DECODER]) == (
        "edited",
        "extra",
        "missing",
        "ok",
    )
    assert look(found, "edited by hand")["found"] == f"{DECODER} (gemv_mma_o_proj)"
    assert look(found, "edited, not rebuilt")["mend"] == f"infernum rebuild {folder}"
    assert look(found, "missing")["found"] == "rules.txt"
    assert found["bundle"]["works"]["run the bundle in NumPy"] is True
    assert "decoder.t1.cu (gemv_mma_o_proj)" in infernum("doctor", folder).out


@pytest.mark.parametrize("harm", ["damaged graph", "missing graph", "manifest", "no bundle"])
def test_doctor_ends_with_1_for_a_bundle_that_cannot_be_run(folder: Path, harm: str, infernum: Run) -> None:
    match harm:
        case "damaged graph":
            (folder / "embed.t1.ir").write_text("graph")
        case "missing graph":
            (folder / "embed.t1.ir").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{}")
        case _:
            shutil.rmtree(folder)
    done = infernum("doctor", folder)
    assert done.code == 1
    assert ("embed.t1.ir" if "graph" in harm else str(folder)) in done.out


def test_doctor_compares_the_architecture_with_the_gpu_at_hand(
    folder: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "gpu_available", lambda: True)
    monkeypatch.setattr(driver, "gpu_facts", lambda index: GpuFacts(index, "an A100", (8, 0), 108, 0, 0))
    done = infernum("doctor", folder, "--json")
    arch = look(json.loads(done.out), "architecture")
    assert done.code == 1
    assert arch["fine"] is False and "compiled for sm_90a, and an A100 is sm_80" in arch["found"]


def test_doctor_asks_for_the_plugins_that_a_bundle_needs(folder: Path, infernum: Run) -> None:
    import msgspec

    opened = open_bundle(folder)
    needed = [Plugin(name="my_ops", sha256="0" * 64)]
    bundles.update_bundle(opened, msgspec.structs.replace(opened.manifest, plugins=needed), {}, {})
    done = infernum("doctor", folder, "--json")
    plugins = look(json.loads(done.out), "plugins")
    assert done.code == 1
    assert (plugins["found"], plugins["mend"]) == ("my_ops (not loaded)", "give their files with --plugin")
    assert "my_ops" in infernum("inspect", folder).out


RUN = ("run", "Midway", "--device", "cpu", "--greedy", "-n", "3", "--bundle")


def test_run_warns_of_an_edit_that_is_not_rebuilt(
    folder: Path, infernum: Run, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    with caplog.at_level(logging.WARNING):
        assert infernum(*RUN, folder).code == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{folder}: {EMBED} differs from what was compiled, which is what runs; run `infernum rebuild {folder}`"
    )


def test_numpy_warns_that_it_does_not_run_edited_kernels(
    folder: Path, infernum: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        unedited = infernum(*RUN, folder)
        assert caplog.records == []
        edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
        rebuild(folder)
        assert infernum(*RUN, folder).out == unedited.out
    (record,) = caplog.records
    assert "NumPy runs the graphs, not the kernels" in record.getMessage()


def test_whoever_reads_an_edited_source_through_the_bundle_is_told_to_rebuild(folder: Path) -> None:
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    opened = open_bundle(folder)
    assert file_state(opened, EMBED) == "edited"
    with pytest.raises(BundleError, match="differs from what was compiled; run `infernum rebuild"):
        opened.read(EMBED)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ('extern "C" __global__ void k() {}', KernelSignature((), None)),
        ('extern "C" __global__ void k(void) {}', KernelSignature((), None)),
        (
            'extern "C" __global__ void __launch_bounds__(64, 2) k(const int* a, Pair<int, 3> b, int c[2]) {}',
            KernelSignature(("const int* a", "Pair<int, 3> b", "int c[2]"), 64),
        ),
        (
            "// __global__ void k(int a)\n/* __global__ void k(int a) */\n#if 0\n__global__ void k(int a) {}\n#endif\n"
            'extern "C" __global__ void other(int a) { k; }\n'
            'extern "C" __global__ void __launch_bounds__(THREADS)\nk(float* out,  // where, to\n  int n) {}',
            KernelSignature(("float* out", "int n"), None),
        ),
        ("KERNEL(k, int a) {}", None),
        ('extern "C" __global__ void kk(int a) {}', None),
    ],
)
def test_the_parameters_of_a_kernel_are_read_from_its_source(
    source: str, wanted: KernelSignature | None
) -> None:
    assert signature_of(source, "k") == wanted


def test_a_gpu_that_cannot_be_asked_is_a_finding(
    folder: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(index: int) -> GpuFacts:
        raise DeviceError("the driver does not answer")

    monkeypatch.setattr(driver, "gpu_available", lambda: True)
    monkeypatch.setattr(driver, "gpu_facts", broken)
    done = infernum("doctor", folder, "--json")
    assert done.code == 1
    assert look(json.loads(done.out), "architecture")["found"] == "the driver does not answer"


NAMES_OF_NO_FILE = (
    "../x.cubin",
    "/x.cubin",
    "sub/x.cubin",
    "..",
    ".",
    "",
    r"..\x.cubin",
    "C:x",
    "x\0",
    "x\n",
)


@pytest.mark.parametrize("name", NAMES_OF_NO_FILE)
@pytest.mark.parametrize("field", ["source", "cubin", "traced", "graph"])
def test_a_manifest_names_only_files_of_its_bundle(
    folder: Path, field: str, name: str, infernum: Run
) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["blocks"]["embed"]["t1"][field] = name

    rewrite_manifest(folder, rename)
    edit(folder, EMBED, (TOKEN_ID, OTHER_ID))
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    for command in ("rebuild", "inspect"):
        done = infernum(command, folder)
        assert done.code == 2 and len(done.err.splitlines()) == 1
        assert "manifest.json" in done.err and f"{name!r} is not the name of a file in a bundle" in done.err
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [name for name in NAMES_OF_NO_FILE if name and "\n" not in name])
def test_a_list_of_checksums_names_only_files_of_its_bundle(folder: Path, name: str, infernum: Run) -> None:
    with (folder / "checksums.txt").open("a") as listing:
        listing.write(f"{sha256(b'')}  {name}\n")
    done = infernum("doctor", folder, "--json")
    assert done.code == 1
    (look,) = json.loads(done.out)["bundle"]["found"]
    assert "checksums.txt: is damaged" in look["found"] and repr(name) in look["found"]


def test_a_file_that_a_bundle_links_to_from_outside_is_not_read(folder: Path, infernum: Run) -> None:
    outside = folder.parent / "outside"
    (folder / EMBED).rename(outside)
    (folder / EMBED).symlink_to(outside)
    assert file_state(open_bundle(folder), EMBED) == "missing"
    with pytest.raises(
        BundleError, match=rf"{EMBED}: cannot be read \(a link that leads out of the bundle\)"
    ):
        open_bundle(folder).read(EMBED)
    outside.write_text(outside.read_text().replace(TOKEN_ID, OTHER_ID))
    refused = infernum("rebuild", folder)
    assert refused.code == 2 and f"{EMBED}: is missing" in refused.err
    shown = infernum("inspect", folder, "--block", "embed", "--variant", "t1", "--source")
    assert shown.code == 2 and shown.out == ""


def test_a_link_to_the_whole_bundle_and_links_inside_it_are_followed(folder: Path) -> None:
    (folder / EMBED).rename(folder / "elsewhere.cu")
    (folder / EMBED).symlink_to("elsewhere.cu")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert file_state(open_bundle(link), EMBED) == "ok"


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    (folder / EMBED).unlink()
    os.mkfifo(folder / EMBED)
    assert file_state(open_bundle(folder), EMBED) == "missing"


@pytest.mark.parametrize("name", ["../secret.py", "{folder}/secret.py", "x\0.py"])
def test_explain_reads_no_file_that_a_bundle_names_from_elsewhere(tmp_path: Path, name: str) -> None:
    from infernum.lab.explain import lines

    (tmp_path / "secret.py").write_text("password = 1\n")
    (tmp_path / "package").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PACKAGE", tmp_path / "package")
        assert lines.text_of(f"{name.format(folder=tmp_path)}:1") is None
