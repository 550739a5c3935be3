"""Files that commands write: whole or not at all, under the permissions that are usual, and to pipes as well."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, in_shell

from infernum.bundle import Bundle
from infernum.cli.bench_results import write_results
from infernum.cli.output import write_output
from infernum.errors import InfernumError

Run = Callable[..., Outcome]
COMMANDS = {"report": ("report", "BUNDLE", "-o"), "graph": ("graph", "BUNDLE", "decoder", "-o")}


def command(name: str, bundle: Bundle, output: Path) -> list[str | Path]:
    return [*(bundle.folder if arg == "BUNDLE" else arg for arg in COMMANDS[name]), output]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("before", ["what was there", None])
def test_a_file_that_cannot_be_written_whole_is_not_written(
    name: str, before: str | None, dante_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "out.html"
    if before is not None:
        output.write_text(before)
    done = in_shell('ulimit -f 4; "$@"', *command(name, dante_bundle, output))
    assert done.returncode == 2
    assert done.stderr.decode() == f"error: {output}: cannot be written (File too large)\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_leaves_the_file_that_was_there(
    name: str, dante_bundle: Bundle, tmp_path: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    output = tmp_path / "out.html"
    output.write_text("what was there")
    assert infernum(*command(name, dante_bundle, output)).code == 130
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


def test_results_of_benchmarks_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = tmp_path / "new" / "results.json"
    write_results({"a": 1}, output)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfernumError, match=r"results\.json: cannot be written \(No space left on device\)"):
        write_results({"a": 2}, output)
    assert [json.loads(path.read_text()) for path in output.parent.iterdir()] == [{"a": 1}]


def test_a_new_file_has_the_usual_permissions_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    old.write_text("")
    old.chmod(0o640)
    usual.write_text("")
    write_output(old, "text")
    write_output(new, "text")
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode == usual.stat().st_mode


def test_a_link_goes_on_pointing_at_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("place")
    for text in ("one", "two"):
        write_output(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "place").read_text() == text


def test_a_name_as_long_as_may_be_can_be_written(tmp_path: Path) -> None:
    write_output(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InfernumError, match=r"cannot be written \(Is a directory\)"):
        write_output(tmp_path, "text")


def test_part_of_a_character_is_a_question_mark(tmp_path: Path) -> None:
    write_output(tmp_path / "out", "\udcff")
    assert (tmp_path / "out").read_text() == "?"


@pytest.mark.parametrize("line", ['"$@" > OUT', 'echo head > OUT; "$@" >> OUT', '"$@" | cat > OUT'])
def test_a_graph_is_written_to_stdout_by_its_name(line: str, dante_bundle: Bundle, tmp_path: Path) -> None:
    drawing = in_shell('"$@"', "graph", dante_bundle.folder, "decoder").stdout
    output = tmp_path / "out"
    done = in_shell(line.replace("OUT", str(output)), *command("graph", dante_bundle, Path("/dev/stdout")))
    assert (done.returncode, done.stderr) == (0, b"/dev/stdout: decoder.t1, after fusion\n")
    assert output.read_bytes() == (b"head\n" if ">>" in line else b"") + drawing


def test_a_pipe_with_a_name_is_written_to(dante_bundle: Bundle, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = f'cat {tmp_path}/pipe > {tmp_path}/out & "$@"; wait'
    done = in_shell(line, *command("graph", dante_bundle, tmp_path / "pipe"))
    assert done.returncode == 0 and (tmp_path / "out").read_text().endswith("</svg>\n")
    assert (tmp_path / "pipe").is_fifo()
