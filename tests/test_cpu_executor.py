"""The NumPy executor: its cache, its batches, and that it goes on by itself as a GPU does."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from safetensors.numpy import save_file
from toy_bundle import greedy, sampling, step

from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.cpu.routine import Routine
from infernum.dtypes import relative_error, round_to
from infernum.errors import BundleError, DeviceError, RequestError
from infernum.ir.graph import Input
from infernum.ir.interpret import interpret
from infernum.ir.text import parse_graph
from infernum.llm import LLM
from infernum.sampling_params import SamplingParams
from infernum.step import Sampling, TableRow

NAME = "seven_to_one"
SAME = 1e-6
"""Relative error between two orders of float32 sums."""


@pytest.fixture(scope="module")
def bundle(tiny: Callable[[str], Tiny]) -> Bundle:
    return tiny(NAME).bundle()


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[[str], Tiny]) -> Checkpoint:
    return Checkpoint.open(tiny(NAME).folder)


@pytest.fixture
def executor(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[CpuExecutor]:
    with CpuExecutor.open(bundle, checkpoint) as opened:
        yield opened


def tokens_of(bundle: Bundle, count: int, seed: int = 0) -> list[int]:
    vocab = bundle.manifest.model.vocab_size
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def penalised(rows: int, vocab: int, seed: int) -> Sampling:
    plain = sampling(rows, temperature=0.8, seed=seed, counts=np.zeros(vocab, np.int32))
    changed = {
        "repetition_penalty": np.full(rows, 1.3, np.float32),
        "frequency_penalty": np.full(rows, 1.5, np.float32),
        "top_k": np.full(rows, 20, np.int32),
    }
    return replace(plain, parameters={**plain.parameters, **changed})


def test_a_prompt_in_chunks_gives_what_it_gives_at_once(executor: CpuExecutor, bundle: Bundle) -> None:
    tokens, pages = tokens_of(bundle, 150), [[3, 0, 7]]
    whole = executor.logits(step([tokens], [150], pages))
    for end, new in ((64, 64), (65, 1), (149, 84), (150, 1)):
        chunked = executor.logits(step([tokens[:end]], [new], pages))
    assert relative_error(chunked, whole) < SAME


def test_a_ragged_batch_gives_what_its_sequences_give_alone(executor: CpuExecutor, bundle: Bundle) -> None:
    lengths = (130, 1, 64, 65)
    sequences = [tokens_of(bundle, length, seed=length) for length in lengths]
    pages = [[9, 2, 4], [1, -1, -1], [5, -1, -1], [8, 0, -1]]
    together = executor.logits(step(sequences, list(lengths), pages))
    alone = [executor.logits(step([s], [len(s)], [[11, 10, 12]]))[0] for s in sequences]
    assert relative_error(together, np.stack(alone)) < SAME


def test_decoding_sequences_together_gives_what_each_gives_alone(
    executor: CpuExecutor, bundle: Bundle
) -> None:
    sequences = [tokens_of(bundle, length, seed=length) for length in (5, 70, 63)]
    pages = [[4, 6], [1, 3], [2, 0]]
    executor.logits(step([s[:-1] for s in sequences], [len(s) - 1 for s in sequences], pages))
    together = executor.logits(step(sequences, [1, 1, 1], pages))
    alone = [executor.logits(step([s], [len(s)], [[11, 10]]))[0] for s in sequences]
    assert relative_error(together, np.stack(alone)) < SAME


def test_the_cache_keeps_one_sequence_from_another(executor: CpuExecutor, bundle: Bundle) -> None:
    first, other = tokens_of(bundle, 80), tokens_of(bundle, 100, seed=1)
    before = executor.logits(step([first], [80], [[2, 5]]))
    executor.logits(step([other], [100], [[3, 4]]))
    again = executor.logits(step([first], [1], [[2, 5]]))
    assert relative_error(again, before) < SAME


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_advancing_gives_what_running_each_step_gives(
    executor: CpuExecutor, bundle: Bundle, kind: str
) -> None:
    vocab = bundle.manifest.model.vocab_size

    def chosen() -> Sampling:
        return greedy(2) if kind == "greedy" else penalised(2, vocab, seed=5)

    prompts = [tokens_of(bundle, 62), tokens_of(bundle, 9, seed=1)]
    pages = [[4, 6], [1, 3]]

    def prefill() -> None:
        executor.logits(step([p[:-1] for p in prompts], [61, 8], pages))

    prefill()
    advanced = [executor.run(step(prompts, [1, 1], pages), chosen()).tokens()]
    advanced += [executor.advance().tokens() for _ in range(5)]
    prefill()
    grown = [list(p) for p in prompts]
    parameters = chosen()
    for expected in advanced:
        found = executor.run(step(grown, [1, 1], pages), parameters).tokens()
        assert np.array_equal(found, expected)
        for tokens, token in zip(grown, found.tolist(), strict=True):
            tokens.append(token)
        for write, token in zip(parameters.writes, found.tolist(), strict=False):
            write.values[token] += 2


def test_a_step_leaves_the_callers_arrays_as_they_were(executor: CpuExecutor, bundle: Bundle) -> None:
    batch = step([tokens_of(bundle, 3)], [1], [[0]])
    parameters = penalised(1, bundle.manifest.model.vocab_size, seed=1)
    kept = (batch.token_ids.copy(), batch.positions.copy())
    executor.run(batch, parameters)
    executor.advance()
    assert np.array_equal(batch.token_ids, kept[0])
    assert np.array_equal(batch.positions, kept[1])
    assert not any(write.values.any() for write in parameters.writes)


def test_a_mask_may_be_made_while_the_model_runs(executor: CpuExecutor, bundle: Bundle) -> None:
    words = np.zeros(-(-bundle.manifest.model.vocab_size // 32), np.int32)
    words[1] = 1 << 5
    masked = replace(greedy(1), table_rows={"allowed_row": np.array([2], np.int32)})
    chosen = replace(masked, late=lambda: [TableRow("allowed", 2, words)])
    assert executor.run(step([tokens_of(bundle, 3)], [1], [[0]]), chosen).tokens().tolist() == [37]


def test_advancing_past_the_last_page_is_refused(executor: CpuExecutor, bundle: Bundle) -> None:
    tokens = tokens_of(bundle, 63)
    executor.run(step([tokens], [1], [[0]]), greedy(1))
    executor.advance()
    with pytest.raises(AssertionError, match="a page for each new position"):
        executor.advance()


def test_advancing_after_a_step_that_failed_is_refused(
    executor: CpuExecutor, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    executor.run(step([tokens_of(bundle, 3)], [1], [[0]]), greedy(1))
    with monkeypatch.context() as patch:
        patch.setattr(Routine, "run_ranks", fails)
        with pytest.raises(MemoryError):
            executor.advance()
    with pytest.raises(AssertionError, match="follows a run"):
        executor.advance()


def test_an_executor_that_is_dropped_is_gone_at_once(bundle: Bundle, checkpoint: Checkpoint) -> None:
    gc.disable()
    try:
        executor = CpuExecutor.open(bundle, checkpoint)
        executor.run(step([tokens_of(bundle, 3)], [1], [[0]]), greedy(1)).tokens()
        gone = weakref.ref(executor)
        del executor
        assert gone() is None
    finally:
        gc.enable()


def test_advancing_after_a_prompt_or_logits_is_refused(executor: CpuExecutor, bundle: Bundle) -> None:
    tokens = tokens_of(bundle, 3)
    executor.run(step([tokens], [3], [[0]]), greedy(1))
    with pytest.raises(AssertionError, match="one token and one row"):
        executor.advance()
    executor.logits(step([tokens], [3], [[0]]))
    with pytest.raises(AssertionError, match="follows a run"):
        executor.advance()


def test_fused_and_unfused_graphs_agree(
    bundle: Bundle, checkpoint: Checkpoint, tiny: Callable[[str], Tiny]
) -> None:
    tokens = tokens_of(bundle, 100)
    batch = step([tokens], [100], [[1, 0]])
    with CpuExecutor.open(bundle, checkpoint) as fused:
        found = fused.logits(batch)
    with CpuExecutor.open(tiny(NAME).bundle(fuse=False), checkpoint) as unfused:
        assert relative_error(found, unfused.logits(batch)) < SAME


def test_random_weights_depend_on_the_seed_and_on_nothing_else(
    bundle: Bundle, tiny: Callable[[str], Tiny]
) -> None:
    batch = step([tokens_of(bundle, 20)], [20], [[0]])

    def logits(of: Bundle, seed: int) -> np.ndarray:
        with CpuExecutor.open(of, None, seed=seed) as opened:
            return opened.logits(batch)

    assert np.array_equal(logits(bundle, 1), logits(bundle, 1))
    assert relative_error(logits(bundle, 1), logits(tiny(NAME).bundle(fuse=False), 1)) < SAME
    assert relative_error(logits(bundle, 1), logits(bundle, 2)) > 0.1


def test_a_weight_is_held_once_for_all_variants(tiny: Callable[[str], Tiny], checkpoint: Checkpoint) -> None:
    from infernum.cpu.weights import HostWeights

    manifest = tiny(NAME).bundle().manifest
    weights = HostWeights.load(manifest, checkpoint)
    stage = manifest.program[1]
    arrays = [weights.array(v.weights["o_proj"], stage) for v in manifest.blocks[stage.block].values()]
    assert len(arrays) == len(manifest.variants)
    assert all(np.shares_memory(arrays[0], other) for other in arrays[1:])


@pytest.mark.parametrize("variant", ["t1", "prefill"])
def test_a_routine_gives_what_interpreting_its_graph_gives(bundle: Bundle, variant: str) -> None:
    tokens = 1 if variant == "t1" else 5
    dims = {"tokens": tokens, "seqs": 1, "seqs + 1": 2, "max_pages": 1, "pages": 2, "rows": 1}
    graph = parse_graph(bundle.read(bundle.manifest.blocks["decoder"][variant].graph).decode())
    rng = np.random.default_rng(0)
    facts = {
        "positions": np.arange(tokens),
        "sequence": np.zeros(tokens),
        "query_start": np.array([0, tokens]),
        "page_table": np.array([[1]]),
    }
    inputs: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        assert isinstance(node.op, Input)
        shape = [dim if isinstance(dim, int) else dims[dim] for dim in node.types[0].shape]
        values = facts[node.name] if node.name in facts else rng.normal(size=shape)
        inputs[node.name] = round_to(np.asarray(values), node.types[0].dtype)
    cache = inputs["kv"].copy()
    wanted = interpret(graph, inputs)
    kept = inputs["kv"]
    found = Routine(graph).run(inputs | {"kv": cache})
    assert all(np.array_equal(f, w) for f, w in zip(found, wanted, strict=True))
    assert np.array_equal(cache, kept)


def test_the_cache_holds_what_was_asked_for_and_else_what_fits(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    context, page = bundle.manifest.model.context, bundle.manifest.page_size
    with CpuExecutor.open(bundle, checkpoint) as opened:
        assert opened.num_pages * page >= context
    with CpuExecutor.open(bundle, checkpoint, max_model_len=65, max_pages_total=2) as opened:
        assert opened.num_pages == 2


def test_a_bundle_without_the_sampler_is_refused(bundle: Bundle, checkpoint: Checkpoint) -> None:
    import msgspec

    lacking = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, samplers=["greedy"]))
    with CpuExecutor.open(lacking, checkpoint) as opened:
        batch = step([tokens_of(bundle, 2)], [2], [[0]])
        opened.run(batch, greedy(1))
        with pytest.raises(BundleError, match="'sample'"):
            opened.run(batch, sampling(1, temperature=1.0, seed=0))


def test_weights_that_exceed_the_machines_memory_are_refused_before_they_are_read(
    bundle: Bundle, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 16)
    with pytest.raises(DeviceError, match="memory"):
        CpuExecutor.open(bundle, checkpoint)


def test_a_cache_without_a_page_is_refused(dante_bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="max_pages_total is 0; it must be an integer of at least 1"):
        LLM("dante", device="cpu", bundle=dante_bundle, max_pages_total=0)


def test_a_sequence_ends_where_the_pages_that_were_asked_for_do(dante_bundle: Bundle) -> None:
    with LLM("dante", device="cpu", bundle=dante_bundle, max_pages_total=1) as llm:
        prompt = llm.encode("All hope abandon")[0]
        (found,) = llm.generate([prompt], SamplingParams(max_tokens=200, temperature=0, ignore_eos=True))
    assert len(prompt) + len(found.tokens) == 64
    assert found.finish_reason == "length"


@pytest.mark.parametrize("stored", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("noted", [False, True])
def test_a_tied_table_is_read_under_either_name(
    tiny: Callable[[str], Tiny], tmp_path: Path, stored: str, noted: bool
) -> None:
    tied = tiny("llama32_tied")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    whole = Checkpoint.open(tied.folder)
    tensors = {name: whole.read(name) for name in whole.names}
    tensors[stored] = tensors.pop(embedding)
    note = {head if stored == embedding else embedding: stored} if noted else None
    save_file(tensors, tmp_path / "model.safetensors", metadata=note)
    shutil.copy(tied.folder / "config.json", tmp_path)
    tokens = tokens_of(tied.bundle(), 20)
    with LLM(tied.folder, "cpu", bundle=tied.bundle()) as llm:
        expected = llm.logits(tokens)
    with LLM(tmp_path, "cpu", bundle=tied.bundle()) as llm:
        assert np.array_equal(llm.logits(tokens), expected)
