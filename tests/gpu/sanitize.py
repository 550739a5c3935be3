"""Runs every block variant of the demo model and of tiny models once, for NVIDIA's compute-sanitizer:

    compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py     # also synccheck, initcheck
    for case in $(python3 tests/gpu/sanitize.py --list); do
        compute-sanitizer --tool racecheck python3 tests/gpu/sanitize.py $case
    done

The demo model, fused and unfused: prompts of 70 and 20 tokens, then three decode steps of one, five and 72 sequences,
greedy and sampled; and, fused, such steps at a context that attention splits among clusters. Tiny models with random
weights, at short and at long contexts: windows, caps, norms of heads, heads of 64 to 256, LongRoPE, and every kernel of
attention. With `--no-graphs` decodes are launched kernel by kernel.
racecheck holds on to 1.5 GB of host memory for every second that it runs: each case in a process of its own.
"""

import argparse
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT_LENGTHS = {"long": [70], "short": [20], "five": [70, 3, 9, 1, 20], "many": [2, 70, *[1, 3] * 35]}
"""Tokens of the prompts that are run together: the variants prefill and t64, then t1, t8 or d128 while decoding."""

CASES = [
    f"{fused}/{lengths}/{way}"
    for fused in ("fused", "unfused")
    for lengths in PROMPT_LENGTHS
    for way in ("greedy", "sampled")
]
SPLIT_CASES = {"fused/split/one": 1, "fused/split/five": 5}
"""Sequences that decode at a long context."""

TINY = [
    "heads_8_2_64-bfloat16-fused",
    "heads_8_2_128-float16-fused",
    "heads_2_2_64-float32-fused",
    "heads_8_2_64-bfloat16-unfused",
    "window_5_64-bfloat16-fused",
    "window_100_256-bfloat16-fused",
    "gemma2_256-bfloat16-fused",
    "gemma2_128-float32-fused",
    "gemma3_text_128-bfloat16-fused",
    "composed_normed-bfloat16-fused",
    "composed_neighbours_96-bfloat16-fused",
    "composed_long_96-bfloat16-fused",
    "phi3_slides-bfloat16-fused",
    "phi3_short-float16-fused",
]
"""Recipes of tests/gpu/recipes.py by their names."""

TINY_CASES = [f"{recipe}/{length}" for recipe in TINY for length in ("short", "long")]

FAR = 960
"""Positions ahead of the chunks of prompts that a long case of a tiny model computes, of 70 and of 12 tokens."""

LONG_CONTEXT = 8192
"""Positions that the model may have here; the last page of them is where a split case decodes."""

PAGES = 160
"""Pages of the KV cache."""

NEW_TOKENS = 4
"""The prompt's step samples one; three steps decode: the first launched, the others replayed as a graph."""


def decode_long(executor, sequences: int) -> list[list[int]]:
    """The tokens of greedy steps, each token of which attends to 8128 positions or more.

    No prompt is so long, as racecheck would take minutes over it: all pages but the last one of a sequence are one
    page, which a short prompt has written.
    """
    import numpy as np

    from infernum.lab.measure.workload import chunk_batch, decode_batch, greedy

    pages = np.zeros((sequences, LONG_CONTEXT // executor.page_size), np.int32)
    pages[:, -1] = 1 + np.arange(sequences)
    prompt = chunk_batch(np.arange(executor.page_size, dtype=np.int32), 0, pages[:1])
    executor.run(prompt, greedy(1)).tokens()
    tokens = np.arange(sequences, dtype=np.int32)
    batch = decode_batch(tokens, LONG_CONTEXT - executor.page_size, pages)
    found = [executor.run(batch, greedy(sequences)).tokens()]
    found += [executor.advance().tokens() for _ in range(2)]
    return np.stack(found, axis=1).tolist()


def read_far(executor, tokens: int) -> list[int]:
    """The greedy token behind a chunk of a prompt, each token of which attends to FAR positions or more.

    All pages ahead of the chunk are one page, which a short prompt has written.
    """
    import numpy as np

    from infernum.lab.measure.workload import chunk_batch, greedy

    pages = np.zeros((1, FAR // executor.page_size + 2), np.int32)
    pages[0, -2:] = (1, 2)
    prompt = chunk_batch(np.arange(executor.page_size, dtype=np.int32), 0, pages)
    executor.run(prompt, greedy(1)).tokens()
    chunk = chunk_batch(np.arange(tokens, dtype=np.int32), FAR, pages)
    return executor.run(chunk, greedy(1)).tokens().tolist()


def recipe_of(name: str):
    """The recipe of a tiny model by its name."""
    from gpu.recipes import Recipe

    model, dtype, fused = name.rsplit("-", 2)
    return Recipe(model, dtype, fused == "fused")


def with_long_context(source):
    """A model that may have LONG_CONTEXT positions."""
    return replace(source, config=replace(source.config, max_position_embeddings=LONG_CONTEXT))


def run_tiny(cases: list[str], arch: str, folder: Path, *, use_graphs: bool) -> None:
    """Cases of tiny models, whose weights are random."""
    from gpu.recipes import Bundles, compile_recipe
    from infernum.engine.engine import Engine
    from infernum.runtime.executor import CudaExecutor
    from infernum.sampling_params import SamplingParams

    bundles = Bundles(folder, arch)
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, temperature=0)
    for name, of_bundle in itertools.groupby(cases, lambda case: case.split("/")[0]):
        recipe = recipe_of(name)
        bundle = compile_recipe(recipe, with_long_context(bundles.source(recipe.model)), arch)
        with CudaExecutor.open(bundle, None, max_pages_total=PAGES, use_graphs=use_graphs) as executor:
            for case in of_bundle:
                if case.endswith("/long"):
                    tokens = [read_far(executor, count) for count in (70, 12)]
                    tokens += [decode_long(executor, sequences) for sequences in (1, 5)]
                else:
                    engine = Engine(executor, bundle.manifest.model)
                    prompts = [
                        [[i % 100 for i in range(n)] for n in lengths] for lengths in PROMPT_LENGTHS.values()
                    ]
                    tokens = [[c.tokens for c in engine.generate(each, params)] for each in prompts]
                sys.stdout.write(f"{case}: {tokens}\n")
    bundles.close()


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from infernum.checkpoint import Checkpoint
    from infernum.compiler import Options, compile_model
    from infernum.engine.engine import Engine
    from infernum.machine import native_arch
    from infernum.models.presets import resolve
    from infernum.resources import demo_folder
    from infernum.runtime.executor import CudaExecutor
    from infernum.sampling_params import SamplingParams

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-graphs", action="store_true", help="launch decodes kernel by kernel")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of the demo model"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and run none")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these (default: all)")
    options = parser.parse_args()
    every = [*SPLIT_CASES, *CASES, *TINY_CASES]
    if unknown := set(options.cases) - set(every):
        parser.error(f"no case {', '.join(sorted(unknown))} among {', '.join(every)}")
    if options.list:
        sys.stdout.write("\n".join(every) + "\n")
        return 0
    cases = options.cases or every

    common = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    sampled = SamplingParams(top_k=40, min_p=0.01, repetition_penalty=1.2, seed=1, **common)
    ways = {"greedy": SamplingParams(temperature=0, **common), "sampled": sampled}
    arch, source = native_arch(), with_long_context(resolve("dante"))
    tiny = [case for case in cases if case in TINY_CASES]
    of_demo = [case for case in cases if case not in TINY_CASES]
    with tempfile.TemporaryDirectory() as folder:
        run_tiny(tiny, arch, Path(folder), use_graphs=not options.no_graphs)
        for fused, of_bundle in itertools.groupby(of_demo, lambda case: case.split("/")[0]):
            compile_options = Options(arch=arch, dtype=options.dtype, fuse=fused == "fused")
            bundle = compile_model(source, compile_options, Path(folder) / f"dante-{fused}")
            executor = CudaExecutor.open(
                bundle,
                Checkpoint.open(demo_folder()),
                max_pages_total=PAGES,
                use_graphs=not options.no_graphs,
            )
            with executor:
                engine = Engine(executor, bundle.manifest.model)
                for case in of_bundle:
                    if case in SPLIT_CASES:
                        tokens = decode_long(executor, SPLIT_CASES[case])
                        sys.stdout.write(f"{case}: {tokens}\n")
                        continue
                    _, lengths, way = case.split("/")
                    prompts = [[(7 * i + 13 * n) % 4000 for i in range(n)] for n in PROMPT_LENGTHS[lengths]]
                    tokens = [completion.tokens for completion in engine.generate(prompts, ways[way])]
                    assert all(len(found) == NEW_TOKENS for found in tokens), tokens
                    sys.stdout.write(f"{case}: {tokens}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
