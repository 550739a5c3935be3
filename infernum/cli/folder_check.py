"""The results of `infernum doctor`: of one check, and of all checks of a bundle or a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infernum.bundle import FileState


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: what was checked, whether it is in order, the details, and what mends it."""

    what: str
    ok: bool
    details: str
    mend: str = ""

    def as_json(self, ok: str) -> dict[str, Any]:
        """The result as `infernum doctor --json` prints it, with `ok` as the key of its success."""
        return {"what": self.what, ok: self.ok, "found": self.details, "mend": self.mend}


@dataclass(frozen=True)
class FolderCheck:
    """All results of a folder on this machine.

    works  whether the folder can be used here, for each use
    runs   whether `infernum run` works with it here
    files  the state of every file of a bundle
    """

    folder: Path
    results: list[CheckResult]
    works: dict[str, bool] = field(default_factory=dict[str, bool])
    runs: bool = False
    files: dict[str, FileState] = field(default_factory=dict[str, "FileState"])

    def as_json(self) -> dict[str, Any]:
        """The check as `infernum doctor --json` prints it."""
        results = [result.as_json("fine") for result in self.results]
        return {"folder": str(self.folder), "files": self.files, "found": results, "works": self.works}
