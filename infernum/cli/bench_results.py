"""The results of a benchmark: their file and their title."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infernum.cli.output import write_output


def write_results(results: dict[str, Any], output: Path | None) -> None:
    """Write the results as JSON, if there is a file to write. Raises InfernumError when that fails."""
    if output is not None:
        write_output(output, json.dumps(results, indent=2) + "\n", make_folders=True)


def title_of(results: dict[str, Any]) -> str:
    """The model, how it was compiled, and the GPU."""
    how = "fused" if results["fuse"] else "not fused"
    return f"{results['model']}, {results['dtype']}, {how}, on {results['gpu']}"
