"""Logits against transformers, in NumPy: every oracle case, fused and not, whole prompts and small steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Tiny
from oracle.configs import CASES
from oracle.golden import Answer, load_golden, relative_error
from oracle.weights import digest, random_weights

from infernum import LLM

TOLERANCE = 1e-5
"""Largest relative error of float32 logits against transformers' float32 logits."""

SERVED = [case.name for case in CASES]
HOW = {
    "fused": (True, 4096),
    "unfused": (False, 4096),
    "fused-small-steps": (True, 8),
    "unfused-small-steps": (False, 8),
}
"""With steps of at most 8 tokens, the rules for few tokens (GEMV prologues and epilogues) apply."""


def logits_of(tiny: Tiny, tokens: np.ndarray, *, fuse: bool, dtype: str, max_batch_tokens: int) -> np.ndarray:
    bundle = tiny.bundle(fuse=fuse, dtype=dtype, max_batch_tokens=max_batch_tokens)
    with LLM(tiny.folder, device="cpu", dtype=dtype, bundle=bundle) as llm:
        return llm.logits(tokens.tolist())


def check_greedy_tokens(logits: np.ndarray, positions: np.ndarray, answer: Answer) -> None:
    """The most likely tokens are the oracle's wherever its lead over the second is more than the error can undo."""
    largest = np.abs(logits[positions] - answer.logits).max()
    clear = answer.margin > 2 * largest
    assert clear.mean() > 0.5
    assert np.array_equal(logits.argmax(axis=-1)[clear], answer.argmax[clear])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", SERVED)
def test_float32_logits_are_those_of_transformers(name: str, how: str, tiny: Callable[[str], Tiny]) -> None:
    golden = load_golden(name)
    fuse, most = HOW[how]
    logits = logits_of(tiny(name), golden.token_ids, fuse=fuse, dtype="float32", max_batch_tokens=most)
    assert logits.shape == (len(golden.token_ids), tiny(name).case.vocab)
    assert logits.dtype == np.float32
    assert relative_error(logits[golden.positions], golden.stored.logits) <= TOLERANCE
    check_greedy_tokens(logits, golden.positions, golden.stored)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", SERVED)
def test_bfloat16_is_not_much_further_from_the_oracle_than_transformers_own(
    name: str, fuse: bool, tiny: Callable[[str], Tiny]
) -> None:
    golden = load_golden(name)
    logits = logits_of(tiny(name), golden.token_ids, fuse=fuse, dtype="bfloat16", max_batch_tokens=4096)
    error = relative_error(logits[golden.positions], golden.bf16_weights.logits)
    assert error <= 1.25 * golden.hf_bf16_error


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_random_weights_are_those_that_the_goldens_were_made_with(name: str) -> None:
    config = next(case.config for case in CASES if case.name == name)
    assert digest(random_weights(config)) == load_golden(name).weights_sha256


@pytest.mark.parametrize("name", SERVED)
def test_transformers_itself_says_the_same(name: str, tiny: Callable[[str], Tiny]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from oracle.live import transformers_logits

    tokens = load_golden(name).token_ids[:130]
    logits = logits_of(tiny(name), tokens, fuse=True, dtype="float32", max_batch_tokens=4096)
    assert relative_error(logits, transformers_logits(tiny(name).folder, tokens)) <= TOLERANCE
