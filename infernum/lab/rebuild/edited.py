"""A bundle with edited `.cu` files becomes a bundle in which they are compiled, and the edits recorded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from infernum.bundle import Bundle, file_state, sections, shared_code, source_hash, update_bundle
from infernum.codegen.cubin import Cubin
from infernum.codegen.nvrtc import compile_cuda, nvrtc_version
from infernum.errors import BundleError, CompileError
from infernum.lab.rebuild.fit import no_longer_waits, objections
from infernum.manifest import BlockVariant, Edit, Kernel, Launch, Manifest, every_variant


@dataclass(frozen=True)
class KernelChange:
    """One kernel of a rebuilt file: whether it now differs from what was emitted, and its records."""

    edited: bool
    before: Kernel
    after: Kernel


@dataclass(frozen=True)
class Rebuilt:
    """One file: its kernels that differ from what was emitted, now or before; `seconds` that compiling it took."""

    file: str
    restored: bool
    seconds: float
    changes: tuple[KernelChange, ...]


@dataclass(frozen=True)
class Rebuild:
    """The bundle as it is now, what was rebuilt, and sentences for the user."""

    bundle: Bundle
    files: tuple[Rebuilt, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """An edited file as it was read, and what it was compiled to."""

    variant: BlockVariant
    digest: str
    text: str
    cubin: Cubin
    seconds: float


def rebuild_bundle(bundle: Bundle, *, cache: Path | None) -> Rebuild:
    """Compile the `.cu` files that were edited, and record the edits in the manifest.

    All files are checked before any is written, and either all are written or none. Raises CompileError with NVRTC's
    message at the line of the file, or for a kernel that does not fit its launch; BundleError for other files that
    differ.
    """
    edited = _edited(bundle)
    if not edited:
        return Rebuild(bundle, (), ())
    _check_place(bundle.folder)
    files = _compile(bundle, edited, cache)
    _refuse(
        f"{bundle.folder / file.variant.source}: {reason}"
        for file in files
        for launch in _launches(file.variant)
        for reason in objections(file.text, launch, file.cubin.kernels, bundle.arch)
    )
    manifest, rebuilt = bundle.manifest, list[Rebuilt]()
    for file in files:
        variant, edit = _described(file), _edit(file, bundle)
        rebuilt.append(_rebuilt(file, variant, manifest.edits.get(variant.source), edit))
        manifest = _updated(manifest, variant, edit)
    written = update_bundle(
        bundle,
        manifest,
        {file.variant.cubin: file.cubin.data for file in files},
        {file.variant.source: file.digest for file in files},
    )
    return Rebuild(written, tuple(rebuilt), tuple(_warnings(bundle, files)))


def _edited(bundle: Bundle) -> list[BlockVariant]:
    """The block variants whose source was edited. Raises BundleError when any other file differs."""
    states = {name: file_state(bundle, name) for name in bundle.checksums}
    lost = {
        "damaged": "differs from its checksum, and only .cu files can be rebuilt; undo the change, or compile again",
        "missing": "is missing; compile the model again",
    }
    _refuse(f"{bundle.folder / name}: {lost[state]}" for name, state in states.items() if state in lost)
    return [v for v in every_variant(bundle.manifest) if states.get(v.source) == "edited"]


def _check_place(folder: Path) -> None:
    """Raises BundleError when the current folder lies in the bundle, whose folder is replaced as a whole."""
    inside = folder.resolve()
    try:
        here = Path.cwd()
    except FileNotFoundError:  # a folder that is gone contains no bundle
        return
    if here.is_relative_to(inside):
        raise BundleError(
            f"{folder}: is the current folder, which is replaced as a whole; run it from outside: "
            f"`cd {inside.parent} && infernum rebuild {inside.name}`"
        )


def _compile(bundle: Bundle, edited: list[BlockVariant], cache: Path | None) -> list[_File]:
    """Compile edited sources side by side. Raises CompileError with the messages for all that do not compile."""

    def compiled(variant: BlockVariant) -> _File | CompileError:
        path = bundle.folder / variant.source
        try:
            data = bundle.read_as_it_is(variant.source)
            text = data.decode().replace("\r\n", "\n")
            begin = time.perf_counter()
            cubin = compile_cuda(text, name=variant.source, arch=bundle.arch, cache=cache, path=path)
            seconds = time.perf_counter() - begin
            return _File(variant, hashlib.sha256(data).hexdigest(), text, cubin, seconds)
        except UnicodeDecodeError as error:
            return CompileError(f"{path}: is not UTF-8 text (at byte {error.start}); save it as UTF-8")
        except CompileError as error:
            return error

    nvrtc_version()  # loads the library before the threads that share it start
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(compiled, edited))
    _refuse(str(file) for file in outcomes if isinstance(file, CompileError))
    return [file for file in outcomes if isinstance(file, _File)]


def _refuse(reasons: Iterable[str]) -> None:
    """Raises CompileError with all the reasons, when there are any."""
    lines = list(reasons)
    if lines:
        raise CompileError("\n".join(lines))


def _launches(variant: BlockVariant) -> list[Launch]:
    return [step for step in variant.steps if isinstance(step, Launch)]


def _described(file: _File) -> BlockVariant:
    """The block variant with the resources of the newly compiled kernels."""
    kernels = [
        msgspec.structs.replace(k, **asdict(file.cubin.kernels[k.name])) if isinstance(step, Launch) else k
        for step, k in zip(file.variant.steps, file.variant.kernels, strict=True)
    ]
    return msgspec.structs.replace(file.variant, kernels=kernels)


def _edit(file: _File, bundle: Bundle) -> Edit | None:
    """What to record of a file; None when it is as it was emitted."""
    name = file.variant.source
    recorded = bundle.manifest.edits.get(name)
    emitted = recorded.emitted_sha256 if recorded else bundle.checksums[name]
    if file.digest == emitted:
        return None
    return Edit(emitted_sha256=emitted, kernels=_changed(file))


def _changed(file: _File) -> list[str]:
    """The kernels that differ from what was emitted: all of them when code that they share differs."""
    hashes = {k.name: k.source_hash for k in file.variant.kernels if k.source_hash}
    parts = sections(file.text)
    own = [name for name, emitted in hashes.items() if source_hash(parts.get(name, "")) != emitted]
    shared_is_emitted = source_hash(shared_code(file.text, hashes)) == file.variant.shared_hash
    return own if own and shared_is_emitted else list(hashes)


def _rebuilt(file: _File, after: BlockVariant, recorded: Edit | None, edit: Edit | None) -> Rebuilt:
    names = {*(recorded.kernels if recorded else ()), *(edit.kernels if edit else ())}
    changes = [
        KernelChange(edit is not None and new.name in edit.kernels, old, new)
        for old, new in zip(file.variant.kernels, after.kernels, strict=True)
        if new.name in names or new != old
    ]
    return Rebuilt(after.source, edit is None, file.seconds, tuple(changes))


def _updated(manifest: Manifest, variant: BlockVariant, edit: Edit | None) -> Manifest:
    others = {name: other for name, other in manifest.edits.items() if name != variant.source}
    block = {**manifest.blocks[variant.block], variant.variant: variant}
    return msgspec.structs.replace(
        manifest,
        edits=dict(sorted({**others, **({variant.source: edit} if edit else {})}.items())),
        blocks={**manifest.blocks, variant.block: block},
    )


def _warnings(bundle: Bundle, files: list[_File]) -> Iterator[str]:
    ours, theirs = nvrtc_version(), bundle.manifest.nvrtc
    if ours != theirs:
        yield f"compiled with NVRTC {ours}; the rest of {bundle.folder} was compiled with {theirs}"
    for file in files:
        parts = sections(file.text)
        for launch in _launches(file.variant):
            where, resources = f"{file.variant.source}: {launch.kernel}", file.cubin.kernels[launch.kernel]
            if resources.spill_bytes:
                yield f"{where} spills registers to memory ({resources.spill_bytes} bytes)"
            if no_longer_waits(parts.get(launch.kernel, file.text), launch):
                yield (
                    f"{where} starts before the kernel ahead of it has ended, and no longer calls "
                    "wait_for_previous_kernel(); it may read values that are not there yet"
                )
