"""What `compile` writes and `run` reads: a folder of readable kernels, cubins, graphs, and one manifest.

Together with the records of `infernum.manifest`, this module is the only place where the compile side and the run side
meet. It knows file formats and nothing about graphs, templates or GPUs.

    manifest.json        everything the runtime needs to know (the records of `infernum.manifest`)
    checksums.txt        SHA-256 of every other file, in the format of `sha256sum -c`
    rules.txt            every rule applied, or refused and why
    decoder.traced.ir    the graph of one block as it was traced, before any rule
    decoder.t1.ir        the fused graph of one block for one variant
    decoder.t1.cu        its kernels, in launch order
    decoder.t1.cubin     the same, compiled
    greedy.any.cu        the kernels of a sampler, which are the same for every variant
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
"""What begins a part of an emitted `.cu`, before its name."""


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

    @property
    def arch(self) -> str:
        """The architecture that the kernels were compiled for. Raises BundleError where there are only graphs."""
        self.check_kernels()
        assert self.manifest.arch is not None, "kernels are compiled for an architecture"
        return self.manifest.arch

    def check_kernels(self) -> None:
        """Raises BundleError for a bundle for NumPy, which holds graphs only."""
        if self.manifest.arch is None:
            raise BundleError(
                f"{self.folder}: holds graphs for NumPy and no kernels; run it with --device cpu,"
                f" or compile the model for a GPU: `infernum compile {self.manifest.model.name} -o DIR`"
            )

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified. Raises BundleError when it is missing or altered."""
        return _read_checked(self.folder, name, self.checksums)

    def read_as_it_is(self, name: str) -> bytes:
        """The bytes of one file, which may have been edited. Raises BundleError when it cannot be read."""
        return _read(self.folder, name)


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
    """Open the bundle in `folder` for what works on its kernels. Raises BundleError, also for a bundle for NumPy."""
    bundle = open_bundle(folder)
    bundle.check_kernels()
    return bundle


def traced_name(block: str) -> str:
    """The file of a block's graph before any rule."""
    return f"{block}.traced.ir"


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
    """Raises BundleError when a file is missing or damaged; a `.cu` that was edited is neither."""
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
    """What can be read of a manifest whatever its schema."""

    schema: int
    model: _Model = _Model()


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle, whole before it takes the place of the one in `folder`: same input, same bytes.

    Files that lie there and belong to no bundle stay. While two folders are renamed there is none of that name for a
    moment; who shares one among processes locks it.
    Refuses to replace a folder that is not a bundle. Raises BundleError.
    """
    check_replaceable(folder)
    contents = {**files, MANIFEST: _encoded(manifest)}
    checksums = {name: _digest(data) for name, data in sorted(contents.items())}
    contents[CHECKSUMS] = _listing(checksums)
    place = folder.resolve()  # a link to the bundle goes on pointing at it
    with _replaced(place) as staging:
        if place.is_dir():
            replaced = set(contents)
            with suppress(BundleError):  # a list that is damaged: then all that has another name stays
                replaced |= _read_checksums(place).keys()
            _carry(place, staging, except_for=replaced)
        _write(staging, contents)
    return Bundle(folder, manifest, checksums)


def is_bundle(folder: Path) -> bool:
    """Whether a bundle was written to this folder, whatever has become of it since."""
    return (folder / MANIFEST).is_file() and (folder / CHECKSUMS).is_file()


def check_replaceable(folder: Path) -> None:
    """Raises BundleError when a bundle that is written to `folder` would take the place of what a person has made."""
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
    """Replace the manifest and some files of a bundle, all or nothing; whatever else lies in its folder stays.

    `accepted` are the SHA-256 of files that lie in the folder already and belong to the bundle as they are from now
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
    """Link what lies in a folder into another, but for some of its files."""
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
        pairs = [line.split("  ", 1) for line in _read(folder, CHECKSUMS).decode().split("\n") if line]
        if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
            raise BundleError(f"{path}: is damaged; compile the model again")
        return {check_file_name(name): digest for digest, name in pairs}
    except ValueError as error:  # a name, or what is not UTF-8
        raise BundleError(f"{path}: is damaged ({error}); compile the model again") from error


def _read(folder: Path, name: str) -> bytes:
    """The bytes of a file that lies in the folder itself, not where a link leads out of it. Raises BundleError."""
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
