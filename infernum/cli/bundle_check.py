"""What `infernum doctor BUNDLE` looks at: files, edits, architecture, plugins and spills of one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infernum.cli.folder_check import FolderCheck, Look

if TYPE_CHECKING:
    from infernum.bundle import Bundle, FileState
    from infernum.manifest import BlockVariant


def check_bundle(folder: Path, *, gpu_works: bool, numpy_works: bool) -> FolderCheck:
    """Look at a bundle as it lies in `folder`; `runs` is false where `infernum run` could not run it here."""
    from infernum.bundle import CHECKSUMS, file_state, open_bundle
    from infernum.errors import BundleError
    from infernum.runtime.driver import gpu_available

    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return FolderCheck(folder, [Look("manifest", False, str(error))])
    manifest = bundle.manifest
    lying = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    files: dict[str, FileState] = {name: file_state(bundle, name) for name in [*bundle.checksums, *lying]}
    every = [v for variants in manifest.blocks.values() for v in variants.values()]
    arch, plugins = _arch(bundle), _plugins(bundle)
    manifest_look = Look(
        "manifest", True, f"schema {manifest.schema}, {manifest.model.name}, {manifest.arch or 'NumPy'}"
    )
    looks = [manifest_look, *_files(folder, files), _edits(bundle), arch, plugins, _spills(every)]
    on_gpu = (
        gpu_works
        and arch.fine
        and manifest.arch is not None
        and all(files.get(v.cubin) == "ok" for v in every)
    )
    graphs = {v.graph for v in every}
    in_numpy = numpy_works and plugins.fine and all(files.get(name) == "ok" for name in graphs)
    works = {"run the bundle in NumPy": in_numpy, "run the bundle on the GPU": on_gpu}
    return FolderCheck(folder, looks, works, on_gpu if gpu_available() and manifest.arch else in_numpy, files)


_STATES: dict[str, tuple[str, str]] = {
    "edited": ("edited, not rebuilt", "infernum rebuild {folder}"),
    "damaged": ("damaged", "undo what changed them, or compile the model again with -o {folder}"),
    "missing": ("missing", "compile the model again with -o {folder}"),
    "extra": ("not of the bundle", ""),
}
"""What `doctor` calls files that are not as their checksums say, and what mends them."""


def _files(folder: Path, files: dict[str, FileState]) -> list[Look]:
    """One line for all files that are fine, and one for each state that others are in."""
    fine = sum(state == "ok" for state in files.values())
    looks = [Look("files", True, f"{fine} of {len(files)} are as their checksums say")]
    for state, (what, mend) in _STATES.items():
        named = [name for name, found in files.items() if found == state]
        if named:
            looks.append(Look(what, state == "extra", ", ".join(named), mend.format(folder=folder)))
    return looks


def _edits(bundle: Bundle) -> Look:
    from infernum.cli.bundle_tables import edits_text

    return Look("edited by hand", True, edits_text(bundle.manifest) or "nothing")


def _arch(bundle: Bundle) -> Look:
    """Whether the GPU at hand runs what was compiled; without a GPU nothing speaks against it."""
    from infernum.errors import InfernumError
    from infernum.runtime.driver import gpu_available, gpu_facts
    from infernum.runtime.layout import check_arch

    arch = bundle.manifest.arch
    if arch is None:
        return Look("architecture", True, "none: graphs for NumPy, which `infernum run --device cpu` runs")
    if not gpu_available():
        return Look("architecture", True, f"{arch}; there is no GPU here to run it on")
    try:
        facts = gpu_facts(0)
        check_arch(bundle, facts.arch, facts.name)
    except InfernumError as error:
        return Look("architecture", False, str(error))
    return Look("architecture", True, f"{arch}, which runs on {facts.name}")


def _plugins(bundle: Bundle) -> Look:
    """NumPy needs the ops of the plugins that a bundle was compiled with."""
    from infernum import plugins

    here = {plugin.name: plugin.sha256 for plugin in plugins.loaded()}
    needed = bundle.manifest.plugins
    if not needed:
        return Look("plugins", True, "none needed")
    missing = [plugin.name for plugin in needed if plugin.name not in here]
    said = [
        f"{plugin.name} ("
        + (
            "not loaded"
            if plugin.name in missing
            else "loaded"
            if here[plugin.name] == plugin.sha256
            else "changed since"
        )
        + ")"
        for plugin in needed
    ]
    return Look("plugins", not missing, ", ".join(said), "give their files with --plugin" if missing else "")


def _spills(every: list[BlockVariant]) -> Look:
    found = [
        f"{v.block}.{v.variant}: {k.name} ({k.spill_bytes} bytes)"
        for v in every
        for k in v.kernels
        if k.spill_bytes
    ]
    return Look("spilled registers", not found, ", ".join(found) or "none")
