"""What the results of all benchmarks have in common: a title, and a file of JSON to be kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infernum.cli.output import write_output


def write_results(results: dict[str, Any], output: Path | None) -> None:
    """Keep the results as JSON. Raises InfernumError when the file cannot be written."""
    if output is not None:
        write_output(output, json.dumps(results, indent=2) + "\n", make_folders=True)


def title_of(results: dict[str, Any]) -> str:
    """What was measured, and on what."""
    how = "fused" if results["fuse"] else "not fused"
    return f"{results['model']}, {results['dtype']}, {how}, on {results['gpu']}"
