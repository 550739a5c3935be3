"""What `compile` writes and `run` reads: a folder of readable kernels, cubins, graphs, and one manifest.

This module is the only place where the compile side and the run side meet. It knows file formats and nothing
about graphs, templates or GPUs.

    manifest.json        everything the runtime needs to know (the structures below)
    checksums.txt        SHA-256 of every other file, in the format of `sha256sum -c`
    rules.txt            every rule applied, or refused and why
    decoder.t1.ir        the fused graph of one block for one variant
    decoder.t1.cu        its kernels, in launch order
    decoder.t1.cubin     the same, compiled
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infernum.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
CHECKSUMS = "checksums.txt"

Formula = int | str
"""An integer, or arithmetic over the symbols of `infernum.dims`, evaluated when a step is launched."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything stored in a manifest."""


class TensorSpec(Record, frozen=True):
    """A named tensor: `shape` holds integers and symbols, `dtype` a short name of `infernum.dtypes`."""

    name: str
    dtype: str
    shape: list[Formula]


class Buffer(Record, frozen=True):
    """An intermediate tensor at a fixed byte offset of the block's arena."""

    spec: TensorSpec
    offset: int


class Weight(Record, frozen=True):
    """A tensor filled when a checkpoint is loaded: the named checkpoint tensors stacked along axis 0.

    `parts` may hold `{layer}`. `part_shapes[i]` is the shape that `parts[i]` must have in the checkpoint.
    """

    spec: TensorSpec
    parts: list[str]
    part_shapes: list[list[int]]


class Pointer(Record, frozen=True, tag="pointer"):
    """A kernel argument: the address of a tensor plus `offset` bytes.

    `tensor` names a buffer, a weight, a stream, a batch input or a state of the same block variant.
    """

    tensor: str
    offset: int = 0


class SymbolArg(Record, frozen=True, tag="symbol"):
    """A kernel argument: the value of a symbol, passed as a 32-bit int."""

    symbol: str


Arg = Pointer | SymbolArg


class Launch(Record, frozen=True, tag="launch"):
    """One kernel launch. `programmatic`: the kernel waits by itself for the one before (griddepcontrol)."""

    kernel: str
    args: list[Arg]
    grid: list[Formula]
    block: list[int]
    shared_bytes: int = 0
    programmatic: bool = False


class Gemm(Record, frozen=True, tag="gemm"):
    """One library matrix product: out[m, n] = x[m, k] · weight[n, k]ᵀ (+ bias[n]) (+ residual[m, n]).

    Row-major; `*_stride` is the distance in elements between rows. Products are accumulated in float32.
    """

    name: str
    x: Pointer
    weight: Pointer
    out: Pointer
    m: Formula
    n: int
    k: int
    x_stride: int
    out_stride: int
    dtype: str
    out_dtype: str
    bias: Pointer | None = None
    residual: Pointer | None = None
    residual_stride: int = 0


Step = Launch | Gemm


class Kernel(Record, frozen=True):
    """What is known of one emitted kernel. `bytes` and `flops` are formulas per launch; where = `file:line`."""

    name: str
    template: str
    ops: list[str]
    rules: list[str]
    where: list[str]
    bytes: Formula
    flops: Formula
    registers: int = 0
    stack_bytes: int = 0
    spill_bytes: int = 0
    static_shared_bytes: int = 0


class Refusal(Record, frozen=True):
    """A place where a rule matched and was not applied, and why."""

    rule: str
    at: str
    reason: str


class BlockVariant(Record, frozen=True):
    """One block compiled for one class of token counts.

    Tensors named by `steps` are found in `buffers`, `weights`, `stream_in`/`stream_out` (what flows from block to
    block), `batch` (inputs of the step, such as `token_ids`) or `state` (what outlives the step: the KV cache).
    """

    block: str
    variant: str
    source: str
    cubin: str
    graph: str
    stream_in: list[TensorSpec]
    stream_out: list[TensorSpec]
    batch: list[TensorSpec]
    state: list[TensorSpec]
    buffers: dict[str, Buffer]
    weights: dict[str, Weight]
    arena_bytes: int
    steps: list[Step]
    kernels: list[Kernel]
    kernels_before_fusion: int
    fired: dict[str, int]
    refused: list[Refusal]


class VariantSpec(Record, frozen=True):
    """A class of steps: of `min_tokens` to `max_tokens` tokens, and up to `max_rows` rows of logits."""

    name: str
    min_tokens: int
    max_tokens: int
    max_rows: int


class Stage(Record, frozen=True):
    """One step of the program: a block, and the layer it is applied for (None: it belongs to no layer)."""

    block: str
    layer: int | None = None


class ModelInfo(Record, frozen=True):
    """The model a bundle was compiled for. `config` holds every field that decides the mathematics."""

    family: str
    name: str
    config: dict[str, object]
    config_hash: str
    vocab_size: int
    context: int
    num_layers: int


class Manifest(Record, frozen=True):
    """The whole bundle, but for the contents of its files."""

    schema: int
    infernum: str
    nvrtc: str
    arch: str
    dtype: str
    fuse: bool
    rules: list[str]
    page_size: int
    model: ModelInfo
    variants: list[VariantSpec]
    program: list[Stage]
    samplers: list[str]
    blocks: dict[str, dict[str, BlockVariant]]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose manifest has been read and checked; its files are checked as they are read."""

    folder: Path
    manifest: Manifest
    checksums: Mapping[str, str]

    def variant_for(self, tokens: int) -> VariantSpec:
        """The variant that serves a step of `tokens` tokens. Raises BundleError when there is none."""
        for variant in self.manifest.variants:
            if variant.min_tokens <= tokens <= variant.max_tokens:
                return variant
        raise BundleError(f"{self.folder}: no variant serves {tokens} tokens in one step")

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified. Raises BundleError when it is missing or altered."""
        return _read_checked(self.folder, name, self.checksums)


def open_bundle(folder: Path) -> Bundle:
    """Open the bundle in `folder`. Raises BundleError naming the file, the reason and the command that mends it."""
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle; make it with `infernum compile MODEL -o {folder}`")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder}: not a bundle ({MANIFEST} is missing); make one with `infernum compile MODEL -o DIR`"
        )
    checksums = _read_checksums(folder)
    raw = _read_checked(folder, MANIFEST, checksums)
    try:
        schema = msgspec.json.decode(raw, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise BundleError(
                f"{folder}/{MANIFEST}: schema {schema}, this version reads {SCHEMA}; compile the model again"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{folder}/{MANIFEST}: {error}; compile the model again") from error
    return Bundle(folder, manifest, checksums)


class _SchemaOnly(msgspec.Struct):
    schema: int


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle as one atomic replacement of `folder`: same input, same bytes.

    Refuses to replace a folder that is not a bundle. Raises BundleError.
    """
    if (
        folder.exists()
        and not (folder / MANIFEST).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise BundleError(f"{folder}: exists and is not a bundle; choose another folder with -o")
    contents = {**files, MANIFEST: msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"}
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
    contents[CHECKSUMS] = "".join(f"{digest}  {name}\n" for name, digest in checksums.items()).encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        for name, data in contents.items():
            with (staging / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        staging.chmod(0o755)
        _swap(staging, folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(folder, manifest, checksums)


def _swap(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; what was there stays until the new one is in place."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging.with_name(staging.name + ".old")
    folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); compile the model again") from error
    pairs = [line.split("  ", 1) for line in lines]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        raise BundleError(f"{path}: is damaged; compile the model again")
    return {name: digest for digest, name in pairs}


def _read_checked(folder: Path, name: str, checksums: Mapping[str, str]) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); compile the model again") from error
    wanted = checksums.get(name)
    if wanted is None:
        raise BundleError(f"{path}: is not listed in {CHECKSUMS}; compile the model again")
    if hashlib.sha256(data).hexdigest() != wanted:
        raise BundleError(f"{path}: differs from its checksum; compile the model again")
    return data
