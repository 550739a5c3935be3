"""The commands of a document, run as a reader would: each must print what stands below it.

A document has three kinds of blocks that are checked.

- A block ```` ```LANGUAGE FILE ```` is a file that the reader saves under that name.
- In a block ```` ```console ```` a line after `$ ` is a command, and the lines below it are its output. There `…` on a
  line of its own stands for any number of lines.
- Below a comment `<!-- prints: COMMAND (at N columns) -->` stands the output of `infernum COMMAND`.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(
    r"^<!-- prints: (?P<command>[^\n]+) \(at (?P<columns>\d+) columns\) -->\n+```\w+\n(?P<output>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
ELLIPSIS = "…"

Lines = tuple[str, ...]


@dataclass(frozen=True)
class SavedFile:
    """A file that the reader saves, as the document shows it."""

    name: str
    text: str


@dataclass(frozen=True)
class Step:
    """One command of a document and its output, which begins at line `at` (counted from 0) of the document."""

    command: str
    expected: Lines
    at: int


@dataclass(frozen=True)
class Printed:
    """A command of Infernum, without the word `infernum`, and its output at a width of the terminal."""

    command: str
    columns: int
    output: str


def actions_of(text: str) -> list[SavedFile | Step]:
    """What a document has its reader do, in order. A `\\` at the end of a line continues a command on the next."""
    actions: list[SavedFile | Step] = []
    for fence in FENCE.finditer(text):
        language, file, body = fence.groups()
        if file is not None:
            actions.append(SavedFile(file, body))
        elif language == "console":
            actions += _steps(body, text[: fence.start(3)].count("\n"))
    return actions


def steps_of(text: str) -> list[Step]:
    """The commands in a document's console blocks, in order."""
    return [action for action in actions_of(text) if isinstance(action, Step)]


def printed_in(text: str) -> list[Printed]:
    """The outputs below a comment `prints`."""
    return [Printed(m["command"], int(m["columns"]), m["output"]) for m in PRINTS.finditer(text)]


def _steps(body: str, first: int) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(body.splitlines(), start=first + 1):
        last = steps[-1] if steps else None
        if line.startswith("$ "):
            steps.append(Step(line.removeprefix("$ "), (), number))
        elif last is not None and last.command.endswith("\\"):
            steps[-1] = Step(f"{last.command[:-1].rstrip()} {line.strip()}", (), number)
        elif last is not None:
            steps[-1] = Step(last.command, (*last.expected, line), last.at)
    return [Step(step.command, _stripped(step.expected), step.at) for step in steps]


def masked(lines: Lines) -> Lines:
    """The lines without what differs from run to run: times, and spaces at their ends."""
    return _stripped(tuple(re.sub(r"\b\d+\.\d+ s\b", "N s", line.rstrip()) for line in lines))


def _stripped(lines: Lines) -> Lines:
    """The lines without empty ones at the end."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


def matches(expected: Lines, printed: Lines) -> bool:
    """True when the lines are the same, with ELLIPSIS for any number of them."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == ELLIPSIS else f"{re.escape(line)}\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


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
    """A document with what its commands print put below them."""
    lines = text.split("\n")
    for step, printed in sorted(outputs.items(), key=lambda item: item[0].at, reverse=True):
        lines[step.at : step.at + len(step.expected)] = printed
    return "\n".join(lines)


def check_step(document: Path, step: Step, folder: Path, *, update: bool = False) -> Lines | None:
    """Run a command; with `update`, its output if it differs from the document and may be corrected there."""
    printed = run(step.command, folder)
    expected, cleaned = masked(step.expected), masked(printed)
    if matches(expected, cleaned):
        return None
    if update and ELLIPSIS not in expected:
        return printed
    difference = difflib.unified_diff(
        expected, cleaned, "the document", "what the command prints", lineterm=""
    )
    return pytest.fail(
        f"{document.relative_to(ROOT)}:{step.at}: $ {step.command}\n{chr(10).join(difference)}"
    )


def follow(document: Path, folder: Path, *, update: bool) -> None:
    """Save the files and run the commands of a document in a folder; with `update`, correct outputs that differ."""
    text = document.read_text(encoding="utf-8")
    outputs: dict[Step, Lines] = {}
    for action in actions_of(text):
        match action:
            case SavedFile(name, content):
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
            case Step():
                printed = check_step(document, action, folder, update=update)
                if printed is not None:
                    outputs[action] = printed
    if outputs:
        document.write_text(with_outputs(text, outputs), encoding="utf-8")
