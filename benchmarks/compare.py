"""Times two trees of Infernum in turns on one GPU, so that a drift of its clock falls on both.

    python benchmarks/compare.py OLD NEW [--rounds 3] [--output FILE]

OLD and NEW are folders with a checkout each. Every round runs `infernum bench latency` of either tree for each case,
which checks the results too. The table has medians over rounds, and NEW over OLD.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

CASES: dict[str, list[str]] = {
    "1B, one sequence": ["--model", "llama"],
    "1B, eight": ["--model", "llama", "--batch", "8"],
    "8B, one sequence": ["--model", "llama-3.1-8b"],
    "8B, eight": ["--model", "llama-3.1-8b", "--batch", "8"],
    "1B, prompt 2048": ["--model", "llama", "--prompt", "2048", "--tokens", "64"],
    "8B, prompt 2048": ["--model", "llama-3.1-8b", "--prompt", "2048", "--tokens", "64"],
}
MEASURED = ("ms_per_token", "prompt_ms")


def bench(tree: Path, arguments: list[str], scratch: Path) -> dict[str, Any]:
    """The results of one `infernum bench latency` of a tree. Raises CalledProcessError."""
    output = scratch / "latency.json"
    command = [
        sys.executable,
        "-m",
        "infernum",
        "bench",
        "latency",
        "--load-format",
        "dummy",
        "--repeats",
        "5",
    ]
    search = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": search, "INFERNUM_CACHE": str(scratch / tree.name)}
    subprocess.run(
        [*command, *arguments, "--output", str(output)],
        cwd=tree,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(output.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES, help="only these (default: all)")
    parser.add_argument("--output", type=Path, help="all results, as JSON")
    chosen = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(chosen.rounds):
            for case in chosen.case or CASES:
                for label, tree in (("old", chosen.old.resolve()), ("new", chosen.new.resolve())):
                    found = bench(tree, CASES[case], Path(scratch))
                    results.setdefault(case, {}).setdefault(label, []).append(found)
                    if chosen.output:
                        chosen.output.write_text(json.dumps(results, indent=1) + "\n")
    for case, by_tree in results.items():
        for name in MEASURED:
            old, new = (median(found[name] for found in by_tree[label]) for label in ("old", "new"))
            sys.stdout.write(f"{case:18} {name:13} {old:9.4f} {new:9.4f}  {new / old:.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
