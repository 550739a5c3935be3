"""What `infernum doctor FOLDER` saw in a folder, whether that is a bundle or a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infernum.bundle import FileState


@dataclass(frozen=True)
class Look:
    """One thing that was looked at: whether it is as it should be, what was seen, what mends it."""

    what: str
    fine: bool
    found: str
    mend: str = ""


@dataclass(frozen=True)
class FolderCheck:
    """A folder on this machine: what was seen in it, what it can be used for here, and whether `infernum run` works.

    files  the state of every file of a bundle
    """

    folder: Path
    looks: list[Look]
    works: dict[str, bool] = field(default_factory=dict[str, bool])
    runs: bool = False
    files: dict[str, FileState] = field(default_factory=dict[str, "FileState"])

    def as_json(self) -> dict[str, Any]:
        """As `infernum doctor --json` prints it."""
        looks = [asdict(look) for look in self.looks]
        return {"folder": str(self.folder), "files": self.files, "found": looks, "works": self.works}
