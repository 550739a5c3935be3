"""Random batches of the demo model in float32 NumPy: is each sequence's row of logits the one that it gives alone?

    python tests/row_invariance_soak.py [BATCHES]

Prints the sequences of each batch that differ, and fails if there are any. A thousand batches take seven
minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from toy_bundle import step

from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.graph_bundle import trace_model
from infernum.models.presets import resolve

PAGES = 64


def open_model(name: str, folder: Path) -> CpuExecutor:
    """A model in float32, by name or path, with its graphs in `folder`."""
    source = resolve(name)
    assert source.folder is not None
    bundle = trace_model(source, folder, dtype="float32")
    return CpuExecutor.open(bundle, Checkpoint.open(source.folder), max_pages_total=PAGES)


def tokens_of(count: int, seed: int) -> list[int]:
    """Tokens that every model here has."""
    return np.random.default_rng(seed).integers(0, 64, count).tolist()


def unequal_in_a_random_batch(executor: CpuExecutor, seed: int) -> list[int]:
    """Of 2 to 20 sequences, those whose logits in one step are not those that each gives alone.

    Some have a part of their tokens in the cache already.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 21))
    lengths = rng.choice([1, 2, 17, 63, 64, 65, 128, int(rng.integers(1, 190))], count).tolist()
    sequences = [tokens_of(length, seed=int(rng.integers(1 << 30))) for length in lengths]
    cached = [int(rng.choice([0, length - 1, rng.integers(0, length)])) for length in lengths]
    free = rng.permutation(61).tolist()
    pages = [[free.pop() for _ in range(3)] for _ in sequences]
    before = [s for s in range(count) if cached[s]]
    if before:
        filled = [sequences[s][: cached[s]] for s in before]
        executor.logits(step(filled, [cached[s] for s in before], [pages[s] for s in before]))
    new = [length - c for length, c in zip(lengths, cached, strict=True)]
    together = executor.logits(step(sequences, new, pages))
    alone = [executor.logits(step([s], [len(s)], [[61, 62, 63]]))[0] for s in sequences]
    return [s for s in range(count) if not np.array_equal(together[s], alone[s])]


def main() -> int:
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    differing = 0
    with tempfile.TemporaryDirectory() as folder, open_model("dante", Path(folder) / "dante") as executor:
        for seed in range(batches):
            if unequal := unequal_in_a_random_batch(executor, seed):
                differing += 1
                sys.stdout.write(f"batch {seed}: sequences {unequal} differ\n")
    sys.stdout.write(f"{differing} of {batches} batches differ\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
