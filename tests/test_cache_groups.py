"""Cache groups: layers with a window have pages of their own, and need none behind the window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from oracle.checkpoints import write_checkpoint
from oracle.configs import case
from oracle.weights import random_weights

from infernum.bundle import Bundle
from infernum.cache_groups import first_page, group_windows, most_pages, stage_windows
from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor, HostTokens
from infernum.engine.engine import Engine
from infernum.graph_bundle import trace_model
from infernum.models.presets import resolve
from infernum.runtime.kv_cache import plan_cache, sequence_bytes
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import Batch

PAGE = 64
PROMPT, LENGTH = 300, 420

Opened = tuple[int, Bundle, Checkpoint]
"""The window of a model, its bundle and its weights."""


@pytest.fixture(scope="module", params=[24, 64, 100])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A Gemma 3 of four layers, every other one with a window of so many tokens."""
    config = case("gemma3_text").config | {"sliding_window": request.param}
    folder = tmp_path_factory.mktemp("gemma")
    write_checkpoint(folder / "model", config, random_weights(config))
    bundle = trace_model(resolve(str(folder / "model")), folder / "bundle", dtype="float32")
    return request.param, bundle, Checkpoint.open(folder / "model")


def test_the_groups_of_a_model_are_its_windows_the_whole_context_first(opened: Opened) -> None:
    window, bundle, _ = opened
    windows = stage_windows(bundle.manifest, 512)
    assert list(windows.values()) == [window, 0, window, 0]
    assert group_windows(windows) == (0, window)


def test_a_window_that_no_sequence_fills_is_none(opened: Opened) -> None:
    window, bundle, _ = opened
    assert group_windows(stage_windows(bundle.manifest, window)) == (0,)
    assert group_windows(stage_windows(bundle.manifest, window + 1)) == (0, window)


def test_a_sequence_needs_memory_for_what_its_layers_read(opened: Opened) -> None:
    window, bundle, _ = opened
    page = sum(plan_cache(bundle.manifest).page_bytes.values()) // 2  # of the layers of a group
    assert sequence_bytes(bundle.manifest, 512) == (8 + {24: 2, 64: 2, 100: 3}[window]) * page


def chunks(cut: int) -> Iterator[tuple[int, int]]:
    """First and last position, exclusive, of the steps of a sequence: chunks of a prompt, then single tokens."""
    for start in range(0, PROMPT, cut):
        yield start, min(start + cut, PROMPT)
    for position in range(PROMPT, LENGTH):
        yield position, position + 1


def run(
    opened: Opened, cut: int, windowed: Callable[[int, int, CpuExecutor], np.ndarray | None]
) -> list[np.ndarray]:
    """The logits of each step of a sequence, whose page table for the windowed group `windowed` gives."""
    _, bundle, checkpoint = opened
    tokens = np.random.default_rng(5).integers(0, bundle.manifest.model.vocab_size, LENGTH, np.int32)
    rows: list[np.ndarray] = []
    with CpuExecutor.open(bundle, checkpoint) as executor:
        for start, end in chunks(cut):
            length = end - start
            batch = Batch(
                token_ids=tokens[start:end],
                positions=np.arange(start, end, dtype=np.int32),
                sequence=np.zeros(length, np.int32),
                query_start=np.array([0, length], np.int32),
                page_table=np.arange(-(-LENGTH // PAGE), dtype=np.int32)[None],
                output_rows=np.array([length - 1], np.int32),
                windowed=windowed(start, end, executor),
            )
            rows.append(executor.logits(batch))
    return rows


@pytest.mark.parametrize("cut", [1, 63, 64, 130])
def test_a_step_reads_no_page_behind_its_window_and_few_pages_serve_a_sequence_in_turn(
    opened: Opened, cut: int
) -> None:
    window, bundle, _ = opened
    count = most_pages(window, LENGTH, cut, PAGE)

    def in_turn(start: int, end: int, executor: CpuExecutor) -> np.ndarray:
        columns = np.arange(-(-LENGTH // PAGE))
        table = (columns % count).astype(np.int32)
        table[: first_page(start, window, PAGE)] = -1
        table[-(-end // PAGE) :] = -1
        unread = np.setdiff1d(np.arange(100), table[table >= 0])
        for stage, own in stage_windows(bundle.manifest, 512).items():
            if own:
                executor._caches[0][stage][unread] = np.nan  # pyright: ignore[reportPrivateUsage]
        return table[None, None]

    whole = run(opened, cut, lambda start, end, executor: None)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(run(opened, cut, in_turn), whole)


def test_a_group_that_lacks_a_page_within_the_window_computes_something_else(opened: Opened) -> None:
    window, _, _ = opened

    def one_missing(start: int, end: int, executor: CpuExecutor) -> np.ndarray:
        table = np.arange(-(-LENGTH // PAGE), dtype=np.int32)
        table[: first_page(start, window, PAGE) + 1] = -1
        table[start // PAGE] = start // PAGE
        return table[None, None]

    whole = run(opened, 130, lambda start, end, executor: None)
    with np.errstate(invalid="ignore"):
        differ = [
            not np.array_equal(*pair) for pair in zip(whole, run(opened, 130, one_missing), strict=True)
        ]
    assert any(differ[-100:])


def engine_of(
    source: str, out: Path, *, cut: int, pages: int, windowed: int | None
) -> tuple[Engine, CpuExecutor]:
    """An engine whose layers with a window have `windowed` pages; None: they have all pages of a sequence."""
    bundle = trace_model(resolve(source), out, dtype="float32", max_batch_tokens=cut)
    executor = CpuExecutor.open(bundle, Checkpoint.open(Path(source)), max_pages_total=pages)
    if windowed is not None:
        for window in executor.windowed_pages:
            executor._pages[window] = windowed  # pyright: ignore[reportPrivateUsage]
    engine = Engine(executor, bundle.manifest.model, max_model_len=400)
    return engine, executor


def poison_free_pages(engine: Engine, executor: CpuExecutor) -> None:
    """Before each step, fill with NaN all pages of layers with a window that no sequence owns."""
    windows = stage_windows(executor._bundle.manifest, 512)  # pyright: ignore[reportPrivateUsage]

    def poisoned(step: Callable[..., HostTokens]) -> Callable[..., HostTokens]:
        def run(*arguments: object) -> HostTokens:
            for group in engine._scheduler.slots.windowed:  # pyright: ignore[reportPrivateUsage]
                for stage in (stage for stage, own in windows.items() if own == group.window):
                    executor._caches[0][stage][group.pool._empty] = np.nan  # pyright: ignore[reportPrivateUsage]
            return step(*arguments)

        return run

    vars(executor).update(run=poisoned(executor.run), advance=poisoned(executor.advance))


@pytest.mark.parametrize("name", ["gemma3_text", "mistral_window"])
def test_no_token_depends_on_pages_behind_a_window(tmp_path: Path, name: str) -> None:
    config = case(name).config | {"sliding_window": 100}
    model = write_checkpoint(tmp_path / "model", config, random_weights(config))
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 130, int(length)).tolist() for length in rng.integers(1, 230, 12)]
    params = [SamplingParams(max_tokens=90, temperature=0.9, seed=7, ignore_eos=True)] * len(prompts)
    ample, _ = engine_of(str(model), tmp_path / "ample", cut=512, pages=90, windowed=None)
    scarce, executor = engine_of(str(model), tmp_path / "scarce", cut=70, pages=40, windowed=9)
    poison_free_pages(scarce, executor)
    together = scarce.generate(prompts, params)
    scheduler = scarce._scheduler  # pyright: ignore[reportPrivateUsage]
    assert scheduler.preempted > 0, "pages were scarce"
    assert all(group.pool.free_pages == group.pool.num_pages == 9 for group in scheduler.slots.windowed)
    for index, (prompt, completion) in enumerate(zip(prompts, together, strict=True)):
        number = ample.add(prompt, params[index])
        ample._loop.sequences[number].seed = derived_seed(7, index)  # pyright: ignore[reportPrivateUsage]
        tokens: list[int] = []
        while ample.busy:
            tokens += [token for event in ample.step() for token in event.tokens]
        assert tuple(tokens) == completion.tokens
    np.testing.assert_array_equal(scarce.logits(prompts[-1] * 2), ample.logits(prompts[-1] * 2))
    ample.close()
    scarce.close()
