"""What users get wrong: each case is one line on stderr saying what, where and what to do, and exit code 2."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Tiny
from oracle.weights import random_weights
from safetensors.numpy import save_file

from infernum.bundle import Bundle
from infernum.resources import demo_folder
from infernum.runtime.driver import gpu_available

Run = Callable[..., Outcome]
CPU = ("--device", "cpu")


@dataclass(frozen=True)
class Workshop:
    """A folder to break things in, and whole things to break."""

    folder: Path
    dante: Bundle
    plain: Tiny

    def bundle(self) -> Path:
        """A copy of the demo's bundle."""
        return Path(shutil.copytree(self.dante.folder, self.folder / "bundle"))

    def model(self) -> Path:
        """A copy of a tiny random model."""
        return Path(shutil.copytree(self.plain.folder, self.folder / "model"))

    def configured(self, **changes: object) -> Path:
        """The tiny model with other fields in its config.json; None removes one."""
        folder = self.model()
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    def weighted(self, change: Callable[[dict[str, np.ndarray]], object]) -> tuple[str | Path, ...]:
        """A command line that runs the tiny model with other tensors in its checkpoint."""
        folder = self.model()
        weights = random_weights(self.plain.case.config)
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return self.running(folder)

    def running(self, model: Path) -> tuple[str | Path, ...]:
        """A command line that runs `model` with the tiny model's bundle."""
        return ("run", "1 2 3", "--prompt-ids", *self.loading(model))

    def loading(self, model: Path) -> tuple[str | Path, ...]:
        """The options of a command line that runs `model` with the tiny model's bundle."""
        return ("--model", model, "--bundle", self.plain.bundle().folder, *CPU)

    def demo(self, *args: str | Path) -> tuple[str | Path, ...]:
        """A command line that runs the demo from its bundle."""
        return ("run", "Midway", "--bundle", self.dante.folder, *CPU, *args)


@pytest.fixture
def workshop(tmp_path: Path, dante_bundle: Bundle, tiny: Callable[[str], Tiny]) -> Workshop:
    return Workshop(tmp_path, dante_bundle, tiny("plain"))


def flip(path: Path, at: int = -1) -> Path:
    """Change one bit of a file, by default in its middle."""
    data = bytearray(path.read_bytes())
    data[at if at >= 0 else len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a bundle's manifest and make its checksum right again."""
    import hashlib

    path = folder / "manifest.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    checksums = folder / "checksums.txt"
    checksums.write_text(checksums.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
    return folder


def compiles(model: object, *args: str) -> tuple[object, ...]:
    return ("compile", model, *args)


Case = tuple[Callable[[Workshop], tuple[Any, ...]], list[str]]
"""The command line, made in a workshop, and what the error must name."""

CASES: dict[str, Case] = {
    "missing-folder": (lambda w: compiles(w.folder / "nowhere"), ["nowhere", "no such folder"]),
    "not-a-preset": (lambda w: compiles("danta"), ["'danta'", "did you mean 'dante'"]),
    "file-for-folder": (lambda w: compiles(demo_folder() / "config.json"), ["config.json", "is a file"]),
    "no-config": (lambda w: compiles(w.folder), ["config.json", "no such file"]),
    "config-not-json": (
        lambda w: compiles(truncate(w.model() / "config.json").parent),
        ["config.json", "not valid JSON"],
    ),
    "config-not-utf8": (
        lambda w: compiles(write(w.model() / "config.json", b"\xff{}")),
        ["config.json", "UTF-8"],
    ),
    "config-without-size": (lambda w: compiles(w.configured(hidden_size=None)), ["hidden_size", "missing"]),
    "config-of-wrong-type": (lambda w: compiles(w.configured(vocab_size="many")), ["vocab_size", '"many"']),
    "config-that-does-not-fit": (
        lambda w: compiles(w.configured(num_key_value_heads=3)),
        ["num_key_value_heads", "multiple"],
    ),
    "unknown-model-type": (
        lambda w: compiles(w.configured(model_type="mamba")),
        ["mamba", "supported: llama"],
    ),
    "activation": (lambda w: compiles(w.configured(hidden_act="gelu")), ["hidden_act", "gelu", "silu"]),
    "rope-dynamic": (
        lambda w: compiles(w.configured(rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
        ["dynamic", "rope_scaling"],
    ),
    "quantized": (
        lambda w: compiles(w.configured(quantization_config={"quant_method": "gptq"})),
        ["quantization_config"],
    ),
    "unknown-rule": (
        lambda w: compiles("dante", "--rules=+merge_product"),
        ["'merge_product'", "did you mean merge_products"],
    ),
    "malformed-rules": (lambda w: compiles("dante", "--rules=merge_products"), ["--rules", "+name or -name"]),
    "unknown-arch": (lambda w: compiles("dante", "--arch", "sm_75"), ["sm_75", "sm_90a"]),
    "unknown-dtype": (lambda w: compiles("dante", "--dtype", "int4"), ["int4", "bfloat16"]),
    "no-batch-tokens": (lambda w: compiles("dante", "--max-batch-tokens", "0"), ["--max-batch-tokens"]),
    "output-not-a-bundle": (
        lambda w: compiles("dante", "-o", str(write(w.folder / "mine" / "notes.txt", b"dear diary"))),
        ["mine", "not a bundle", "-o"],
    ),
    "output-below-a-file": (
        lambda w: compiles("dante", "-o", str(write(w.folder / "file", b"") / "file" / "out")),
        ["cannot be written"],
    ),
    "no-such-bundle": (lambda w: ("inspect", w.folder / "none"), ["none", "infernum compile"]),
    "not-a-bundle": (lambda w: ("inspect", w.folder), ["manifest.json", "infernum compile"]),
    "no-such-kernel": (lambda w: ("inspect", w.dante.folder, "--kernel", "warp_drive"), ["warp_drive"]),
    "no-such-block": (lambda w: ("inspect", w.dante.folder, "--block", "encoder"), ["encoder", "decoder"]),
    "bit-flipped-manifest": (
        lambda w: ("inspect", flip(w.bundle() / "manifest.json").parent),
        ["manifest.json", "checksum", "compile"],
    ),
    "truncated-manifest": (
        lambda w: ("inspect", truncate(w.bundle() / "manifest.json").parent),
        ["manifest.json", "checksum"],
    ),
    "bit-flipped-graph": (
        lambda w: ("run", "Midway", *CPU, "--bundle", flip(w.bundle() / "decoder.t8.ir").parent),
        ["decoder.t8.ir", "checksum", "compile"],
    ),
    "truncated-graph": (
        lambda w: ("run", "Midway", *CPU, "--bundle", truncate(w.bundle() / "decoder.t8.ir").parent),
        ["decoder.t8.ir", "checksum"],
    ),
    "missing-source": (
        lambda w: (
            "inspect",
            remove(w.bundle() / "head.t1.cu"),
            "--block",
            "head",
            "--variant",
            "t1",
            "--source",
        ),
        ["head.t1.cu", "cannot be read"],
    ),
    "missing-checksums": (
        lambda w: ("inspect", remove(w.bundle() / "checksums.txt")),
        ["checksums.txt", "compile"],
    ),
    "damaged-checksums": (
        lambda w: ("inspect", write(w.bundle() / "checksums.txt", b"nothing\n")),
        ["checksums.txt", "damaged"],
    ),
    "another-schema": (
        lambda w: ("inspect", rewrite_manifest(w.bundle(), lambda m: m.update(schema=99))),
        ["schema 99", "infernum compile dante -o "],
    ),
    "manifest-lacks-a-field": (
        lambda w: ("inspect", rewrite_manifest(w.bundle(), lambda m: m.pop("program"))),
        ["manifest.json", "program", "compile"],
    ),
    "bundle-of-another-model": (
        lambda w: ("run", "1 2", "--prompt-ids", *CPU, "--model", w.plain.folder, "--bundle", w.dante.folder),
        ["dante", "config differs", "infernum compile"],
    ),
    "bundle-of-another-dtype": (lambda w: w.demo("--dtype", "float32"), ["bf16", "--dtype float32"]),
    "bundle-and-rules": (lambda w: w.demo("--no-fuse"), ["--fuse", "bundle"]),
    "truncated-safetensors": (
        lambda w: w.running(truncate(w.model() / "model.safetensors").parent),
        ["model.safetensors"],
    ),
    "safetensors-header-too-long": (
        lambda w: w.running(write(w.model() / "model.safetensors", struct.pack("<Q", 2**60) + b"{}")),
        ["model.safetensors"],
    ),
    "no-weights": (lambda w: w.running(remove(w.model() / "model.safetensors")), ["model.safetensors"]),
    "missing-tensor": (
        lambda w: w.weighted(lambda tensors: tensors.pop("model.norm.weight")),
        ["model.norm.weight", "missing", "model.safetensors"],
    ),
    "misshapen-tensor": (
        lambda w: w.weighted(lambda tensors: tensors.update({"model.norm.weight": np.ones(7, np.float32)})),
        ["model.norm.weight", "[7]", "expected [120]"],
    ),
    "extra-tensor": (
        lambda w: w.weighted(lambda tensors: tensors.update(extra=np.ones(7, np.float32))),
        ["extra", "not expected"],
    ),
    "tensor-of-integers": (
        lambda w: w.weighted(lambda tensors: tensors.update({"model.norm.weight": np.ones(120, np.int32)})),
        ["model.norm.weight", "i32", "a float type"],
    ),
    "preset-without-weights": (
        lambda w: ("run", "1 2", "--prompt-ids", "--model", "llama", *CPU),
        ["llama", "without weights", "--load-format dummy"],
    ),
    "broken-tokenizer": (
        lambda w: w.running(write(w.model() / "tokenizer.json", b"{}")),
        ["tokenizer.json", "not a tokenizer"],
    ),
    "no-tokens": (lambda w: w.demo("-n", "0"), ["max_tokens", "at least 1"]),
    "tokens-not-a-number": (lambda w: w.demo("-n", "many"), ["many", "--max-tokens"]),
    "negative-temperature": (lambda w: w.demo("--temperature", "-1"), ["temperature", "-1"]),
    "temperature-nan": (lambda w: w.demo("--temperature", "nan"), ["temperature", "nan"]),
    "greedy-and-warm": (lambda w: w.demo("--greedy", "--temperature", "1"), ["--greedy", "--temperature"]),
    "top-p-2": (lambda w: w.demo("--top-p", "2"), ["top_p", "at most 1"]),
    "negative-top-k": (lambda w: w.demo("--top-k", "-1"), ["top_k", "-1"]),
    "min-p-2": (lambda w: w.demo("--min-p", "2"), ["min_p", "from 0 to 1"]),
    "no-penalty-0": (lambda w: w.demo("--repetition-penalty", "0"), ["repetition_penalty"]),
    "negative-seed": (lambda w: w.demo("--seed", "-1"), ["seed", "-1"]),
    "empty-stop": (lambda w: w.demo("--stop", ""), ["stop", "not empty"]),
    "prompt-too-long": (
        lambda w: ("run", "word " * 3000, "--bundle", w.dante.folder, *CPU),
        ["prompt has", "2048", "shorten"],
    ),
    "longer-than-the-context": (lambda w: w.demo("--max-model-len", "9999"), ["9999", "2048"]),
    "too-much-of-the-gpu": (
        lambda w: w.demo("--gpu-memory-utilization", "1.5"),
        ["gpu_memory_utilization", "1.5"],
    ),
    "prompt-not-text": (lambda w: ("run", "\udcff", "--bundle", w.dante.folder, *CPU), ["prompt", "UTF-8"]),
    "empty-prompt-without-bos": (
        lambda w: ("run", "", "--prompt-ids", *w.loading(w.plain.folder)),
        ["prompt is empty", "no token to begin with"],
    ),
    "text-without-tokenizer": (
        lambda w: ("run", "to be", *w.loading(w.plain.folder)),
        ["no tokenizer.json", "--prompt-ids"],
    ),
    "digits-without-tokenizer": (
        lambda w: ("run", "60", *w.loading(w.plain.folder)),
        ["no tokenizer.json", "--prompt-ids"],
    ),
    "digits-for-a-preset-of-shapes": (
        lambda w: ("run", "60", "--model", "llama", "--load-format", "dummy", *CPU),
        ["llama", "preset without a tokenizer", "--prompt-ids"],
    ),
    "digits-with-a-tokenizer-of-sentencepiece": (
        lambda w: ("run", "60", *w.loading(write(w.model() / "tokenizer.model", b"\n\x05"))),
        ["has tokenizer.model, but no tokenizer.json", "save_pretrained", "--prompt-ids"],
    ),
    "digits-beside-weights-of-pytorch": (
        lambda w: ("run", "60", *w.loading(pickled(w.model()))),
        ["has tokenizer.model, but no tokenizer.json", "save_pretrained", "--prompt-ids"],
    ),
    "tokenizer-not-downloaded-by-lfs": (
        lambda w: (
            "run",
            "60",
            *w.loading(write(w.model() / "tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n")),
        ),
        ["tokenizer.json", "Git LFS pointer", "git lfs pull"],
    ),
    "prompt-ids-that-are-text": (lambda w: w.demo("--prompt-ids"), ["'Midway'", "token id", "1,2,3"]),
    "prompt-ids-without-end": (lambda w: ("run", "1" * 5000, "--prompt-ids", *CPU), ["1111", "token id"]),
    "no-prompt-ids": (lambda w: ("run", "--prompt-ids", *CPU), ["PROMPT", "stdin"]),
    "prompt-ids-that-are-negative": (
        lambda w: ("run", "--prompt-ids", *w.loading(w.plain.folder), "--", "-1,2"),
        ["'-1'", "token id"],
    ),
    "token-outside-of-the-vocabulary": (
        lambda w: ("run", "1 131", "--prompt-ids", *w.loading(w.plain.folder)),
        ["token 1", "131", "0 to 130"],
    ),
    "stop-without-tokenizer": (lambda w: (*w.running(w.plain.folder), "--stop", "x"), ["stop", "tokenizer"]),
    "no-prompt-for-another-model": (lambda w: ("run", "--model", w.plain.folder), ["PROMPT", "stdin"]),
    "unknown-device": (lambda w: ("run", "--device", "tpu"), ["tpu", "cuda"]),
    "unknown-command": (lambda w: ("generate",), ["generate", "--help"]),
    "unknown-option": (lambda w: ("run", "--tempreature", "1"), ["--tempreature"]),
    "a-name-that-is-too-long": (lambda w: ("inspect", "x" * 300), ["x" * 300, "File name too long"]),
    "bench-of-no-preset": (lambda w: ("bench", "latency", "--model", "lama"), ["'lama'", "llama"]),
}


def write(path: Path, data: bytes) -> Path:
    """Write a file and return its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.parent


def pickled(folder: Path) -> Path:
    """Put weights of PyTorch and a SentencePiece tokenizer in place of safetensors, and return the folder."""
    write(folder / "tokenizer.model", b"\n\x05")
    write(folder / "pytorch_model.bin", b"PK")
    return remove(folder / "model.safetensors")


def remove(path: Path) -> Path:
    """Remove a file and return its folder."""
    path.unlink()
    return path.parent


def check(done: Outcome, names: list[str]) -> None:
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.err + done.out
    for name in names:
        assert name in lines[0]
    assert done.code == 2
    assert done.out == ""


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_that_says_what_where_and_what_to_do(
    name: str, workshop: Workshop, infernum: Run
) -> None:
    command, names = CASES[name]
    check(infernum(*command(workshop)), names)


def test_a_prompt_on_stdin_that_is_not_utf8_is_refused(workshop: Workshop, infernum: Run) -> None:
    done = infernum("run", "-", "--bundle", workshop.dante.folder, *CPU, stdin=b"caf\xe9")
    check(done, ["stdin", "UTF-8", "byte 3"])


@pytest.mark.skipif(gpu_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "args",
    [("run", "--device", "cuda"), ("bench", "latency", "--load-format", "dummy")],
    ids=["run", "bench"],
)
def test_without_a_gpu_the_error_says_so_and_names_the_doctor(args: tuple[str, ...], infernum: Run) -> None:
    check(infernum(*args), ["infernum doctor"])


def test_native_without_a_gpu_is_refused(infernum: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from infernum.errors import DeviceError

    def none(index: int) -> None:
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr("infernum.machine.driver.gpu_facts", none)
    check(infernum("compile", "dante", "--arch", "native"), ["no NVIDIA driver"])


def test_verbose_shows_the_traceback_before_the_line(infernum: Run) -> None:
    for args in (("-v", "inspect", "nowhere"), ("inspect", "nowhere", "-v")):
        done = infernum(*args)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.splitlines()[-1].startswith("error: nowhere: no such bundle")
