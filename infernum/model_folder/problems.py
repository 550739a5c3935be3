"""Why a file or folder cannot be used, as a value, and the checks that need only a file's first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import path as os_path
from pathlib import Path

DOWNLOAD_AGAIN = "download it again"
_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGES = (b"<!doctype", b"<html")


@dataclass(frozen=True)
class Problem:
    """Why a file or folder cannot be used: where, what is wrong, and what to do. `str` of it is one line.

    `files` are the missing files, where another file lists them.
    """

    where: Path
    what: str
    mend: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"


def is_listed(path: Path) -> bool:
    """True when a listing of the folder shows the path, even as a link to a missing file."""
    return os_path.lexists(path)


def file_problem(path: Path) -> Problem | None:
    """The problem of a listed file that cannot be opened, or whose first bytes contradict its name."""
    if path.is_symlink() and not path.exists():
        return Problem(path, f"is a link to {path.readlink()}, which is gone", DOWNLOAD_AGAIN)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return Problem(path, f"cannot be read ({error.strerror})", "give a file that can be read")
    if start.startswith(_POINTER):
        size = re.search(rb"^size (\d+)$", start, re.MULTILINE)
        of_size = f" to {int(size[1]):,} bytes" if size and len(size[1]) < 20 else ""
        return Problem(
            path,
            f"is a Git LFS pointer{of_size}; the file itself was not downloaded",
            f"run `git lfs pull` in {path.parent}",
        )
    if start.lstrip().lower().startswith(_WEB_PAGES):
        return Problem(path, "is a web page, not the file of that name", DOWNLOAD_AGAIN)
    return None
