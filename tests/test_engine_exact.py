"""The demo in NumPy: a sequence has the same tokens alone, preempted, cut into chunks, cached, or in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.engine.engine import Engine
from infernum.graph_bundle import trace_model
from infernum.models.presets import resolve
from infernum.resources import demo_folder
from infernum.sampling_params import SamplingParams, derived_seed

SEQUENCES = 50
TOKENS = 12


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """An engine with room for everything, and one whose steps are short and whose pages are few."""
    folder, source = tmp_path_factory.mktemp("exact"), resolve("dante")
    made: dict[str, Engine] = {}
    for name, tokens, pages in (("ample", 512, 400), ("scarce", 40, 9)):
        bundle = trace_model(source, Path(folder) / name, dtype="float32", max_batch_tokens=tokens)
        executor = CpuExecutor.open(bundle, Checkpoint.open(demo_folder()), max_pages_total=pages)
        made[name] = Engine(executor, bundle.manifest.model, max_model_len=300)
    yield made
    for engine in made.values():
        engine.close()


def test_no_token_depends_on_what_else_the_engine_does(engines: dict[str, Engine]) -> None:
    rng = np.random.default_rng(2)
    common = rng.integers(0, 4000, 130).tolist()
    prompts = [
        [*common[: int(rng.integers(0, 131))], *rng.integers(0, 4000, int(rng.integers(1, 60))).tolist()]
        for _ in range(SEQUENCES)
    ]
    params = [SamplingParams(max_tokens=TOKENS, temperature=0.9, seed=7, ignore_eos=True)] * SEQUENCES
    alone: list[tuple[int, ...]] = []
    for index, prompt in enumerate(prompts):
        engine = engines["ample"]
        number = engine.add(prompt, params[index])
        engine._sequences[number].seed = derived_seed(7, index)  # pyright: ignore[reportPrivateUsage]
        tokens: list[int] = []
        while engine.busy:
            tokens += [token for event in engine.step() for token in event.tokens]
        alone.append(tuple(tokens))
    together = engines["scarce"].generate(prompts, params)
    assert [each.tokens for each in together] == alone
    scheduler = engines["scarce"]._scheduler  # pyright: ignore[reportPrivateUsage]
    assert scheduler.preempted > 0, "pages were scarce"
