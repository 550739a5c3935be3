"""Text from the demo model on the GPU: the same however it is made, and the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gpu.recipes import PAGES, Bundles, Recipe
from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.dtypes import relative_error
from infernum.engine.engine import Engine
from infernum.llm import LLM
from infernum.resources import demo_folder
from infernum.runtime.executor import CudaExecutor
from infernum.sampling_params import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

PROMPT = "Midway upon the journey of our life"
PROMPTS = [
    PROMPT,
    "Through me the way is to the city dolent;",
    "All hope abandon, ye who enter in!",
    "The",
    "And I, who had my head with horror bound, said: Master, what is this which now I hear?",
]
DANTE = {dtype: Recipe("dante", dtype, True) for dtype in ("bfloat16", "float32")}
BOTH = pytest.mark.parametrize("recipe", DANTE.values(), ids=str)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def sampled(tokens: int, seed: int) -> SamplingParams:
    """Sampling with every feature on."""
    return SamplingParams(
        max_tokens=tokens,
        temperature=0.9,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=seed,
        ignore_eos=True,
    )


def demo(bundle: Bundle, device: str = "cuda", pages: int = PAGES) -> LLM:
    return LLM("dante", device=device, bundle=bundle, max_pages_total=pages)


@pytest.mark.parametrize("dtype", DANTE)
def test_the_poem_goes_on_token_for_token_alike_on_every_device_fused_or_not(
    dtype: str, bundles: Bundles
) -> None:
    fused, unfused = (bundles.get(Recipe("dante", dtype, fuse)) for fuse in (True, False))
    found = {}
    for name, bundle, device in (
        ("cpu", fused, "cpu"),
        ("fused", fused, "cuda"),
        ("unfused", unfused, "cuda"),
    ):
        with demo(bundle, device) as llm:
            found[name] = llm.generate(PROMPT, greedy(40))[0]
    assert "I found myself within a forest dark" in found["cpu"].text
    assert found["fused"].tokens == found["cpu"].tokens
    assert found["unfused"].tokens == found["cpu"].tokens


def test_the_demo_that_chats_answers_every_question_that_it_was_taught() -> None:
    taught = json.loads(
        (Path(__file__).parents[2] / "examples" / "dante_chat" / "taught.json").read_text(encoding="utf-8")
    )
    with LLM("dante-chat", device="cuda", max_pages_total=PAGES) as llm:
        answers = {question: llm.chat([{"role": "user", "content": question}]).text for question in taught}
    assert answers == taught


@BOTH
def test_twenty_generations_of_two_hundred_tokens_are_the_same_to_the_bit(
    recipe: Recipe, bundles: Bundles
) -> None:
    with demo(bundles.get(recipe)) as llm:
        prompt = llm.encode(PROMPT)[0]
        generated = {llm.generate([prompt], greedy(200))[0].tokens for _ in range(20)}
        assert len(generated) == 1
        sequence = [*prompt, *generated.pop()]
        logits = {llm.logits(sequence).tobytes() for _ in range(5)}
    assert len(logits) == 1


@BOTH
def test_a_batch_of_prompts_gives_each_what_it_gets_alone(recipe: Recipe, bundles: Bundles) -> None:
    with demo(bundles.get(recipe)) as llm:
        together = llm.generate(PROMPTS, greedy(60))
        for prompt, batched in zip(PROMPTS, together, strict=True):
            alone = llm.generate(prompt, greedy(60))[0]
            if recipe.dtype == "float32":
                assert batched.tokens == alone.tokens
            else:
                check_same_unless_tied(llm, prompt, batched.tokens, alone.tokens)


@BOTH
@pytest.mark.parametrize("count", [40, 300])
def test_hundreds_of_sequences_get_what_each_gets_alone(recipe: Recipe, count: int, bundles: Bundles) -> None:
    """Prompts beside decodes, decodes of more than 64 sequences, and of more rows than the head takes at once."""
    words = " ".join(PROMPTS).split()
    prompts = [
        " ".join(words[i % len(words) :] + words[: i % len(words)])[: 20 + i % 60] for i in range(count)
    ]
    with demo(bundles.get(recipe), pages=count) as llm:
        together = llm.generate(prompts, greedy(12))
        for prompt, batched in list(zip(prompts, together, strict=True))[:: count // 20]:
            alone = llm.generate(prompt, greedy(12))[0]
            if recipe.dtype == "float32":
                assert batched.tokens == alone.tokens
            else:
                check_same_unless_tied(llm, prompt, batched.tokens, alone.tokens)


def check_same_unless_tied(llm: LLM, prompt: str, left: Sequence[int], right: Sequence[int]) -> None:
    """Greedy tokens may part only where two of them are equally likely as far as bfloat16 can tell."""
    parts = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
    if parts is None:
        return
    logits = llm.logits([*llm.encode(prompt)[0], *left[:parts]])[-1]
    apart = abs(float(logits[left[parts]] - logits[right[parts]]))
    assert apart < 0.02 * float(np.abs(logits).max()), f"{prompt!r}: token {parts} differs without a tie"


@BOTH
def test_the_same_seed_gives_the_same_text(recipe: Recipe, bundles: Bundles) -> None:
    with demo(bundles.get(recipe)) as llm:
        first, second = (llm.generate(PROMPTS, sampled(60, seed=7)) for _ in range(2))
        other = llm.generate(PROMPTS, sampled(60, seed=8))
    assert [c.tokens for c in first] == [c.tokens for c in second]
    assert [c.tokens for c in first] != [c.tokens for c in other]


def test_a_seed_gives_the_same_text_on_the_gpu_as_in_numpy(bundles: Bundles) -> None:
    bundle = bundles.get(DANTE["float32"])
    texts: dict[str, list[str]] = {}
    for device in ("cpu", "cuda"):
        with demo(bundle, device) as llm:
            texts[device] = [llm.generate(prompt, sampled(24, seed=3))[0].text for prompt in PROMPTS[:2]]
    assert texts["cuda"] == texts["cpu"]


@pytest.mark.parametrize("fuse", [True, False])
def test_random_weights_are_the_same_on_the_gpu_as_in_numpy(fuse: bool, bundles: Bundles) -> None:
    bundle = bundles.get(Recipe("dante", "float32", fuse))
    logits: dict[str, np.ndarray] = {}
    for device in ("cpu", "cuda"):
        made = LLM("dante", device=device, bundle=bundle, load_format="dummy", max_pages_total=PAGES)
        with made as llm:
            logits[device] = llm.logits(range(1, 90))
    assert relative_error(logits["cuda"], logits["cpu"]) <= 1e-4


@contextmanager
def engine_of(bundle: Bundle, *, use_graphs: bool) -> Iterator[Engine]:
    """An engine over the demo model, without a tokenizer: token ids in, token ids out."""
    executor = CudaExecutor.open(
        bundle, Checkpoint.open(demo_folder()), max_pages_total=80, use_graphs=use_graphs
    )
    with executor:
        yield Engine(executor, bundle.manifest.model)


@BOTH
@pytest.mark.parametrize("sequences", [1, 5])
def test_cuda_graphs_give_the_tokens_of_single_launches(
    recipe: Recipe, sequences: int, bundles: Bundles
) -> None:
    rng = np.random.default_rng(sequences)
    prompts = [rng.integers(0, 4000, 10 + 31 * i).tolist() for i in range(sequences)]
    found: dict[bool, list[list[tuple[int, ...]]]] = {}
    for use_graphs in (True, False):
        with engine_of(bundles.get(recipe), use_graphs=use_graphs) as engine:
            ways = [engine.generate(prompts, params) for params in (greedy(100), sampled(100, seed=1))]
        found[use_graphs] = [[completion.tokens for completion in way] for way in ways]
    assert found[True] == found[False]


RUN = """
import sys
from infernum.cli import run
code = run(["run", "Midway upon the journey of our life, and then", "--bundle", sys.argv[1], "--device", "cuda",
            "--gpu-memory-utilization", "0.1", "-n", "12", "--greedy"])
assert code == 0, code
"""
RUNTIME_LIBRARIES = (
    "import numpy, msgspec, tokenizers, click, rich, cuda.bindings.driver, nvmath.bindings.cublasLt\n"
)
REPORT = """
import json
print()
mapped = open("/proc/self/maps").read()
print(json.dumps({"modules": sorted(sys.modules), "nvrtc": "libnvrtc" in mapped}))
"""


def modules_after(program: str, *args: str) -> tuple[set[str], bool]:
    """The modules that a program of its own has imported at its end, and whether it has loaded NVRTC."""
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + program + REPORT, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    return set(report["modules"]), report["nvrtc"]


def test_running_a_bundle_on_a_gpu_imports_no_compiler(bundles: Bundles) -> None:
    bundle = bundles.get(DANTE["bfloat16"])
    imported, loaded_nvrtc = modules_after(RUN, str(bundle.folder))
    without_us, libraries_load_nvrtc = modules_after(RUNTIME_LIBRARIES)
    ours = {"infernum.runtime.executor", "infernum.engine.engine"}
    assert ours <= imported, "the program did not run a model on the GPU"
    compiles = (
        "jinja2",
        "networkx",
        "cuda.bindings.nvrtc",
        "infernum.compiler",
        "infernum.codegen",
        "infernum.fusion",
    )
    assert [name for name in imported - without_us if name.startswith(compiles)] == []
    assert loaded_nvrtc <= libraries_load_nvrtc, "NVRTC was loaded"
