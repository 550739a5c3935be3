"""A deterministic bundle on a GPU: a sequence has the same bits alone and among others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engine_exact_soak import Output, Request, output_of, random_requests

from infernum.engine.engine import Engine
from infernum.llm import LLM

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

SEQUENCES = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with LLM("dante", "cuda", "bfloat16", deterministic=True, max_model_len=300, max_pages_total=400) as llm:
        yield llm._engine


def outputs(engine: Engine, requests: list[Request], salt: str) -> list[Output]:
    """The output of each request, all of them in the engine at once. No two share pages."""
    numbers = {
        engine.add(request.prompt, request.params, salt=f"{salt} {place}"): place
        for place, request in enumerate(requests)
    }
    found: list[Output] = [[] for _ in requests]
    while engine.busy:
        for event in engine.step():
            found[numbers[event.sequence]] += output_of(event)
    return found


def test_a_sequence_has_the_same_bits_alone_and_among_others(engine: Engine) -> None:
    requests = random_requests(np.random.default_rng(11), SEQUENCES)
    together = outputs(engine, requests, "together")
    alone = [outputs(engine, [request], f"alone {place}")[0] for place, request in enumerate(requests)]
    assert all(together)
    assert [place for place in range(SEQUENCES) if together[place] != alone[place]] == []
