"""Bundles in the user's cache, by a hash of all their inputs."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from infernum import __version__, bundle, logs, plugins
from infernum.cache import cache_folder, locked
from infernum.manifest import SCHEMA
from infernum.models.config import config_hash
from infernum.models.presets import ModelSource

log = logging.getLogger(__name__)
cache_log = logs.channel("cache")


def cached(
    source: ModelSource, facts: Sequence[object], make: Callable[[Path], bundle.Bundle]
) -> bundle.Bundle:
    """The bundle of a model for `facts`: from the cache, or compiled into the cache by `make(folder)`."""
    key = _key(source, facts)
    folder = cache_folder() / "bundles" / f"{source.name.replace('/', '_')}-{key[:16]}"
    with locked(folder):
        usable = _usable(folder)
        if usable is None:
            if folder.exists() and not bundle.is_bundle(folder):  # an incomplete bundle
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
            cache_log.info("bundle miss, compiling %s", folder)
            return make(folder)
    cache_log.info("bundle hit %s", folder)
    if usable.manifest.edits:
        log.warning(
            "%s: its kernels were edited by hand, and that is what runs; delete it for the compiler's own",
            folder,
        )
    return usable


def _usable(folder: Path) -> bundle.Bundle | None:
    """The bundle in a folder of the cache; None when it is missing or damaged."""
    if not (folder / bundle.MANIFEST).is_file():
        return None
    try:
        opened = bundle.open_bundle(folder)
        bundle.check_whole(opened)
    except bundle.BundleError as error:
        cache_log.info("the bundle is damaged and made anew: %s", error)
        return None
    return opened


def _key(source: ModelSource, facts: Sequence[object]) -> str:
    """A hash of the model, of `facts`, and of Infernum's own version, plugins, code and templates."""
    digest = hashlib.sha256()
    known = [config_hash(source.config), source.config.dtype, __version__, SCHEMA, plugins.loaded()]
    digest.update(repr([*known, *facts]).encode())
    digest.update(_own_sources())
    return digest.hexdigest()


def _own_sources() -> bytes:
    """A fingerprint of the package's code and templates: name, size and time of every file."""
    from infernum.resources import templates_folder

    package = Path(__file__).parent
    digest = hashlib.sha256()
    for folder, pattern in ((package, "**/*.py"), (templates_folder(), "**/*")):
        for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.digest()
