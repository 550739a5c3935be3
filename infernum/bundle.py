"""What `compile` writes and `run` reads: a folder of readable kernels, cubins, graphs, and one manifest.

This module is the only place where the compile side and the run side meet. It knows file formats and nothing
about graphs, templates or GPUs.

    manifest.json        everything the runtime needs to know (the structures below)
    checksums.txt        SHA-256 of every other file, in the format of `sha256sum -c`
    rules.txt            every rule applied, or refused and why
    decoder.traced.ir    the graph of one block as it was traced, before any rule
    decoder.t1.ir        the fused graph of one block for one variant
    decoder.t1.cu        its kernels, in launch order
    decoder.t1.cubin     the same, compiled
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from infernum.errors import BundleError

SCHEMA = 2
MANIFEST = "manifest.json"
CHECKSUMS = "checksums.txt"
SECTION = "\n// ---- "
"""What begins a part of an emitted `.cu`, before its name."""

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


class Cost(Record, frozen=True):
    """Kernels, and the bytes and FLOPs they take together, as formulas over symbols."""

    kernels: int
    bytes: Formula
    flops: Formula


class Kernel(Record, frozen=True):
    """What is known of one step: an emitted kernel, or a library product (`template` is then "cublaslt").

    `bytes` and `flops` are formulas per launch, over the symbols of a step and those of `infernum.dims.COSTS`.
    node         the node of the block's graph that it computes, alone or with the step before or after it
    ops, where   the primitive ops of that node, and the lines of Python (`file:line`) that called them
    rules        the rules that made the node: rewrites, and what fused them
    origin       the nodes of the block's traced graph whose work it does
    before       what those nodes cost as kernels of their own; of several steps of one node, the first one has it
    passed_over  kernels that would have been preferred, and why each could not serve
    source_hash  SHA-256 of its part of the `.cu` file as emitted; "" for a library product
    """

    name: str
    node: str
    template: str
    ops: list[str]
    rules: list[str]
    where: list[str]
    origin: list[str]
    before: Cost
    bytes: Formula
    flops: Formula
    passed_over: list[str] = []
    source_hash: str = ""
    registers: int = 0
    stack_bytes: int = 0
    spill_bytes: int = 0
    static_shared_bytes: int = 0


class Firing(Record, frozen=True):
    """One time that a rule was applied: the nodes it took, and those it put in their place."""

    rule: str
    at: str
    made: str


class Refusal(Record, frozen=True):
    """A place where a rule matched and was not applied, and why."""

    rule: str
    at: str
    reason: str


class Edit(Record, frozen=True):
    """A `.cu` file that was changed by hand and compiled again: its kernels that differ from what was emitted."""

    emitted_sha256: str
    kernels: list[str]


class Plugin(Record, frozen=True):
    """A plugin that was loaded when the bundle was compiled, and the SHA-256 of its code and templates."""

    name: str
    sha256: str


class BlockVariant(Record, frozen=True):
    """One block compiled for one class of token counts.

    `kernels[i]` describes `steps[i]`. `fired` counts every rule that was tried, `firings` tells them one by one.
    `traced` and `graph` name the files of the graph before and after the rules; `shared_hash` is that of the code which
    the kernels of `source` share, as emitted.

    Tensors named by `steps` are found in `buffers`, `weights`, `stream_in`/`stream_out` (what flows from block to
    block), `batch` (inputs of the step, such as `token_ids`) or `state` (what outlives the step: the KV cache).
    """

    block: str
    variant: str
    source: str
    shared_hash: str
    cubin: str
    traced: str
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
    firings: list[Firing]
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
    """The whole bundle, but for the contents of its files. `edits` tells, by file, what a person changed by hand."""

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
    plugins: list[Plugin]
    edits: dict[str, Edit]
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


def sections(source: str) -> dict[str, str]:
    """The parts of an emitted `.cu` by name, in order: a helper file or a kernel each, without the file's head."""
    _, *parts = ("\n" + source).split(SECTION)
    named = (part.partition("\n") for part in parts)
    return {name: text.strip() + "\n" for name, _, text in named}


def shared_code(source: str, kernels: Collection[str]) -> str:
    """What stands before the first kernel of an emitted `.cu`, less the lines that are comments."""
    first = min(
        (at for name in kernels if (at := source.find(f"{SECTION}{name}\n")) >= 0), default=len(source)
    )
    return "".join(line for line in source[:first].splitlines(True) if not line.startswith("//"))


def source_hash(section: str) -> str:
    """What `Kernel.source_hash` holds of a part of a `.cu` file."""
    return hashlib.sha256(section.encode()).hexdigest()


FileState = Literal["ok", "edited", "damaged", "missing", "extra"]
"""A file compared with checksums.txt. "edited": a `.cu` that differs from what was compiled; "extra": not listed."""


def file_state(bundle: Bundle, name: str) -> FileState:
    """How one file of a bundle compares with its checksum."""
    wanted = bundle.checksums.get(name)
    if wanted is None:
        return "extra"
    try:
        found = hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest()
    except OSError:
        return "missing"
    if found == wanted:
        return "ok"
    return "edited" if name.endswith(".cu") else "damaged"


def not_rebuilt(bundle: Bundle) -> list[str]:
    """The `.cu` files that were edited since they were compiled, in the order of the manifest."""
    sources = [v.source for variants in bundle.manifest.blocks.values() for v in variants.values()]
    return [name for name in sources if file_state(bundle, name) == "edited"]


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
    contents = {**files, MANIFEST: _encoded(manifest)}
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
    contents[CHECKSUMS] = _listing(checksums)
    with _replaced(folder) as staging:
        _write(staging, contents)
    return Bundle(folder, manifest, checksums)


def update_bundle(
    bundle: Bundle, manifest: Manifest, files: Mapping[str, bytes], accepted: Mapping[str, str]
) -> Bundle:
    """Replace the manifest and some files of a bundle, all or nothing; whatever else lies in its folder stays.

    `accepted` are the SHA-256 of files that lie in the folder already and belong to the bundle as they are from now
    on. Raises BundleError.
    """
    contents = {**files, MANIFEST: _encoded(manifest)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    checksums = dict(sorted({**bundle.checksums, **accepted, **digests}.items()))
    contents[CHECKSUMS] = _listing(checksums)
    folder = bundle.folder.resolve()  # a link to the bundle goes on pointing at it
    with _replaced(folder) as staging:
        shutil.copytree(
            folder,
            staging,
            symlinks=True,
            copy_function=_link,
            ignore=lambda at, names: contents.keys() & set(names) if at == str(folder) else set(),
            dirs_exist_ok=True,
        )
        _write(staging, contents)
    return Bundle(bundle.folder, manifest, checksums)


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _listing(checksums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in checksums.items()).encode()


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def _replaced(folder: Path) -> Generator[Path]:
    """An empty folder that takes the place of `folder` once it has been filled. Raises BundleError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        yield staging
        staging.chmod(0o755)
        _swap(staging, folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _swap(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; what was there stays until the new one is in place."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging.with_name(staging.name + ".old")
    folder.rename(old)
    try:
        staging.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
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
        if name.endswith(".cu"):
            raise BundleError(f"{path}: differs from what was compiled; run `infernum rebuild {folder}`")
        raise BundleError(f"{path}: differs from its checksum; compile the model again")
    return data
