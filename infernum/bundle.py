"""The bundle that `compile` writes and `run` reads: a folder of readable kernels, cubins, graphs, and one manifest.

With the records of `infernum.manifest`, this module is the only interface between the compile side and the run side.
It knows file formats and nothing about graphs, templates or GPUs.

    manifest.json        everything that the runtime needs (the records of `infernum.manifest`)
    checksums.txt        SHA-256 of every other file, in the format of `sha256sum -c`
    rules.txt            every rule that was applied, or refused and why
    decoder.traced.ir    the graph of one block as it was traced, before any rule
    decoder.t1.ir        the fused graph of one block for one variant
    decoder.t1.cu        its kernels, in launch order
    decoder.t1.cubin     its compiled kernels
    greedy.any.cu        the kernels of a sampler, the same for every variant
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from infernum.errors import BundleError
from infernum.manifest import SCHEMA, Manifest, VariantSpec, check_file_name

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.txt"
SECTION = "\n// ---- "
"""The text in front of the name of each section of an emitted `.cu`."""


@dataclass(frozen=True)
class Bundle:
    """An open bundle with a checked manifest. Each file is checked when it is read."""

    folder: Path
    manifest: Manifest
    checksums: Mapping[str, str]

    def variant_for(self, tokens: int, decodes: bool = False) -> VariantSpec:
        """The first variant that serves a step of `tokens` tokens. Raises BundleError when there is none.

        `decodes`: every sequence of the step has one token.
        """
        for variant in self.manifest.variants:
            if variant.serves(tokens, decodes):
                return variant
        raise BundleError(f"{self.folder}: no variant serves {tokens} tokens in one step")

    @property
    def arch(self) -> str:
        """The architecture of the kernels. Raises BundleError for a bundle without kernels."""
        self.check_kernels()
        assert self.manifest.arch is not None, "kernels are compiled for an architecture"
        return self.manifest.arch

    def check_kernels(self) -> None:
        """Raises BundleError for a bundle for NumPy, which holds graphs and no kernels."""
        if self.manifest.arch is None:
            raise BundleError(
                f"{self.folder}: holds graphs for NumPy and no kernels; run it with --device cpu,"
                f" or compile the model for a GPU: `infernum compile {self.manifest.model.name} -o DIR`"
            )

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against its checksum. Raises BundleError when it is missing or altered."""
        return _read_checked(self.folder, name, self.checksums)

    def read_as_it_is(self, name: str) -> bytes:
        """The bytes of one file, unchecked: it may have been edited. Raises BundleError when it cannot be read."""
        return _read(self.folder, name)


def open_bundle(folder: Path) -> Bundle:
    """Open the bundle in `folder`. Raises BundleError with the file, the reason and the command that mends it."""
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle; make it with `infernum compile MODEL -o {folder}`")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder}: not a bundle ({MANIFEST} is missing); make one with `infernum compile MODEL -o DIR`"
        )
    checksums = _read_checksums(folder)
    raw = _read_checked(folder, MANIFEST, checksums)
    try:
        known = msgspec.json.decode(raw, type=_AnySchema)
        if known.schema != SCHEMA:
            raise BundleError(
                f"{folder}/{MANIFEST}: schema {known.schema}, this version reads {SCHEMA}; compile the model again:"
                f" `infernum compile {known.model.name} -o {folder}`"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{folder}/{MANIFEST}: {error}; compile the model again") from error
    return Bundle(folder, manifest, checksums)


def open_kernels(folder: Path) -> Bundle:
    """Open the bundle in `folder`, which must have kernels. Raises BundleError."""
    bundle = open_bundle(folder)
    bundle.check_kernels()
    return bundle


def traced_name(block: str) -> str:
    """The file of a block's graph as traced, before any rule."""
    return f"{block}.traced.ir"


def sections(source: str) -> dict[str, str]:
    """The sections of an emitted `.cu` by name, in order: helper files and kernels, without the head of the file."""
    _, *parts = ("\n" + source).split(SECTION)
    named = (part.partition("\n") for part in parts)
    return {name: text.strip() + "\n" for name, _, text in named}


def shared_code(source: str, kernels: Collection[str]) -> str:
    """The code in front of the first kernel of an emitted `.cu`, without comment lines."""
    first = min(
        (at for name in kernels if (at := source.find(f"{SECTION}{name}\n")) >= 0), default=len(source)
    )
    return "".join(line for line in source[:first].splitlines(True) if not line.startswith("//"))


def source_hash(section: str) -> str:
    """The `Kernel.source_hash` of a section of a `.cu` file."""
    return hashlib.sha256(section.encode()).hexdigest()


FileState = Literal["ok", "edited", "damaged", "missing", "extra"]
"""State of a file against checksums.txt. "edited": a `.cu` with another checksum; "extra": not listed."""


def file_state(bundle: Bundle, name: str) -> FileState:
    """The state of one file of a bundle."""
    return _state(bundle.folder, name, bundle.checksums)


def _state(folder: Path, name: str, checksums: Mapping[str, str]) -> FileState:
    compiled = checksums.get(name)
    if compiled is None:
        return "extra"
    try:
        present = _digest(_read(folder, name))
    except BundleError:
        return "missing"
    if present == compiled:
        return "ok"
    return "edited" if name.endswith(".cu") else "damaged"


def check_whole(bundle: Bundle) -> None:
    """Raises BundleError when a file is missing or damaged. An edited `.cu` is neither."""
    for name in bundle.checksums:
        if file_state(bundle, name) in ("missing", "damaged"):
            raise BundleError(f"{bundle.folder / name}: is missing or damaged; compile the model again")


def not_rebuilt(bundle: Bundle) -> list[str]:
    """The `.cu` files that were edited since they were compiled, in the order of the manifest."""
    every = [v for variants in bundle.manifest.blocks.values() for v in variants.values()]
    sources = [variant.source for variant in every if variant.has_kernels]
    return [name for name in sources if file_state(bundle, name) == "edited"]


class _Model(msgspec.Struct, frozen=True):
    name: str = "MODEL"


class _AnySchema(msgspec.Struct):
    """The fields of a manifest that can be read for any schema."""

    schema: int
    model: _Model = _Model()


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to a new folder, and then replace the bundle in `folder` by it. Equal input gives equal bytes.

    Other files in `folder` are kept. Between the two renames no folder has that name for a moment, so processes that
    share a folder must lock it. Raises BundleError, also when `folder` is no bundle.
    """
    check_replaceable(folder)
    contents = {**files, MANIFEST: _encoded(manifest)}
    checksums = {name: _digest(data) for name, data in sorted(contents.items())}
    contents[CHECKSUMS] = _listing(checksums)
    place = folder.resolve()  # a link to the bundle goes on pointing at it
    with _replaced(place) as staging:
        if place.is_dir():
            replaced = set(contents)
            with suppress(BundleError):  # with a damaged list, files of all other names are kept
                replaced |= _read_checksums(place).keys()
            _carry(place, staging, except_for=replaced)
        _write(staging, contents)
    return Bundle(folder, manifest, checksums)


def is_bundle(folder: Path) -> bool:
    """True when a bundle was written to this folder, even if it is damaged now."""
    return (folder / MANIFEST).is_file() and (folder / CHECKSUMS).is_file()


def check_replaceable(folder: Path) -> None:
    """Raises BundleError when a bundle in `folder` would replace other files, or kernels that were edited by hand."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not is_bundle(folder):
            raise BundleError(f"{folder}: exists and is not a bundle; choose another folder with -o")
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror}); choose another with -o") from error
    edited: set[str] = set()
    with suppress(BundleError):
        checksums = _read_checksums(folder)
        edited |= {name for name in checksums if _state(folder, name, checksums) == "edited"}
        edited |= open_bundle(folder).manifest.edits.keys()
    if edited:
        raise BundleError(
            f"{folder}: {', '.join(sorted(edited))} was edited by hand;"
            " choose another folder with -o, or delete this one"
        )


def update_bundle(
    bundle: Bundle, manifest: Manifest, files: Mapping[str, bytes], accepted: Mapping[str, str]
) -> Bundle:
    """Replace the manifest and some files of a bundle atomically, and keep all other files of the folder.

    `accepted` has the SHA-256 of files that are in the folder already, and that the bundle lists as they are from now
    on. Raises BundleError.
    """
    contents = {**files, MANIFEST: _encoded(manifest)}
    digests = {name: _digest(data) for name, data in contents.items()}
    checksums = dict(sorted({**bundle.checksums, **accepted, **digests}.items()))
    contents[CHECKSUMS] = _listing(checksums)
    folder = bundle.folder.resolve()  # a link to the bundle goes on pointing at it
    with _replaced(folder) as staging:
        _carry(folder, staging, except_for=contents.keys())
        _write(staging, contents)
    return Bundle(bundle.folder, manifest, checksums)


def _carry(folder: Path, staging: Path, *, except_for: Set[str]) -> None:
    """Link all files of a folder into another, except some."""
    shutil.copytree(
        folder,
        staging,
        symlinks=True,
        copy_function=_link,
        ignore=lambda at, names: except_for & set(names) if at == str(folder) else set(),
        dirs_exist_ok=True,
    )


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _listing(checksums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in checksums.items()).encode()


def _link(source: str, target: str) -> None:
    """Hard-link a file; copy it where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def _replaced(folder: Path) -> Generator[Path]:
    """An empty folder, which replaces `folder` at the end of the `with` block. Raises BundleError."""
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
    """Replace `folder` by `staging`. The old folder is deleted after the new folder is in place."""
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
        pairs = [line.split("  ", 1) for line in _read(folder, CHECKSUMS).decode().split("\n") if line]
        if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
            raise BundleError(f"{path}: is damaged; compile the model again")
        return {check_file_name(name): digest for digest, name in pairs}
    except ValueError as error:  # an invalid name, or bytes that are not UTF-8
        raise BundleError(f"{path}: is damaged ({error}); compile the model again") from error


def _read(folder: Path, name: str) -> bytes:
    """The bytes of a file in the folder. Raises BundleError, also for a link that leads out of the folder."""
    path = folder / name
    try:
        place = path.resolve(strict=True)
        if not place.is_relative_to(folder.resolve()):
            raise OSError(errno.EXDEV, "a link that leads out of the bundle")
        if place.exists() and not place.is_file():
            raise OSError(errno.EINVAL, "not a file")
        return place.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path}: cannot be read ({reason}); compile the model again") from error


def _read_checked(folder: Path, name: str, checksums: Mapping[str, str]) -> bytes:
    path, data = folder / name, _read(folder, name)
    expected = checksums.get(name)
    if expected is None:
        raise BundleError(f"{path}: is not listed in {CHECKSUMS}; compile the model again")
    if _digest(data) != expected:
        if name.endswith(".cu"):
            raise BundleError(f"{path}: differs from what was compiled; run `infernum rebuild {folder}`")
        raise BundleError(f"{path}: differs from its checksum; compile the model again")
    return data
