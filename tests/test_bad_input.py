"""What users get wrong: each case is one line on stderr saying what, where and what to do, and exit code 2."""

from __future__ import annotations

import json
import shutil
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Tiny
from oracle.weights import random_weights
from safetensors.numpy import save_file

from infernum.bundle import Bundle
from infernum.errors import InfernumError, RequestError
from infernum.llm import LLM
from infernum.resources import demo_folder
from infernum.runtime.driver import gpu_available
from infernum.sampling_params import SamplingParams

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


def other(w: Workshop, name: str, **changes: object) -> Path:
    """The tiny model under another model type, whose classes in transformers begin with `name`."""
    return w.configured(model_type=name.lower(), architectures=[f"{name}ForCausalLM"], **changes)


Case = tuple[Callable[[Workshop], tuple[Any, ...]], list[str]]
"""The command line, made in a workshop, and what the error must name."""

CASES: dict[str, Case] = {
    "missing-folder": (lambda w: compiles(w.folder / "nowhere"), ["nowhere", "no such folder"]),
    "not-a-preset": (lambda w: compiles("danta"), ["'danta'", "did you mean 'dante'"]),
    "file-for-folder": (lambda w: compiles(demo_folder() / "config.json"), ["config.json", "is a file"]),
    "no-config": (lambda w: compiles(w.folder), ["is empty", "config.json"]),
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
        ["mamba", "needs a state beside the KV cache", "supported: ", "llama, "],
    ),
    "layer-types-of-another-length": (
        lambda w: compiles(other(w, "Ministral", layer_types=["full_attention"], num_key_value_heads=4)),
        ["layer_types", "num_hidden_layers = 2"],
    ),
    "layers-whose-window-is-off": (
        lambda w: compiles(
            other(w, "Qwen2", layer_types=["sliding_attention"] * 2, sliding_window=8, num_key_value_heads=4)
        ),
        ["layer_types", "sliding_window", "switched off"],
    ),
    "no-text-model": (lambda w: compiles(other(w, "Mistral3")), ["text_config", "missing"]),
    "fused-tensor-missing": (
        lambda w: ("run", "1 2 3", "--prompt-ids", "--model", other(w, "Phi3"), *CPU),
        ["qkv_proj.weight", "missing"],
    ),
    "activation": (lambda w: compiles(w.configured(hidden_act="xielu")), ["hidden_act", "xielu", "silu"]),
    "rope-unknown": (
        lambda w: compiles(w.configured(rope_scaling={"rope_type": "spiral", "factor": 2.0})),
        ["spiral", "rope_scaling"],
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
    "layers-beyond-the-weights": (
        lambda w: ("run", "1 2", "--prompt-ids", *CPU, "--model", w.configured(num_hidden_layers=10**6)),
        ["model.safetensors: has no layer 999999", "num_hidden_layers = 1000000", "correct it"],
    ),
    "one-layer-beyond-the-weights": (
        lambda w: compiles(w.configured(num_hidden_layers=w.plain.case.config["num_hidden_layers"] + 1)),
        ["has no layer", "num_hidden_layers"],
    ),
    "layers-beyond-all-models": (
        lambda w: (
            "run",
            "1 2",
            "--prompt-ids",
            *CPU,
            "--load-format",
            "dummy",
            "--model",
            w.configured(num_hidden_layers=10**6),
        ),
        ["num_hidden_layers = 1000000", "at most 4096"],
    ),
    "layers-without-weights": (
        lambda w: compiles(remove(w.configured(num_hidden_layers=2**31 - 1) / "model.safetensors")),
        ["num_hidden_layers = 2147483647", "at most 4096"],
    ),
    "vocabulary-beyond-the-weights": (
        lambda w: ("run", "1 2", "--prompt-ids", *CPU, "--model", w.configured(vocab_size=2 * 10**9)),
        ["model.embed_tokens.weight", "[131, 120]", "expected [2000000000, 120]"],
    ),
    "width-beyond-the-weights": (
        lambda w: compiles(w.configured(hidden_size=2**30, head_dim=30)),
        ["has shape", "expected [", "1073741824"],
    ),
    "heads-beyond-the-weights": (
        lambda w: compiles(w.configured(num_attention_heads=2**20, head_dim=8)),
        ["has shape", "expected [", "8388608"],
    ),
    "size-of-heads": (
        lambda w: compiles(w.configured(head_dim=2**30)),
        ["head_dim = 1073741824", "from 1 to 65536"],
    ),
    "context-without-end": (
        lambda w: compiles(w.configured(max_position_embeddings=10**12)),
        ["max_position_embeddings = 1000000000000", "to 2147483647"],
    ),
    "no-layers": (lambda w: compiles(w.configured(num_hidden_layers=0)), ["num_hidden_layers = 0", "from 1"]),
    "negative-vocabulary": (lambda w: compiles(w.configured(vocab_size=-5)), ["vocab_size = -5", "from 1"]),
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
    "variant-twice": (
        lambda w: ("explain", w.dante.folder, "decoder.t1", "--variant", "t8"),
        ["decoder.t1", "--variant t8", "exclude each other"],
    ),
    "prompt-of-no-prefill": (
        lambda w: ("tune", "dante", "--prompt", "512"),
        ["--prompt", "--variant prefill"],
    ),
    "unknown-device": (lambda w: ("run", "--device", "tpu"), ["tpu", "cuda"]),
    "unknown-command": (lambda w: ("generate",), ["generate", "--help"]),
    "unknown-option": (lambda w: ("run", "--tempreature", "1"), ["--tempreature"]),
    "a-name-that-is-too-long": (lambda w: ("inspect", "x" * 300), ["x" * 300, "File name too long"]),
    "bench-of-no-preset": (lambda w: ("bench", "latency", "--model", "lama"), ["'lama'", "llama"]),
}


LONG, HOSTILE = "x" * 10_000, "\x1b[2J\x1b]0;title\x07\r\n\x7f\x9b1m\u202e"
"""What a file may hold in place of a name: one that fills the screen, and one that the terminal would obey."""

QUOTED: dict[str, Callable[[Workshop, str], tuple[Any, ...]]] = {
    "manifest": lambda w, text: ("inspect", rewrite_manifest(w.bundle(), lambda m: m.update({text: 1}))),
    "name of a file": lambda w, text: (
        "inspect",
        rewrite_manifest(w.bundle(), lambda m: m["blocks"]["embed"]["t1"].update(cubin=f"../{text}")),
    ),
    "name of a model": lambda w, text: (
        "inspect",
        rewrite_manifest(w.bundle(), lambda m: m.update(schema=1, model={"name": text})),
    ),
    "checksums": lambda w, text: (
        "inspect",
        write(w.bundle() / "checksums.txt", f"{'0' * 64}  ../{text}".encode()),
    ),
    "model type": lambda w, text: compiles(w.configured(model_type=text)),
    "field": lambda w, text: compiles(w.configured(vocab_size=text)),
    "activation": lambda w, text: compiles(w.configured(hidden_act=text)),
    "tensor": lambda w, text: w.weighted(lambda tensors: tensors.update({text: np.ones(7, np.float32)})),
    "shard": lambda w, text: w.running(
        write(
            remove(w.model() / "model.safetensors") / "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": text}}).encode(),
        )
    ),
    "tokenizer": lambda w, text: w.running(
        write(w.model() / "tokenizer.json", json.dumps({"model": {"type": text}}).encode())
    ),
    "argument": lambda w, text: ("inspect", w.dante.folder, "--kernel", text),
}
"""A command line for which an error quotes a text from a file."""


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


@pytest.mark.parametrize(
    "sampler", [("--greedy",), ("--temperature", "1", "--top-k", "5"), ("--temperature", "1")]
)
def test_a_model_that_overflows_float16_is_told_to_use_another_dtype(
    workshop: Workshop, infernum: Run, sampler: tuple[str, ...]
) -> None:
    def enlarge(weights: dict[str, np.ndarray]) -> None:
        for name, values in weights.items():
            if name.endswith(("up_proj.weight", "down_proj.weight")):
                values *= 3000

    command = [*workshop.weighted(enlarge), *sampler, "-n", "4"]
    place = command.index("--bundle") + 1
    command[place] = workshop.plain.bundle(dtype="float16").folder
    check(infernum(*command), ["no token can be drawn", "float16", "bfloat16 or float32"])
    command[place] = workshop.plain.bundle(dtype="bfloat16").folder
    assert infernum(*command).code == 0


def test_a_checkpoint_with_nan_gives_an_error_and_no_text(workshop: Workshop, infernum: Run) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.norm.weight"][3] = np.nan

    done = infernum(*workshop.weighted(spoil), "--greedy", "-n", "4")
    check(done, ["no token can be drawn", "the checkpoint"])


@pytest.mark.parametrize("text", [LONG, HOSTILE], ids=["long", "hostile"])
@pytest.mark.parametrize("where", QUOTED)
def test_what_an_error_quotes_is_short_and_nothing_that_a_terminal_obeys(
    where: str, text: str, workshop: Workshop, infernum: Run
) -> None:
    done = infernum(*QUOTED[where](workshop, text))
    check(done, [])
    assert len(done.err) < 1200
    assert done.err.removesuffix("\n").isprintable()
    verbose = infernum("-v", *QUOTED[where](replace(workshop, folder=workshop.folder / "again"), text))
    assert verbose.err.splitlines()[-1].startswith("error: ") and "Traceback" in verbose.err
    assert verbose.err.replace("\n", "").isprintable()
    assert max(map(len, verbose.err.splitlines())) < 1200


def test_tables_and_explanations_show_names_that_a_terminal_would_obey(
    workshop: Workshop, infernum: Run
) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        for variant in manifest["blocks"]["decoder"].values():
            variant["kernels"][0]["name"] = HOSTILE
            variant["refused"] = [{"rule": HOSTILE, "at": HOSTILE, "reason": HOSTILE}]

    folder = rewrite_manifest(workshop.bundle(), rename)
    for command in (("inspect",), ("inspect", "--block", "decoder"), ("explain", "decoder.t1"), ("doctor",)):
        done = infernum(command[0], folder, *command[1:])
        assert done.code == 0, done.err
        assert done.out.replace("\n", "").isprintable(), command


def test_a_prompt_on_stdin_that_is_not_utf8_is_refused(workshop: Workshop, infernum: Run) -> None:
    done = infernum("run", "-", "--bundle", workshop.dante.folder, *CPU, stdin=b"caf\xe9")
    check(done, ["stdin", "UTF-8", "byte 3"])


@pytest.fixture(scope="module")
def llm(dante_bundle: Bundle) -> Iterator[LLM]:
    """The demo, whose tokens are 0 to 4095."""
    with LLM(device="cpu", bundle=dante_bundle) as llm:
        yield llm


GREEDY = SamplingParams(max_tokens=3, temperature=0)


@pytest.mark.parametrize(
    "prompts",
    [
        [3, 4],
        (3, 4),
        range(3, 5),
        [np.int64(3), np.uint8(4)],
        np.array([3, 4], np.uint16),
        array("q", [3, 4]),
        (token for token in (3, 4)),
        np.array([[3, 4]]),
        [np.array([3, 4])],
        [(token for token in (3, 4))],
    ],
    ids=["list", "tuple", "range", "scalars", "row", "array", "generator", "matrix", "rows", "generators"],
)
def test_token_ids_of_one_prompt_may_come_in_any_sequence(llm: LLM, prompts: Any) -> None:
    assert llm.encode(prompts) == [[3, 4]]


def test_texts_and_token_ids_may_be_mixed_and_come_in_any_sequence(llm: LLM) -> None:
    (text,) = llm.encode("Midway")
    assert llm.encode(["Midway", (3, 4)]) == llm.encode(iter([np.array(text), [3, 4]])) == [text, [3, 4]]
    assert llm.encode(np.array(["Midway", "Midway"])) == [text, text]
    assert llm.encode(np.array([[3, 4], [5, 6]])) == [[3, 4], [5, 6]]
    assert llm.encode([]) == [] == llm.generate([])


def test_token_ids_are_generated_from_and_scored_the_same_in_any_sequence(llm: LLM) -> None:
    (expected,) = llm.generate([[3, 4]], GREEDY)
    assert llm.generate(np.array([3, 4]), iter([GREEDY])) == [expected]
    assert [event.tokens for event in llm.stream([3, 4], GREEDY)] == [(token,) for token in expected.tokens]
    assert np.array_equal(llm.logits(np.array([3, 4])), llm.logits(token for token in (3, 4)))


MISTAKES: dict[str, tuple[Callable[[LLM], object], str]] = {
    "none": (lambda llm: llm.generate(None), r"^prompts is None; give a text, "),
    "number": (lambda llm: llm.generate(3), r"^prompts is 3; give a text, "),
    "bytes": (lambda llm: llm.generate(b"Midway"), r"^prompts is b'Midway'; give a text, "),
    "dict": (lambda llm: llm.stream({"prompt": "Midway"}), r"^prompts is \{.+\}; give a text, "),
    "set": (lambda llm: llm.stream({3, 4}), r"^prompts is \{3, 4\}; give a text, "),
    "nested-text": (
        lambda llm: llm.generate([["a"]]),
        r"^token 0 of prompt 0 is 'a'; token ids are integers",
    ),
    "too-deep": (lambda llm: llm.generate(np.ones((1, 1, 1), int)), r"^token 0 of prompt 0 is \[1\]; "),
    "a-bytes-among-texts": (lambda llm: llm.generate(["a", b"b"]), r"^prompt 1 is b'b'; give a text or "),
    "an-id-among-texts": (lambda llm: llm.generate(["a", 3]), r"^prompt 1 is 3; give a text or a list of"),
    "floats": (lambda llm: llm.generate([3.0, 4.0]), r"^token 0 of the prompt is 3.0; token ids are int"),
    "array-of-floats": (lambda llm: llm.generate(np.ones(2)), r"^token 0 of the prompt is 1.0; token ids"),
    "bools": (lambda llm: llm.generate([3, True]), r"^token 1 of the prompt is True; token ids are"),
    "array-of-bools": (lambda llm: llm.generate(np.ones(2, bool)), r"^token 0 of the prompt is True; "),
    "negative": (lambda llm: llm.stream([3, -1]), r"^token 1 of the prompt is -1; .+ 0 to 4095$"),
    "beyond-the-vocabulary": (lambda llm: llm.stream([[3], [4096]]), r"^token 0 of the prompt is 4096; "),
    "far-beyond": (lambda llm: llm.generate([2**70]), r"^token 0 of the prompt is 1180.+; .+ 0 to 4095$"),
    "no-ids": (lambda llm: llm.generate([[]]), r"^the prompt is empty"),
    "params-dict": (
        lambda llm: llm.generate("a", {"top_k": 3}),
        r"^params is \{'top_k': 3\}; give SamplingPar",
    ),
    "params-number": (lambda llm: llm.stream("a", 0.5), r"^params is 0.5; give SamplingParams, or a list"),
    "params-of-none": (lambda llm: llm.generate(["a"], [None]), r"^params\[0\] is None; give SamplingParams"),
    "too-few-params": (lambda llm: llm.generate(["a", "b"], [GREEDY]), r"^1 .+ given for 2 prompts"),
    "logits-of-prompts": (lambda llm: llm.logits([[3, 4]]), r"^token 0 of the prompt is \[3, 4\]; token ids"),
    "logits-of-text": (
        lambda llm: llm.logits("Midway"),
        r"^the prompt is 'Midway'; give a list of token ids",
    ),
    "logits-of-none": (lambda llm: llm.logits(None), r"^the prompt is None; give a list of token ids"),
    "logits-of-nothing": (lambda llm: llm.logits([]), r"^the prompt is empty"),
    "logits-of-floats": (lambda llm: llm.logits([1.5]), r"^token 0 of the prompt is 1.5; token ids"),
    "encode-none": (lambda llm: llm.encode(None), r"^prompts is None; give a text, "),
    "model": (lambda llm: LLM(3), r"^model is 3; give a folder or a preset"),
    "model-none": (lambda llm: LLM(None), r"^model is None; give a folder or a preset"),
    "model-bytes": (lambda llm: LLM(b"dante"), r"^model is b'dante'; give a folder or a preset"),
    "bundle": (lambda llm: LLM(bundle=3), r"^bundle is 3; give the folder of a compiled bundle"),
    "device": (lambda llm: LLM(device=None), r"device"),
    "dtype": (lambda llm: LLM(device="cpu", bundle=llm.bundle, dtype=32), r"unknown dtype '32'"),
    "half-a-token": (lambda llm: LLM(max_model_len=1.5), r"^max_model_len is 1.5; it must be an integer"),
    "no-time": (
        lambda llm: LLM(max_itl_ms=0),
        r"^max_itl_ms is 0; it must be a number of milliseconds above 0",
    ),
    "no-sequences": (
        lambda llm: LLM(max_num_seqs=0),
        r"^max_num_seqs is 0; it must be an integer from 1 to 1024",
    ),
    "text-time": (lambda llm: LLM(max_itl_ms="9"), r"^max_itl_ms is '9'; it must be a number"),
    "true-pages": (lambda llm: LLM(max_pages_total=True), r"^max_pages_total is True; it must be an integer"),
    "share-in-words": (
        lambda llm: LLM(gpu_memory_utilization="half"),
        r"^gpu_memory_utilization is 'half'; ",
    ),
    "load-format": (lambda llm: LLM(load_format=["auto"]), r"load format \['auto'\]"),
    "seed": (lambda llm: LLM(load_format="dummy", seed="x"), r"^seed is 'x'; it must be an integer"),
    "negative-seed": (lambda llm: LLM(load_format="dummy", seed=-1), r"^seed is -1; it must be an integer"),
    "rules": (lambda llm: LLM(rules="+merge_products"), r"^rules is '\+merge_products'; give a list of str"),
    "rules-none": (lambda llm: LLM(rules=None), r"^rules is None; give a list of strings"),
    "rules-numbers": (lambda llm: LLM(rules=[3]), r"^rules is \[3\]; give a list of strings"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_python_is_an_error_that_says_what_is_wanted(llm: LLM, name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(InfernumError, match=message) as raised:
        call(llm)
    assert "\n" not in str(raised.value)


def test_a_closed_model_says_so_whatever_is_asked_of_it(dante_bundle: Bundle) -> None:
    llm = LLM(device="cpu", bundle=dante_bundle)
    events = llm.stream("Midway", GREEDY)
    next(events)
    llm.close()
    llm.close()
    for call in (
        lambda: next(events),
        lambda: llm.generate("Midway", GREEDY),
        lambda: llm.generate([]),
        lambda: llm.stream("Midway"),
        lambda: llm.logits([3]),
        llm.__enter__,
    ):
        with pytest.raises(RequestError, match=r"^the model is closed; load it again"):
            call()
    assert llm.statistics.output_tokens >= 1
    assert llm.encode([3]) == [[3]]


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
