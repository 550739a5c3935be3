"""In float32 NumPy, nothing else in a step changes a bit of a sequence's logits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import row_invariance_soak as soak
from conftest import Tiny
from row_invariance_soak import open_model, tokens_of, unequal_in_a_random_batch
from test_attention_ops import Ragged
from toy_bundle import step

import infernum
from infernum.cpu.executor import CpuExecutor
from infernum.ops import attention, gelu_tanh, linear, rms_norm, rope, silu, softcap
from infernum.rope import Rope
from infernum.step import Float32

BLAS_KERNELS = {
    "Nehalem": set[str](),
    "Haswell": {"AVX2", "X86_V3"},
    "Zen": {"AVX2", "X86_V3"},
    "SkylakeX": {"AVX512_SKX", "X86_V4"},
}
"""Kernels that OpenBLAS can be made to use, and the names in NumPy of the instructions that they need."""


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuExecutor]:
    """The demo model."""
    with open_model("dante", tmp_path_factory.mktemp("graphs") / "dante") as opened:
        yield opened


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Tiny]) -> Iterator[CpuExecutor]:
    """A model with a window of 24 positions."""
    folder = tiny("mistral_slides").folder
    with open_model(str(folder), tmp_path_factory.mktemp("graphs") / "slides") as opened:
        yield opened


def logits_everywhere(executor: CpuExecutor, tokens: list[int], pages: list[int]) -> Float32:
    """The logits after each token, from a step of all of them, [tokens, vocab]."""
    batch = step([tokens], [len(tokens)], [pages])
    return executor.logits(replace(batch, output_rows=np.arange(len(tokens), dtype=np.int32)))


@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_gives_the_same_bits_alone_and_in_any_batch(executor: CpuExecutor, seed: int) -> None:
    assert unequal_in_a_random_batch(executor, seed) == []


def test_twenty_sequences_decode_to_the_bits_that_each_gives_alone(executor: CpuExecutor) -> None:
    sequences = [tokens_of(7 * s + 2, seed=s) for s in range(20)]
    pages = [[3 * s, 3 * s + 1, 3 * s + 2] for s in range(20)]
    executor.logits(step([s[:-1] for s in sequences], [len(s) - 1 for s in sequences], pages))
    together = executor.logits(step(sequences, [1] * 20, pages))
    alone = [executor.logits(step([s], [len(s)], [[61, 62, 63]]))[0] for s in sequences]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize("model", ["executor", "windowed"])
def test_a_prompt_cut_anywhere_gives_the_same_bits(model: str, request: pytest.FixtureRequest) -> None:
    executor: CpuExecutor = request.getfixturevalue(model)
    tokens, pages = tokens_of(131, seed=1), [5, 0, 3]
    whole = logits_everywhere(executor, tokens, pages)
    for cut in (*range(1, 131, 9), 63, 64, 65, 127, 128, 130):
        first = executor.logits(step([tokens[:cut]], [cut], [pages]))
        assert np.array_equal(first[0], whole[cut - 1])
        rest = executor.logits(step([tokens], [131 - cut], [pages]))
        assert np.array_equal(rest[0], whole[130])


@pytest.mark.parametrize("model", ["executor", "windowed"])
def test_decoding_token_by_token_gives_the_bits_of_the_prompt(
    model: str, request: pytest.FixtureRequest
) -> None:
    executor: CpuExecutor = request.getfixturevalue(model)
    tokens = tokens_of(70, seed=2)
    whole = logits_everywhere(executor, tokens, [1, 0])
    for end in range(1, 71):
        decoded = executor.logits(step([tokens[:end]], [1], [[2, 3]]))
        assert np.array_equal(decoded[0], whole[end - 1])


def test_a_sequence_behind_pages_of_another_gives_the_same_bits(executor: CpuExecutor) -> None:
    shared, own = tokens_of(64, seed=3), tokens_of(20, seed=4)
    executor.logits(step([shared + tokens_of(90, seed=5), [1]], [154, 1], [[7, 2, 9], [4, -1, -1]]))
    behind = executor.logits(step([shared + own], [20], [[7, 1]]))
    assert np.array_equal(behind, executor.logits(step([shared + own], [84], [[11, 10]])))


@pytest.mark.parametrize(("k", "n"), [(64, 48), (256, 4096), (300, 77), (1, 5), (700, 1), (1 << 20, 3)])
def test_a_row_of_a_product_is_the_same_in_any_number_of_rows(k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    x = rng.standard_normal((33, k), dtype=np.float32)
    weight = rng.standard_normal((n, k), dtype=np.float32)
    whole = linear.meaning(x, weight)
    np.testing.assert_allclose(whole, x.astype(np.float64) @ weight.astype(np.float64).T, atol=2e-6 * k)
    for begin, end in ((0, 1), (32, 33), (5, 7), (1, 9), (3, 20), (0, 32)):
        assert np.array_equal(linear.meaning(x[begin:end].copy(), weight), whole[begin:end])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (4, 2, 64), (7, 1, 80), (8, 8, 128)])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (1, 0.0), (24, 5.0), (64, 0.0), (100, 0.0)])
def test_a_token_attends_to_the_same_bits_in_any_chunk(
    heads: int, kv_heads: int, dim: int, window: int, softcap: float
) -> None:
    batch = Ragged([0, 63, 600, 0], [130, 2, 40, 1], heads, kv_heads, dim)
    whole = batch.attend(0.3, window=window, softcap=softcap)
    rng = np.random.default_rng(dim)
    for s, (begin, end) in enumerate(zip(batch.query_start[:-1], batch.query_start[1:], strict=True)):
        cuts = {begin, end, *rng.integers(begin, end, 6), *range(int(begin), int(end), 16)}
        edges = sorted(int(cut) for cut in cuts)
        for rows in map(slice, edges, edges[1:]):
            starts = np.array([0, rows.stop - rows.start], np.int32)
            facts = batch.positions[rows], np.zeros_like(batch.positions[rows]), starts
            part = attention.meaning(
                *(batch.q[rows], batch.kv, *facts, batch.page_table[s : s + 1]),
                scale=0.3,
                window=window,
                softcap=softcap,
            )
            assert np.array_equal(part, whole[rows])


@pytest.mark.parametrize("width", [1, 2, 7, 64, 100, 2048, 20000])
def test_a_row_of_a_norm_or_of_an_activation_is_the_same_in_any_number_of_rows(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((21, width), dtype=np.float32)
    gain = rng.standard_normal(width, dtype=np.float32)
    positions = rng.integers(0, 131072, 21, dtype=np.int32)
    settings = Rope(theta=1e4)

    def turned(rows: slice) -> np.ndarray:
        heads = np.repeat(x[rows, None, : width // 2 * 2], 3, axis=1)
        return rope.meaning(heads, positions[rows], rope=settings)

    functions: list[Callable[[slice], np.ndarray]] = [
        lambda rows: rms_norm.meaning(x[rows], gain, eps=1e-5),
        lambda rows: silu.meaning(x[rows]),
        lambda rows: gelu_tanh.meaning(x[rows]),
        lambda rows: softcap.meaning(x[rows], cap=2.0),
        *([turned] if width > 1 else []),
    ]
    for function in functions:
        whole = function(slice(0, 21))
        for rows in (slice(0, 1), slice(20, 21), slice(3, 5), slice(2, 19)):
            assert np.array_equal(function(rows), whole[rows])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", BLAS_KERNELS)
def test_the_bits_are_the_same_with_each_kind_of_blas_kernels(kernels: str, threads: int) -> None:
    needed = BLAS_KERNELS[kernels]
    instructions = np.show_config(mode="dicts")["SIMD Extensions"]
    if needed and not needed & {*instructions["baseline"], *instructions["found"]}:
        pytest.skip(f"this processor lacks {' or '.join(sorted(needed))}")
    chosen = {"OPENBLAS_CORETYPE": kernels, "OPENBLAS_NUM_THREADS": str(threads)}
    environment = {**os.environ, **chosen, "PYTHONPATH": str(Path(infernum.__file__).parents[1])}
    command = [sys.executable, soak.__file__, "1"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.stdout == "0 of 1 batches differ\n", done.stderr
