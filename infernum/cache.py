"""The user's cache folder, its locks, and atomic writes."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of cached bundles, cubins and tuning: `INFERNUM_CACHE`, or `infernum` in the user's cache folder.

    Cubins in the folder are run. A folder that another user could have created, such as a folder in /tmp, is used only
    if nobody but this user can write to it. Otherwise this process uses a new private folder, and a warning is logged.
    `INFERNUM_CACHE` is trusted.
    """
    chosen = os.environ.get("INFERNUM_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        return _trusted(Path(tempfile.gettempdir()) / f"infernum-{os.getuid()}")
    return _trusted(Path(home) / "infernum")


def private_folder() -> Path:
    """A new folder that only this user can read and write. Raises OSError."""
    return Path(tempfile.mkdtemp(prefix="infernum-"))


def _trusted(folder: Path) -> Path:
    in_shared = [at for at in (folder, *folder.parents) if _anyone_may_write(at.parent)]
    if not in_shared:
        return folder
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if all(map(_is_ours_alone, in_shared)) else _instead_of(folder)


def _anyone_may_write(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _is_ours_alone(folder: Path) -> bool:
    """True for a folder, not a link, that belongs to this user and that no other user can write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


@lru_cache
def _instead_of(folder: Path) -> Path:
    """A private folder, the same for the whole process; `folder` itself when none can be created."""
    try:
        private = private_folder()
    except OSError:
        return folder
    log.warning(
        "%s: others can write there, so that the cache is %s and serves this process only;"
        " set INFERNUM_CACHE to a folder of yours",
        folder,
        private,
    )
    return private


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Lock a file or folder for the `with` block. Other processes that lock it wait.

    Nothing is locked in a folder that cannot be written, or on a file system without locks.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, content: bytes) -> None:
    """Create the folders above `path`, then write the file as `replace_whole` does. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, content)


def replace_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even after a power cut. Raises OSError.

    The permissions of the old file are kept. Where `path` is a link, the file that it points to is replaced.
    """
    place = path.resolve()
    temporary = place.with_name(f".infernum-{os.urandom(8).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(place.stat().st_mode)
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
