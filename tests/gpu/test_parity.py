"""Logits on the GPU against transformers: committed goldens, live runs, and prompts against decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from oracle.configs import CASES, case
from oracle.golden import Answer, load_golden, relative_error
from oracle.live import transformers_logits
from oracle.weights import random_tokens

from gpu.recipes import PAGES, Bundles, Recipe, grouped
from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.engine.step_inputs import page_table, prompt_logits
from infernum.llm import LLM
from infernum.opening import load_executor
from infernum.resources import demo_folder
from infernum.step import Batch, Executor, Float32

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4
"""Largest relative error of float32 logits."""

AS_GOOD = 1.25
"""bfloat16 may be so many times as far from the float32 oracle as transformers' own bfloat16 run is."""

SERVED = [c.name for c in CASES]
UNFUSED = {c.config["model_type"]: c.name for c in reversed(CASES)}.values()
"""The first case of each model type, which is served without rules too."""

Write = Callable[[str, str], Path]


def recipes(names: list[str], dtype: str, variant: str = "") -> list[Recipe]:
    both = [(name, fuse) for name in names for fuse in (True, False) if fuse or name in UNFUSED]
    return [Recipe(name, dtype, fuse, variant) for name, fuse in both]


def logits_of(folder: Path, bundle: Bundle, tokens: np.ndarray) -> Float32:
    """What `LLM.logits` gives on the GPU for a whole sequence, which is one step of the variant prefill."""
    with LLM(folder, device="cuda", bundle=bundle, max_pages_total=PAGES) as llm:
        return llm.logits(tokens.tolist())


def check_greedy_tokens(logits: Float32, positions: np.ndarray, answer: Answer) -> None:
    """The most likely tokens are the oracle's wherever its lead over the second is more than the error can undo."""
    largest = np.abs(logits[positions] - answer.logits).max()
    clear = answer.margin > 2 * largest
    assert clear.mean() > 0.1, "too few positions are clear to say anything"
    assert np.array_equal(logits.argmax(axis=-1)[clear], answer.argmax[clear])


@pytest.mark.parametrize("recipe", grouped(recipes(SERVED, "float32", "prefill")))
def test_float32_logits_are_those_of_transformers(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    golden = load_golden(recipe.model)
    logits = logits_of(checkpoint(recipe.model, "stored"), bundles.get(recipe), golden.token_ids)
    assert logits.shape == (len(golden.token_ids), case(recipe.model).vocab)
    assert relative_error(logits[golden.positions], golden.stored.logits) <= TOLERANCE
    check_greedy_tokens(logits, golden.positions, golden.stored)


@pytest.mark.parametrize("recipe", grouped(recipes(SERVED, "bfloat16", "prefill")))
def test_bfloat16_is_as_near_to_the_oracle_as_transformers_own(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    golden = load_golden(recipe.model)
    logits = logits_of(checkpoint(recipe.model, "bfloat16"), bundles.get(recipe), golden.token_ids)
    error = relative_error(logits[golden.positions], golden.bf16_weights.logits)
    assert error <= AS_GOOD * golden.hf_bf16_error
    check_greedy_tokens(logits, golden.positions, golden.bf16_weights)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("llama31", "float32", True, "prefill"),
        Recipe("all_biases", "float32", False, "prefill"),
        Recipe("dante", "float32", True),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_float32_logits_are_those_of_transformers_run_now(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, tokens = live_model(recipe.model, checkpoint)
    ours = logits_of(folder, bundles.get(recipe), tokens)
    assert relative_error(ours, transformers_logits(folder, tokens, "float32")) <= TOLERANCE


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("stored_bfloat16", "bfloat16", True, "prefill"),
        Recipe("dante", "bfloat16", True),
        Recipe("dante", "bfloat16", False),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_bfloat16_is_as_near_to_transformers_run_now_as_its_own(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, tokens = live_model(recipe.model, checkpoint)
    exact = transformers_logits(folder, tokens, "float32")
    theirs = relative_error(transformers_logits(folder, tokens, "bfloat16"), exact)
    assert relative_error(logits_of(folder, bundles.get(recipe), tokens), exact) <= AS_GOOD * theirs


def live_model(name: str, checkpoint: Write) -> tuple[Path, np.ndarray]:
    """A checkpoint whose weights bfloat16 can hold or that is run in float32, and 300 tokens: two chunks of prompt."""
    if name == "dante":
        return demo_folder(), random_tokens(4094, 300)
    return checkpoint(name, "stored"), random_tokens(case(name).vocab, 300)


# The same positions by other ways: decoding token by token, and ragged steps of every variant.


@contextmanager
def executor_of(recipe: Recipe, bundles: Bundles, checkpoint: Write) -> Iterator[Executor]:
    """A GPU executor with room for a few sequences."""
    stored = "bfloat16" if recipe.dtype == "bfloat16" else "stored"
    opened = Checkpoint.open(checkpoint(recipe.model, stored))
    executor = load_executor(bundles.get(recipe), opened, "cuda", max_pages_total=40)
    try:
        yield executor
    finally:
        executor.close()


def tolerance_of(recipe: Recipe) -> float:
    """Two runs differ by at most what each may differ from the oracle, together."""
    return 2 * (
        AS_GOOD * load_golden(recipe.model).hf_bf16_error if recipe.dtype == "bfloat16" else TOLERANCE / 2
    )


WAYS = [
    *recipes(["llama31", "fourteen_to_two", "head_80"], "float32"),
    *recipes(["llama31", "head_128_tied"], "bfloat16"),
]


@pytest.mark.parametrize("recipe", WAYS, ids=str)
def test_decoding_token_by_token_gives_the_logits_of_the_prompt(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    tokens = load_golden(recipe.model).token_ids
    with executor_of(recipe, bundles, checkpoint) as executor:
        whole = prompt_logits(executor, tokens.astype(np.int32), (9, 2, 30, 5))
        pages = (11, 3, 8, 21)
        decoded = [executor.logits(ragged([(tokens, p, p + 1, pages)])) for p in range(len(tokens))]
    assert relative_error(np.concatenate(decoded), whole) <= tolerance_of(recipe)


SCHEDULE = (
    (0, 200, 30, 9, 1),
    (70, 1, 0, 1, 1),
    (20, 1, 7, 4, 1),
    (3, 1, 2, 1, 1),
    *[(1, 1, 1, 1, 1)] * 6,
    (1, 0, 1, 0, 0),
    (0, 1, 0, 1, 2),
)
"""New tokens of five sequences, step by step: prompts beside decodes, then decodes; every variant but t1."""


@pytest.mark.parametrize("recipe", WAYS, ids=str)
def test_ragged_steps_of_five_sequences_give_each_the_logits_of_its_own_prompt(
    recipe: Recipe, bundles: Bundles, checkpoint: Write
) -> None:
    lengths = np.sum(SCHEDULE, axis=0)
    tokens = random_tokens(case(recipe.model).vocab, 5 * 260).reshape(5, 260)
    pages = np.random.default_rng(0).permutation(25).reshape(5, 5)
    found: list[list[Float32]] = [[] for _ in lengths]
    with executor_of(recipe, bundles, checkpoint) as executor:
        ends = np.zeros(5, int)
        for new in SCHEDULE:
            taking_part = [s for s in range(5) if new[s]]
            chunks = [(tokens[s], int(ends[s]), int(ends[s]) + new[s], tuple(pages[s])) for s in taking_part]
            logits = executor.logits(ragged(chunks))
            ends += new
            borders = np.cumsum([0, *(new[s] for s in taking_part)])
            for s, (begin, end) in zip(taking_part, pairwise(borders), strict=True):
                found[s].append(logits[begin:end])
        alone = [
            prompt_logits(executor, tokens[s, :length].astype(np.int32), tuple(range(30, 35)))
            for s, length in enumerate(lengths)
        ]
    for s, wanted in enumerate(alone):
        error = relative_error(np.concatenate(found[s]), wanted)
        assert error <= tolerance_of(recipe), f"sequence {s}"


def ragged(chunks: list[tuple[np.ndarray, int, int, tuple[int, ...]]]) -> Batch:
    """A step of tokens `start` … `end` − 1 of each sequence, given with its pages; logits are wanted of every token."""
    lengths = [end - start for _, start, end, _ in chunks]
    arrays = (
        np.concatenate([tokens[start:end] for tokens, start, end, _ in chunks]),
        np.concatenate([np.arange(start, end) for _, start, end, _ in chunks]),
        np.repeat(np.arange(len(chunks)), lengths),
        np.cumsum([0, *lengths]),
        page_table([pages for *_, pages in chunks]),
        np.arange(sum(lengths)),
    )
    return Batch(*(np.ascontiguousarray(array, np.int32) for array in arrays))
