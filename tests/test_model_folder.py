"""What a folder holds: every download, conversion and copy that can stand in place of a model is called by its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from infernum.checkpoint import Checkpoint
from infernum.errors import CheckpointError, ConfigError
from infernum.model_folder.folder import find_config, find_tokenizer, find_weights, look_at
from infernum.model_folder.problems import Problem
from infernum.model_folder.weights import INDEX, SINGLE, FolderWeights
from infernum.models.presets import resolve

ARRAYS = {"a": np.ones((2, 3), np.float32), "b": np.ones(5, ml_dtypes.bfloat16), "c": np.ones(7, np.int32)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 2471645608\n"
CONFIG = b'{"model_type": "llama"}'


def model(folder: Path, *, without: str = "", **files: bytes) -> Path:
    """A folder with config, weights and tokenizer, less one; `files` replaces contents: dots are written as `__`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(ARRAYS, folder / SINGLE)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (folder / name).write_bytes(CONFIG)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    (folder / without).unlink() if without else None
    return folder


def only(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(CONFIG)
    return folder


def shards(folder: Path) -> Path:
    """Two shards and their index, of which the second is missing."""
    model(folder, without=SINGLE)
    save_file({"a": ARRAYS["a"]}, folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def cached(folder: Path, *commits: str) -> Path:
    """A model in the layout of the hub's cache; the snapshots `commits` are complete, and "broken" is not."""
    entry = folder / "models--org--name"
    for commit in commits:
        model(entry / "snapshots" / commit, without=SINGLE if commit == "broken" else "")
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("main")
    return entry


def broken_link(folder: Path, name: str) -> Path:
    model(folder, without=name)
    (folder / name).symlink_to("../../blobs/0123")
    return folder


def test_a_whole_folder_is_described_without_reading_its_weights(tmp_path: Path) -> None:
    held = look_at(model(tmp_path))
    assert held.problem is None
    assert held.config == tmp_path / "config.json"
    assert held.generation_config == tmp_path / "generation_config.json"
    assert held.tokenizer == tmp_path / "tokenizer.json"
    assert held.tokenizer_files == ("tokenizer.json",)
    assert held.weights_format == "safetensors"
    assert isinstance(held.weights, FolderWeights)
    assert held.weights.files == (tmp_path / SINGLE,)
    assert held.weights.bytes_by_kind == {"I32": 28, "F32": 24, "BF16": 10}
    assert held.weights.total_bytes == 62
    assert held.weights.main_dtype is not None
    assert held.weights.main_dtype.name == "f32"


WEIGHTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "git-lfs-pointer": (
        lambda f: model(f, model__safetensors=POINTER),
        r"model\.safetensors: is a Git LFS pointer to 2,471,645,608 bytes; .* run `git lfs pull` in .*",
    ),
    "git-lfs-pointer-of-the-index": (
        lambda f: model(f, without=SINGLE, model__safetensors__index__json=POINTER),
        r"index\.json: is a Git LFS pointer .*; run `git lfs pull` in .*",
    ),
    "web-page": (
        lambda f: model(f, model__safetensors=b"<!DOCTYPE html><title>404</title>"),
        r"model\.safetensors: is a web page, .*; download it again",
    ),
    "link-to-nothing": (
        lambda f: broken_link(f, SINGLE),
        r"model\.safetensors: is a link to \.\./\.\./blobs/0123, which is gone; download it again",
    ),
    "missing-shard": (
        shards,
        r"index\.json: names model-00002-of-00002\.safetensors, which is not in the folder; download it again",
    ),
    "shard-without-index": (
        lambda f: only(f, "config.json", "model-00001-of-00002.safetensors"),
        r"has model-00001-of-00002\.safetensors, but no model\.safetensors\.index\.json, .*; download it as well",
    ),
    "another-name": (
        lambda f: only(f, "config.json", "weights.safetensors"),
        r"has weights\.safetensors, but no .*; rename the file that holds all weights to model\.safetensors",
    ),
    "pickle": (
        lambda f: only(f, "config.json", "pytorch_model.bin"),
        r"its pytorch_model\.bin is PyTorch's pickled weights, which is not read; convert them: .*save_pretrained.*",
    ),
    "meta": (
        lambda f: only(f, "config.json", "consolidated.00.pth"),
        r"its consolidated\.00\.pth is Meta's own format, which is not read; get the model's -hf version.*",
    ),
    "gguf": (
        lambda f: only(f, "config.json", "model-Q4.gguf"),
        r"its model-Q4\.gguf is GGUF, which is not read; get the model's original weights.*",
    ),
    "nothing": (
        lambda f: only(f, "config.json"),
        r"has no model\.safetensors and no .*; download the model's weights into it, or .* --load-format dummy",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_lies_in_place_of_weights_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    make, said = WEIGHTS[name]
    folder = make(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"^{folder}.*{said}$") as refused:
        Checkpoint.open(folder)
    assert str(refused.value) == str(look_at(folder).weights)
    assert look_at(folder).config == folder / "config.json"


CONFIGS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "git-lfs-pointer": (
        lambda f: model(f, config__json=POINTER),
        r"config\.json: is a Git LFS pointer .*; run `git lfs pull` in .*",
    ),
    "link-to-nothing": (
        lambda f: broken_link(f, "config.json"),
        r"config\.json: is a link to \.\./\.\./blobs/0123, which is gone; download it again",
    ),
    "not-downloaded": (
        lambda f: model(f, without="config.json"),
        r"config\.json: no such file; give the folder of a Hugging Face model.*",
    ),
    "meta": (
        lambda f: only(f, "params.json", "consolidated.00.pth"),
        r"params\.json is Meta's own format; get the model's -hf version",
    ),
    "gguf": (
        lambda f: only(f, "model-Q4.gguf"),
        r"has no config\.json; its model-Q4\.gguf is GGUF; get the model's original weights.*",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_lies_in_place_of_a_config_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    make, said = CONFIGS[name]
    folder = make(tmp_path / "model")
    with pytest.raises(ConfigError, match=rf"^{folder}.*{said}$") as refused:
        resolve(str(folder))
    assert str(refused.value) == str(look_at(folder).config)


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda f: f / "nowhere", r"nowhere: no such folder.*"),
    "empty": (lambda f: only(f / "new"), r"new: is empty; download the model into it: config\.json, .*"),
    "only-hidden-files": (lambda f: only(f / "new", ".gitattributes"), r"new: is empty; .*"),
    "weights-file": (
        lambda f: model(f / "m") / SINGLE,
        r"m/model\.safetensors: is a file, not a folder; give its folder, .*/m",
    ),
    "gguf-file": (
        lambda f: only(f / "m", "model-Q4.gguf") / "model-Q4.gguf",
        r"model-Q4\.gguf: is a file in GGUF, which is not read; get the model's original weights.*",
    ),
    "adapter": (
        lambda f: model(
            f / "m",
            without=SINGLE,
            adapter_config__json=b'{"base_model_name_or_path": "org/base"}',
            adapter_model__safetensors=b"",
        ),
        r"m: holds an adapter of org/base only, not a model; merge it into its base model first.*",
    ),
    "bundle": (
        lambda f: only(f / "m", "manifest.json", "checksums.txt", "decoder.t1.cu"),
        r"m: is a compiled bundle, not a model; give the folder of the model it was made of",
    ),
    "cache-entry": (
        lambda f: cached(f, "broken", "main"),
        r"name: is a folder of a download cache, not a model; give its snapshot .*--name/snapshots/main",
    ),
    "snapshots": (
        lambda f: cached(f, "main") / "snapshots",
        r"snapshots: is a folder of a download cache, .*; give its snapshot .*--name/snapshots/main",
    ),
    "several-snapshots": (
        lambda f: cached(f, "0123", "main"),
        r"give its snapshot .*/snapshots/main \(or .*/snapshots/0123\)",
    ),
    "no-complete-snapshot": (
        lambda f: cached(f, "broken"),
        r"has no complete snapshot \(.*/broken: has no model.safetensors .*; download it again: `hf download org/name`",
    ),
    "whole-cache": (
        lambda f: cached(f, "main").parent,
        r"is a folder of a download cache, not a model; give its snapshot .*--name/snapshots/main",
    ),
    "one-folder-up": (
        lambda f: model(f / "up" / "the-model").parent,
        r"up: has no config\.json; a folder in it has; give .*/up/the-model",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_no_model_is_named_wherever_it_is_opened(tmp_path: Path, name: str) -> None:
    make, said = FOLDERS[name]
    folder = make(tmp_path)
    problem = find_weights(folder)
    assert isinstance(problem, Problem)
    with pytest.raises(CheckpointError, match=rf"{said}$") as refused:
        Checkpoint.open(folder)
    assert str(refused.value) == str(problem)
    assert "\n" not in str(refused.value)
    if find_config(folder) != folder / "config.json" and name != "nowhere":
        with pytest.raises(ConfigError, match=rf"{said}$"):
            resolve(str(folder))


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    held = look_at(shards(tmp_path))
    assert isinstance(held.weights, Problem)
    assert held.weights.files == ("model-00002-of-00002.safetensors",)
    assert held.weights_format == "safetensors"


def test_a_snapshot_of_a_download_cache_is_a_model(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "main") / "snapshots" / "main"
    assert look_at(snapshot).problem is None
    assert find_config(snapshot) == snapshot / "config.json"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda f: model(f, tokenizer__json=POINTER),
            r"tokenizer\.json: is a Git LFS pointer .*git lfs pull",
        ),
        (
            lambda f: only(f, "config.json", "tokenizer.model"),
            r"has tokenizer\.model, but no tokenizer\.json; convert it: .*AutoTokenizer",
        ),
        (
            lambda f: only(f, "vocab.json", "merges.txt"),
            r"has vocab\.json, but no tokenizer\.json; convert it",
        ),
    ],
)
def test_what_lies_in_place_of_a_tokenizer_is_named(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    problem = find_tokenizer(make(tmp_path))
    assert isinstance(problem, Problem)
    assert str(problem).startswith(str(tmp_path))
    assert problem.mend
    assert re.search(said, str(problem))


def test_a_folder_that_cannot_be_listed_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert str(find_weights(tmp_path)).startswith(f"{tmp_path}: cannot be listed (Permission denied); ")
    assert find_config(tmp_path) == find_weights(tmp_path)


def test_a_folder_without_any_tokenizer_has_none(tmp_path: Path) -> None:
    assert find_tokenizer(model(tmp_path, without="tokenizer.json")) is None
