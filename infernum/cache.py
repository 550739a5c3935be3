"""The user's cache folder, and files in it that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where what was worked out once is kept: `INFERNUM_CACHE`, or `infernum` in the user's cache folder."""
    chosen = os.environ.get("INFERNUM_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"infernum-{os.getuid()}"
    return Path(home) / "infernum"


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Keep other processes that lock the same file or folder out of the block; they wait.

    In a cache that cannot be written there is nothing to keep them from; on a file system without locks nothing does.
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
    """Write a file so that readers see all of it or nothing, even after a power cut. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
