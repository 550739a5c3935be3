"""The demo in NumPy: a sequence has the same tokens alone, preempted, cut into chunks, cached, or in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_exact_soak import ROUND, open_engine, unequal

from infernum.engine.engine import Engine


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
