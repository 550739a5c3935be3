"""Runs every block variant of the demo model once, fused and unfused, for NVIDIA's compute-sanitizer:

    compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py     # also racecheck, synccheck, initcheck

Prompts of 70 and 20 tokens, then three decode steps of one and of five sequences, greedy and sampled. With
`--no-graphs` decodes are launched kernel by kernel.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT_LENGTHS = ([70], [20], [70, 3, 9, 1, 20])
"""Tokens of the prompts that are run together: the variants prefill and t64, then t1 or t8 while decoding."""

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
    options = parser.parse_args()

    common = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    sampled = SamplingParams(top_k=40, min_p=0.01, repetition_penalty=1.2, seed=1, **common)
    ways = {"greedy": SamplingParams(temperature=0, **common), "sampled": sampled}
    arch = native_arch()
    with tempfile.TemporaryDirectory() as folder:
        for fuse in (True, False):
            compile_options = Options(arch=arch, dtype=options.dtype, fuse=fuse)
            bundle = compile_model(resolve("dante"), compile_options, Path(folder) / f"dante-{fuse}")
            executor = CudaExecutor.open(
                bundle, Checkpoint.open(demo_folder()), max_pages_total=32, use_graphs=not options.no_graphs
            )
            with executor:
                engine = Engine(executor, bundle.manifest.model)
                for lengths in PROMPT_LENGTHS:
                    prompts = [[(7 * i + 13 * n) % 4000 for i in range(n)] for n in lengths]
                    for name, params in ways.items():
                        tokens = [completion.tokens for completion in engine.generate(prompts, params)]
                        assert all(len(found) == NEW_TOKENS for found in tokens), tokens
                        sys.stdout.write(f"{'fused' if fuse else 'unfused'} {name} {lengths}: {tokens}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
