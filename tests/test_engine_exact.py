"""The demo in NumPy: a sequence has the same tokens alone, preempted, cut into chunks, cached, or in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_exact_soak import ROUND, VOCAB, open_engine, unequal

from infernum.engine.engine import Engine
from infernum.ops import sampling
from infernum.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """An engine with room for everything, and one whose steps are short and whose pages are few."""
    folder: Path = tmp_path_factory.mktemp("exact")
    ample = open_engine(folder / "ample", max_batch_tokens=512, pages=400)
    scarce = open_engine(folder / "scarce", max_batch_tokens=40, pages=8)
    yield ample, scarce
    ample.close()
    scarce.close()


def test_no_token_depends_on_what_else_the_engine_does(engines: tuple[Engine, Engine]) -> None:
    ample, scarce = engines
    assert unequal(ample, scarce, seed=2, count=ROUND) == []
    assert scarce._scheduler.preempted > 0, "pages were scarce"
    assert scarce._scheduler.cached_tokens > 0, "beginnings were shared"


def test_logprobs_of_a_prompt_have_the_bits_of_its_logits_whatever_the_chunks(
    engines: tuple[Engine, Engine],
) -> None:
    ample, scarce = engines
    prompt = np.random.default_rng(5).integers(0, VOCAB, 90).astype(np.int32)
    following = prompt[1:]
    expected = sampling.logprobs.meaning(ample.logits(prompt)[:-1], following, np.full(89, -1, np.int32))
    params = SamplingParams(max_tokens=0, prompt_logprobs=20)
    for engine in engines:
        (completion,) = engine.generate([prompt], params)
        scored = completion.prompt_logprobs
        assert scored is not None and completion.tokens == ()
        assert scored.tokens.tolist() == expected[0].tolist()
        assert scored.values.tobytes() == expected[1].tobytes()
    assert scarce.executor.max_batch_tokens < len(prompt)
