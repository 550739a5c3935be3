"""What the results of all benchmarks have in common: a title, and a file of JSON to be kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_results(results: dict[str, Any], output: Path | None) -> None:
    """Keep the results as JSON. Raises RequestError when the file cannot be written."""
    if output is not None:
        write_text(json.dumps(results, indent=2) + "\n", output)


def write_text(text: str, output: Path) -> None:
    """Write a file, and the folders it lies in. Raises RequestError when that cannot be done."""
    from infernum.errors import RequestError

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{output}: cannot be written ({error.strerror})") from error


def title_of(results: dict[str, Any]) -> str:
    """What was measured, and on what."""
    how = "fused" if results["fuse"] else "not fused"
    return f"{results['model']}, {results['dtype']}, {how}, on {results['gpu']}"
