"""What the README and ARCHITECTURE show is what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Outcome

from infernum.compiler import Options, compile_model
from infernum.models.presets import resolve

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [
    ("README.md", "explain build/llama gemv_mma_gate_up_proj --variant t1", 118),
    ("README.md", "explain build/llama into_prologue", 118),
    ("ARCHITECTURE.md", "explain build/llama decoder --variant t1", 112),
    (
        "README.md",
        "inspect build/llama --block decoder --variant t1 --kernel gemv_mma_gate_up_proj --source",
        118,
    ),
]
VOLATILE = re.compile(r"^  (registers|occupancy) .*\n", re.MULTILINE)
"""What another version of NVRTC may change."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with build/llama, as the README's first command makes it for sm_90a."""
    folder = tmp_path_factory.mktemp("readme")
    compile_model(resolve("llama"), Options(), folder / "build" / "llama")
    return folder


@pytest.mark.parametrize(("file", "command", "columns"), SHOWN)
def test_what_is_shown_is_what_the_command_prints(
    folder: Path, infernum: object, monkeypatch: pytest.MonkeyPatch, file: str, command: str, columns: int
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert callable(infernum)
    found = infernum(*command.split())
    assert isinstance(found, Outcome) and found.code == 0, found
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"infernum {command}" in text
    printed = found.out.partition("\n")[2] if "--source" in command else found.out
    blocks = re.findall(r"^```(?:text|cuda)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert VOLATILE.sub("", printed) in [VOLATILE.sub("", block) for block in blocks]


@pytest.mark.parametrize("file", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md"])
def test_every_file_that_a_document_links_to_is_there(file: str) -> None:
    path = ROOT / file
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing
