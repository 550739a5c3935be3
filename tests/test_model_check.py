"""`infernum doctor MODEL`: what lies in a model folder, and whether it will work, without reading a weight."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Tiny

from infernum.model_folder.weights import StoredTensor
from infernum.resources import demo_folder
from infernum.runtime.driver import GpuFacts

Run = Callable[..., Outcome]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4567890\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model."""
    copy = tmp_path / "poet"
    shutil.copytree(demo_folder(), copy)
    return copy


def examined(infernum: Run, model: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what was seen, by what was looked at."""
    done = infernum("doctor", model, "--json")
    assert done.err == ""
    return done.code, {look["what"]: look for look in json.loads(done.out)["model"]["found"]}


def test_a_model_that_works_is_described(folder: Path, infernum: Run) -> None:
    code, seen = examined(infernum, folder)
    assert code == 0
    assert all(look["fine"] for look in seen.values()), seen
    assert "llama" in seen["configuration"]["found"]
    assert "in 1 file: BF16 9.97 MB" in seen["weights"]["found"]
    assert "tokens" in seen["tokenizer"]["found"]
    assert "ends at" in seen["generation"]["found"]
    assert "of KV cache a token" in seen["memory"]["found"]
    printed = infernum("doctor", folder)
    assert printed.code == 0
    assert "run the model in NumPy" in printed.out


def test_the_chat_template_of_a_model_is_described(infernum: Run, tmp_path: Path) -> None:
    _, seen = examined(infernum, "dante-chat")
    assert seen["chat template"]["found"] == "chat_template.jinja; an answer ends at <|im_end|>"
    _, seen = examined(infernum, "dante")
    assert seen["chat template"]["found"] == "none; `infernum run` continues a text"
    folder = tmp_path / "broken"
    shutil.copytree(demo_folder("dante-chat"), folder)
    (folder / "chat_template.jinja").write_text("{% if %}")
    code, seen = examined(infernum, folder)
    assert code == 1 and not seen["chat template"]["fine"]
    assert "chat_template.jinja" in seen["chat template"]["found"]


def test_no_weight_is_read(folder: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Header:
        """A file that gives nothing but its header."""

        def __init__(self, opened: Any) -> None:
            self.metadata = opened.metadata

        def get_tensor(self, name: str) -> None:
            raise AssertionError(f"{name} was read")

        get_slice = get_tensor

    original = StoredTensor.__init__

    def without_elements(tensor: StoredTensor, *args: Any) -> None:
        file, opened, *more = args
        original(tensor, file, Header(opened), *more)

    monkeypatch.setattr(StoredTensor, "__init__", without_elements)
    assert examined(infernum, folder)[0] == 0


def test_memory_is_that_of_the_dtype_and_of_every_layer(infernum: Run) -> None:
    _, seen = examined(infernum, "llama-3.2-1b")
    assert "2.47 GB of weights as bf16" in seen["memory"]["found"]
    assert "32.8 kB of KV cache a token: 4.29 GB for the whole context of 131072" in seen["memory"]["found"]


@pytest.mark.parametrize(("model", "tokens"), [("llama-3.2-1b", 583_751), ("gemma-3-1b", 4_363_363)])
def test_a_gpu_has_room_for_more_tokens_of_layers_with_a_window(
    infernum: Run, model: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuFacts(index=0, name="GPU", arch=(9, 0), sms=132, shared_optin=232448, total_bytes=24 * 10**9)
    monkeypatch.setattr("infernum.runtime.driver.gpu_available", lambda: True)
    monkeypatch.setattr("infernum.runtime.driver.gpu_facts", lambda index: gpu)
    _, seen = examined(infernum, model)
    assert f"room for {tokens:,} tokens" in seen["memory"]["found"]


def test_a_machine_with_too_little_memory_is_said_to_have_too_little(
    folder: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    code, seen = examined(infernum, folder)
    assert (code, seen["memory"]["fine"]) == (1, False)
    assert "this machine has 1 MB" in seen["memory"]["found"]


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _bad_config(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "parrot"}))


def _pointer_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)


def _pointer_of_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def _other_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _other_layers(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 99}))


def _other_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


@pytest.mark.parametrize(
    ("harm", "what", "says", "mend"),
    [
        (_no_config, "configuration", "config.json", "config.json"),
        (_bad_config, "configuration", "parrot", ""),
        (_pointer_of_weights, "weights", "Git LFS pointer", "git lfs pull"),
        (_pointer_of_tokenizer, "tokenizer", "Git LFS pointer", "git lfs pull"),
        (_other_weights, "weights", "pickled", "save_pretrained"),
        (_other_layers, "weights and configuration", "has no layer 98", "correct it"),
        (_other_tokenizer, "tokenizer", "tokenizer.model", "AutoTokenizer"),
    ],
)
def test_what_is_missing_is_said_with_how_to_get_it(
    harm: Callable[[Path], None], what: str, says: str, mend: str, folder: Path, infernum: Run
) -> None:
    harm(folder)
    code, seen = examined(infernum, folder)
    assert code == 1
    assert [name for name, look in seen.items() if not look["fine"]] == [what]
    assert says in seen[what]["found"]
    assert mend in seen[what]["mend"]


def test_a_folder_that_is_no_model_says_what_it_is(tmp_path: Path, infernum: Run) -> None:
    code, seen = examined(infernum, tmp_path)
    assert (code, list(seen)) == (1, ["folder"])
    assert "is empty" in seen["folder"]["found"]


def test_a_model_without_a_tokenizer_runs_on_token_ids(tiny: Callable[[str], Tiny], infernum: Run) -> None:
    code, seen = examined(infernum, tiny("seven_to_one").folder)
    assert (code, seen["tokenizer"]["fine"]) == (0, True)
    assert "--prompt-ids" in seen["tokenizer"]["found"]
