"""The examples, run as their READMEs say: every `$ command` of a console block must print what stands below it."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from infernum.runtime.driver import gpu_available

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELLIPSIS = "…"
"""A line of a README that stands for any number of lines."""

Lines = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One command of a README, and what it prints, which begins at line `at` (counted from 0) of the file."""

    command: str
    expected: Lines
    at: int


def steps_of(text: str) -> list[Step]:
    """The commands in a README's console blocks, in order. A `\\` at the end of a line continues it on the next."""
    found: list[Step] = []
    for fence in FENCE.finditer(text):
        first = text[: fence.start(1)].count("\n")
        for number, line in enumerate(fence[1].splitlines(), start=first + 1):
            last = found[-1] if found else None
            if line.startswith("$ "):
                found.append(Step(line.removeprefix("$ "), (), number))
            elif last is not None and last.command.endswith("\\"):
                found[-1] = Step(f"{last.command[:-1].rstrip()} {line.strip()}", (), number)
            elif last is not None:
                found[-1] = Step(last.command, (*last.expected, line), last.at)
    return [Step(step.command, _stripped(step.expected), step.at) for step in found]


def masked(lines: Lines) -> Lines:
    """The lines without what differs from run to run: times, and spaces at their ends."""
    return _stripped(tuple(re.sub(r"\b\d+\.\d+ s\b", "N s", line.rstrip()) for line in lines))


def _stripped(lines: Lines) -> Lines:
    """The lines without empty ones at the end."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


def matches(expected: Lines, found: Lines) -> bool:
    """True when the lines are the same, with ELLIPSIS for any number of them."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == ELLIPSIS else f"{re.escape(line)}\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None


def run(command: str, folder: Path) -> Lines:
    """What a command prints on stdout and stderr together; it must succeed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\nexit code {done.returncode}\n{done.stdout}"
    return _stripped(tuple(line.rstrip() for line in done.stdout.splitlines()))


def with_outputs(text: str, outputs: dict[Step, Lines]) -> str:
    """A README with what its commands print put below them."""
    lines = text.split("\n")
    for step, found in sorted(outputs.items(), key=lambda item: item[0].at, reverse=True):
        lines[step.at : step.at + len(step.expected)] = found
    return "\n".join(lines)


READMES = [
    path for path in sorted((ROOT / "examples").rglob("README.md")) if steps_of(path.read_text("utf-8"))
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the examples lie as in a checkout; what they build stays in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.skipif(gpu_available(), reason="the READMEs say what is printed without a GPU")
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_an_example_prints_what_its_readme_says(readme: Path, checkout: Path, update_golden: bool) -> None:
    text = readme.read_text(encoding="utf-8")
    outputs: dict[Step, Lines] = {}
    for step in steps_of(text):
        found = run(step.command, checkout)
        expected, cleaned = masked(step.expected), masked(found)
        if matches(expected, cleaned):
            continue
        if update_golden and ELLIPSIS not in expected:
            outputs[step] = found
            continue
        shown = "\n".join(
            difflib.unified_diff(expected, cleaned, "the README", "what it prints", lineterm="")
        )
        pytest.fail(f"{readme.relative_to(ROOT)}:{step.at}: $ {step.command}\n{shown}")
    if outputs:
        readme.write_text(with_outputs(text, outputs), encoding="utf-8")


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_that_is_edited_passes_and_the_one_that_is_broken_does_not(
    checkout: Path,
) -> None:
    printed = run("python examples/inspect_kernels/edit.py", checkout)
    commands = [line.split()[2] for line in printed if line.startswith("> infernum ")]
    codes = [int(line.removeprefix("exit code ")) for line in printed if line.startswith("exit code ")]
    assert list(zip(commands, codes, strict=True)) == [
        *(("rebuild", 0), ("verify", 0), ("bench", 0)),  # edited
        ("rebuild", 2),  # does not compile
        *(("rebuild", 0), ("verify", 1)),  # broken
        *(("rebuild", 0), ("verify", 0)),  # as it was emitted
    ]


def test_every_example_stands_in_a_readme_that_is_run() -> None:
    told = [step.command for readme in READMES for step in steps_of(readme.read_text(encoding="utf-8"))]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py")]
    assert [file for file in files if not any(file in command for command in told)] == [
        "examples/dante/train.py"  # needs torch and a book
    ]


def test_lines_are_compared_as_they_stand_but_for_what_is_left_out() -> None:
    assert matches(("a", "…", "d"), ("a", "b", "c", "d"))
    assert matches(("a", "…"), ("a",))
    assert not matches(("a", "…", "d"), ("a", "b", "c"))
    assert not matches(("a.c",), ("abc",))
    assert not matches((), ("a",))


README = "```python\n$ no\n```\n\n```console\n$ one \\\n    two\nsaid\n\n$ three\n```\n"


def test_commands_and_what_they_print_are_read_from_console_blocks_only() -> None:
    assert steps_of(README) == [Step("one two", ("said",), 7), Step("three", (), 10)]


def test_what_commands_print_is_written_below_them() -> None:
    first, second = steps_of(README)
    assert with_outputs(README, {first: ("a", "b"), second: ("c",)}) == (
        "```python\n$ no\n```\n\n```console\n$ one \\\n    two\na\nb\n\n$ three\nc\n```\n"
    )


def test_times_are_masked_and_other_numbers_are_not() -> None:
    lines = ("compiled in 3.1 s; 7 kernels, 3 samples  ", "floor 0.45 us", "80%", "")
    assert masked(lines) == ("compiled in N s; 7 kernels, 3 samples", "floor 0.45 us", "80%")
