"""Runs every block variant of the demo model once, fused and unfused, for NVIDIA's compute-sanitizer:

    compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py     # also synccheck, initcheck
    for case in $(python3 tests/gpu/sanitize.py --list); do
        compute-sanitizer --tool racecheck python3 tests/gpu/sanitize.py $case
    done

Prompts of 70 and 20 tokens, then three decode steps of one and of five sequences, greedy and sampled. With
`--no-graphs` decodes are launched kernel by kernel. racecheck holds on to 1.5 GB of host memory for every second that
it runs: each case in a process of its own.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT_LENGTHS = {"long": [70], "short": [20], "five": [70, 3, 9, 1, 20]}
"""Tokens of the prompts that are run together: the variants prefill and t64, then t1 or t8 while decoding."""

CASES = [
    f"{fused}/{lengths}/{way}"
    for fused in ("fused", "unfused")
    for lengths in PROMPT_LENGTHS
    for way in ("greedy", "sampled")
]

NEW_TOKENS = 4
"""The prompt's step samples one; three steps decode: the first launched, the others replayed as a graph."""


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from infernum.checkpoint import Checkpoint
    from infernum.compiler import Options, compile_model
    from infernum.engine.engine import Engine
    from infernum.engine.sampling_params import SamplingParams
    from infernum.machine import native_arch
    from infernum.models.presets import resolve
    from infernum.resources import demo_folder
    from infernum.runtime.executor import CudaExecutor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-graphs", action="store_true", help="launch decodes kernel by kernel")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and run none")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these (default: all)")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))} among {', '.join(CASES)}")
    if options.list:
        sys.stdout.write("\n".join(CASES) + "\n")
        return 0
    cases = options.cases or CASES

    common = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    sampled = SamplingParams(top_k=40, min_p=0.01, repetition_penalty=1.2, seed=1, **common)
    ways = {"greedy": SamplingParams(temperature=0, **common), "sampled": sampled}
    arch = native_arch()
    with tempfile.TemporaryDirectory() as folder:
        for fused, of_bundle in itertools.groupby(cases, lambda case: case.split("/")[0]):
            compile_options = Options(arch=arch, dtype=options.dtype, fuse=fused == "fused")
            bundle = compile_model(resolve("dante"), compile_options, Path(folder) / f"dante-{fused}")
            executor = CudaExecutor.open(
                bundle, Checkpoint.open(demo_folder()), max_pages_total=32, use_graphs=not options.no_graphs
            )
            with executor:
                engine = Engine(executor, bundle.manifest.model)
                for case in of_bundle:
                    _, lengths, way = case.split("/")
                    prompts = [[(7 * i + 13 * n) % 4000 for i in range(n)] for n in PROMPT_LENGTHS[lengths]]
                    tokens = [completion.tokens for completion in engine.generate(prompts, ways[way])]
                    assert all(len(found) == NEW_TOKENS for found in tokens), tokens
                    sys.stdout.write(f"{case}: {tokens}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
