"""What `infernum doctor BUNDLE` checks: files, edits, architecture, plugins and spills of one bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infernum.cli.folder_check import CheckResult, FolderCheck

if TYPE_CHECKING:
    from infernum.bundle import Bundle, FileState
    from infernum.manifest import BlockVariant


def check_bundle(folder: Path, *, gpu_works: bool, numpy_works: bool) -> FolderCheck:
    """Check the bundle in `folder`. The files need not be as they were compiled."""
    from infernum.bundle import CHECKSUMS, file_state, open_bundle
    from infernum.errors import BundleError
    from infernum.runtime.driver import gpu_available

    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return FolderCheck(folder, [CheckResult("manifest", False, str(error))])
    manifest = bundle.manifest
    present = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    files: dict[str, FileState] = {name: file_state(bundle, name) for name in [*bundle.checksums, *present]}
    every = [v for variants in manifest.blocks.values() for v in variants.values()]
    arch, plugins = _arch(bundle), _plugins(bundle)
    summary = f"schema {manifest.schema}, {manifest.model.name}, {manifest.arch or 'NumPy'}"
    results = [CheckResult("manifest", True, summary), *_files(folder, files), _edits(bundle), arch, plugins]
    cubins = {v.cubin for v in every}
    on_gpu = gpu_works and arch.ok and manifest.arch is not None and _are_whole(cubins, files)
    in_numpy = numpy_works and plugins.ok and _are_whole({v.graph for v in every}, files)
    works = {"run the bundle in NumPy": in_numpy, "run the bundle on the GPU": on_gpu}
    runs = on_gpu if gpu_available() and manifest.arch else in_numpy
    return FolderCheck(folder, [*results, _spills(every)], works, runs, files)


def _are_whole(names: Iterable[str], files: Mapping[str, FileState]) -> bool:
    """True when every file of these names is there and as its checksum says."""
    return all(files.get(name) == "ok" for name in names)


_STATES: dict[str, tuple[str, str]] = {
    "edited": ("edited, not rebuilt", "infernum rebuild {folder}"),
    "damaged": ("damaged", "undo what changed them, or compile the model again with -o {folder}"),
    "missing": ("missing", "compile the model again with -o {folder}"),
    "extra": ("not of the bundle", ""),
}
"""For each state of a file that differs from its checksum: the name that `doctor` prints, and what mends it."""


def _files(folder: Path, files: dict[str, FileState]) -> list[CheckResult]:
    """One result for all files that match their checksums, and one for each other state that a file is in."""
    whole = sum(state == "ok" for state in files.values())
    results = [CheckResult("files", True, f"{whole} of {len(files)} are as their checksums say")]
    for state, (what, mend) in _STATES.items():
        if names := [name for name in files if files[name] == state]:
            results.append(CheckResult(what, state == "extra", ", ".join(names), mend.format(folder=folder)))
    return results


def _edits(bundle: Bundle) -> CheckResult:
    from infernum.cli.bundle_tables import edits_text

    return CheckResult("edited by hand", True, edits_text(bundle.manifest) or "nothing")


def _arch(bundle: Bundle) -> CheckResult:
    """Whether this machine's GPU runs the compiled architecture; in order where there is no GPU."""
    from infernum.errors import InfernumError
    from infernum.runtime.driver import gpu_available, gpu_facts
    from infernum.runtime.layout import check_arch

    arch = bundle.manifest.arch
    if arch is None:
        return CheckResult(
            "architecture", True, "none: graphs for NumPy, which `infernum run --device cpu` runs"
        )
    if not gpu_available():
        return CheckResult("architecture", True, f"{arch}; there is no GPU here to run it on")
    try:
        facts = gpu_facts(0)
        check_arch(bundle, facts.arch, facts.name)
    except InfernumError as error:
        return CheckResult("architecture", False, str(error))
    return CheckResult("architecture", True, f"{arch}, which runs on {facts.name}")


def _plugins(bundle: Bundle) -> CheckResult:
    """Whether the plugins of the bundle are loaded: NumPy needs their ops."""
    from infernum import plugins

    here = {plugin.name: plugin.sha256 for plugin in plugins.loaded()}
    needed = bundle.manifest.plugins
    if not needed:
        return CheckResult("plugins", True, "none needed")
    states = {
        plugin.name: "not loaded"
        if plugin.name not in here
        else "loaded"
        if here[plugin.name] == plugin.sha256
        else "changed since"
        for plugin in needed
    }
    details = ", ".join(f"{name} ({state})" for name, state in states.items())
    mend = "give their files with --plugin" if "not loaded" in states.values() else ""
    return CheckResult("plugins", not mend, details, mend)


def _spills(every: list[BlockVariant]) -> CheckResult:
    spilling = ", ".join(
        f"{v.block}.{v.variant}: {k.name} ({k.spill_bytes} bytes)"
        for v in every
        for k in v.kernels
        if k.spill_bytes
    )
    return CheckResult("spilled registers", not spilling, spilling or "none")
