"""The folders of the package's files: inside the package when installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from infernum.errors import InfernumError

PACKAGE = Path(__file__).resolve().parent


def templates_folder() -> Path:
    """The folder of CUDA templates (`*.cu.j2`, `include/*.cuh`)."""
    return _first("templates", PACKAGE / "templates", PACKAGE.parent / "templates")


def demo_folder(name: str = "dante") -> Path:
    """The Hugging Face folder of a demo model: "dante", which recites, or "dante-chat", which answers."""
    in_checkout = PACKAGE.parent / "examples" / name.replace("-", "_")
    return _first("the demo model", PACKAGE / "demo" / name, in_checkout)


def _first(what: str, *candidates: Path) -> Path:
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise InfernumError(f"{PACKAGE}: {what} is missing from this installation; install infernum again")
    return folder
