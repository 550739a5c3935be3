"""The documents are true: their commands print what they show, their links and options exist.

`test_examples.py` does the same for the READMEs of the examples.
"""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from conftest import Outcome
from documents import (
    ROOT,
    Printed,
    SavedFile,
    Step,
    actions_of,
    follow,
    masked,
    matches,
    printed_in,
    steps_of,
    with_outputs,
)

from infernum.cli import COMMANDS
from infernum.compiler import Options, compile_model
from infernum.models.presets import resolve
from infernum.runtime.driver import gpu_available

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
PRINTED = [
    pytest.param(document, printed, id=f"{document.name}: {printed.command}")
    for document in DOCUMENTS
    for printed in printed_in(document.read_text(encoding="utf-8"))
]
FOLLOWED = [
    document
    for document in DOCUMENTS
    if document.parent in (ROOT, ROOT / "docs") and steps_of(document.read_text(encoding="utf-8"))
    if document.name
    not in ("CONTRIBUTING.md", "recipes.md")  # whose recipes are followed one by one, in test_contributing.py
]
MAINTAINERS = ("ARCHITECTURE.md", "kernels.md", "lab.md", "decisions.md")
EXTENSIONS = {"cu", "ir", "json", "txt", "md", "toml", "py"}
VOLATILE = re.compile(r"^  (registers|occupancy) .*\n", re.MULTILINE)
"""What another version of NVRTC may change."""


def _name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with build/llama, as the README's first command makes it for sm_90a."""
    folder = tmp_path_factory.mktemp("documents")
    compile_model(resolve("llama"), Options(), folder / "build" / "llama")
    return folder


@pytest.mark.parametrize(("document", "printed"), PRINTED)
def test_what_is_shown_is_what_the_command_prints(
    folder: Path,
    infernum: object,
    monkeypatch: pytest.MonkeyPatch,
    document: Path,
    printed: Printed,
    update_golden: bool,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(printed.columns))
    assert callable(infernum)
    outcome = infernum(*printed.command.split())
    assert isinstance(outcome, Outcome) and outcome.code == 0, outcome
    assert re.search(rf"infernum {re.escape(printed.command)}[`\n]", document.read_text(encoding="utf-8"))
    # the first line of a source names the bundle
    output = outcome.out.partition("\n")[2] if "--source" in printed.command else outcome.out
    if VOLATILE.sub("", printed.output) != VOLATILE.sub("", output) and update_golden:
        text = document.read_text(encoding="utf-8")
        document.write_text(text.replace(printed.output, output), encoding="utf-8")
        return
    assert VOLATILE.sub("", printed.output) == VOLATILE.sub("", output)


@pytest.mark.skipif(gpu_available(), reason="the documents show what is printed without a GPU")
@pytest.mark.parametrize("document", FOLLOWED, ids=_name)
def test_a_reader_who_follows_a_document_sees_what_it_shows(
    document: Path, tmp_path: Path, update_golden: bool
) -> None:
    follow(document, tmp_path, update=update_golden)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_file_that_a_document_links_to_is_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_command_and_option_in_a_document_exists(document: Path) -> None:
    """Of commands in code; `rebuild … -- OPTIONS` are options of `run`."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    unknown = list[str]()
    for line in re.findall(rf"\binfernum ((?:{'|'.join(COMMANDS)})\b[^`|;#\n]*)", text):
        line = re.sub(r'"[^"]*"', "TEXT", line).partition(" -- ")[0]
        name, *words = line.split()
        command: click.Command = import_module(f"infernum.cli.{name}_command").command
        if isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words[0]]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {
            "-h",
            "--help",
        }
        given = [word.partition("=")[0].rstrip(".,:") for word in words if re.match(r"--?[a-z]", word)]
        unknown += [f"infernum {line}: {option}" for option in given if option.split("/")[0] not in options]
    assert unknown == []


@pytest.mark.parametrize(
    "document", [document for document in DOCUMENTS if document.name in MAINTAINERS], ids=_name
)
def test_every_name_that_a_document_for_maintainers_has_in_code_exists(document: Path) -> None:
    """So that a class, function, field or file that is renamed is renamed in the documents too."""
    sources = [
        path
        for folder in ("infernum", "templates", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".j2", ".cuh", ".js") and path != Path(__file__)
    ]
    words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in sources)))
    names = re.findall(r"`([A-Za-z_][\w./]*)(?:\([^`]*\))?`", document.read_text(encoding="utf-8"))
    folders = [ROOT, ROOT / "infernum", ROOT / "templates", ROOT / "tests"]
    assert [
        name
        for name in dict.fromkeys(names)
        if not any((folder / name).exists() for folder in folders)
        and ("/" in name or name.rstrip(".").rpartition(".")[2] not in words | EXTENSIONS)
    ] == []


def test_the_map_of_folders_has_the_modules_of_the_import_contract_in_its_order() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    contract = next(each for each in contracts if each.get("containers") == ["infernum"])
    depth = {name: n for n, layer in enumerate(contract["layers"]) for name in layer.split(" | ")}
    section = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Folders and arrows")[2]
    rows = re.findall(
        r"^ {4}([a-z_]+(?: \| [a-z_]+)*)(?:  .*)?$", section.partition("templates/")[0], re.MULTILINE
    )
    names = [name for row in rows for name in row.split(" | ")]
    assert sorted(names) == sorted(depth)
    assert [depth[name] for name in names] == sorted(depth[name] for name in names)


def test_lines_are_compared_as_they_stand_but_for_what_is_left_out() -> None:
    assert matches(("a", "…", "d"), ("a", "b", "c", "d"))
    assert matches(("a", "…"), ("a",))
    assert not matches(("a", "…", "d"), ("a", "b", "c"))
    assert not matches(("a.c",), ("abc",))
    assert not matches((), ("a",))


DOCUMENT = "```python\n$ no\n```\n\n```console\n$ one \\\n    two\nsaid\n\n$ three\n```\n"


def test_commands_and_what_they_print_are_read_from_console_blocks_only() -> None:
    assert steps_of(DOCUMENT) == [Step("one two", ("said",), 7), Step("three", (), 10)]


def test_a_block_with_a_name_is_a_file_that_is_saved_before_the_commands_below_it() -> None:
    text = "```console\n$ one\n```\n```python folder/a.py\nx = 1\n```\n```console\n$ two\n```\n"
    assert actions_of(text) == [Step("one", (), 2), SavedFile("folder/a.py", "x = 1\n"), Step("two", (), 8)]


def test_an_output_is_the_block_below_its_comment() -> None:
    text = "<!-- prints: inspect b (at 80 columns) -->\n```text\na\nb\n```\n\n```text\nc\n```\n"
    assert printed_in(text) == [Printed("inspect b", 80, "a\nb\n")]


def test_what_commands_print_is_written_below_them() -> None:
    first, second = steps_of(DOCUMENT)
    assert with_outputs(DOCUMENT, {first: ("a", "b"), second: ("c",)}) == (
        "```python\n$ no\n```\n\n```console\n$ one \\\n    two\na\nb\n\n$ three\nc\n```\n"
    )


def test_times_are_masked_and_other_numbers_are_not() -> None:
    lines = ("compiled in 3.1 s; 7 kernels, 3 samples  ", "floor 0.45 us", "80%", "")
    assert masked(lines) == ("compiled in N s; 7 kernels, 3 samples", "floor 0.45 us", "80%")
