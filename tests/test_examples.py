"""The examples, run as their READMEs say: every `$ command` of a console block must print what stands below it."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT, follow, run, steps_of

from infernum.runtime.driver import gpu_available

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
    follow(readme, checkout, update=update_golden)


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
    commands = [step.command for readme in READMES for step in steps_of(readme.read_text(encoding="utf-8"))]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py")]
    assert {file for file in files if not any(file in command for command in commands)} == {
        "examples/clients/langchain_tools.py",  # needs LangChain and a server
        "examples/clients/openai_python.py",  # tests/test_serve_openai.py runs it
        "examples/dante/train.py",  # needs torch and a book
        "examples/dante_chat/facts.py",  # needs a book, as does what imports it
        "examples/dante_chat/make_questions.py",
        "examples/dante_chat/train.py",  # needs torch
    }
