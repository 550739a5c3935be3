"""The CUDA runtime without a GPU: planning, binding, and whole steps on a GPU made of host memory."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fake_gpu
import ml_dtypes
import msgspec
import numpy as np
import pytest
import toy_bundle as toy
from fake_gpu import FakeGpu, FakeMemory, FakeStream, at

from infernum import dims
from infernum import llm as llm_module
from infernum.bundle import Bundle
from infernum.cache_groups import CacheGroup
from infernum.engine.engine import Engine
from infernum.errors import BundleError, CheckpointError, DeviceError, LogitsError
from infernum.llm import LLM
from infernum.manifest import Manifest, Stage, Weight
from infernum.recipes import Read, Recipe, read
from infernum.runtime import decode_graphs, driver, kv_cache, layout, sampled, weights
from infernum.runtime import device as device_module
from infernum.runtime.device import Device
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.gemm import MatrixProduct
from infernum.runtime.kv_cache import count_pages
from infernum.runtime.loading import LoadOptions
from infernum.runtime.stream import CudaGraph
from infernum.sampling_params import SamplingParams
from infernum.step import TableRow
from infernum.weights.plan import plan_weights


class FakeProducts:
    """Multiplies when the fake stream gets there."""

    def __init__(self, device: FakeGpu, stream: Any) -> None:
        self._stream = stream

    def run(self, product: MatrixProduct, m: int) -> None:
        def multiply() -> None:
            x = at(product.x, np.float32, m, product.x_stride)[:, : product.k]
            out = at(product.out, np.float32, m, product.out_stride)
            out[:, : product.n] = x @ at(product.weight, np.float32, product.n, product.k).T

        self._stream.put(multiply)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1024)


Open = Callable[..., CudaExecutor]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu(toy.KERNELS)


@pytest.fixture
def open_toy(tmp_path: Path, gpu: FakeGpu) -> Open:
    def opened(**changes: Any) -> CudaExecutor:
        pages, length = changes.pop("pages", 16), changes.pop("max_model_len", None)
        options = LoadOptions(max_pages_total=pages, max_model_len=length)
        bundle = changes.pop("bundle", None) or toy.toy_bundle(tmp_path)
        checkpoint = changes.pop("checkpoint", toy.ToyCheckpoint())
        device: Any = changes.pop("gpu", gpu)
        library: Any = FakeProducts
        return CudaExecutor(bundle, checkpoint, device, options, open_library=library, **changes)

    return opened


def decode(executor: CudaExecutor, tokens: list[int], steps: int, pages: list[int]) -> list[int]:
    """Greedy tokens after `tokens`: a run for the prompt, one for a decode, then advances, read one late."""
    first = executor.run(toy.step([tokens], [len(tokens)], [pages]), toy.greedy(1)).tokens()
    found = [int(first[0])]
    pending = executor.run(toy.step([[*tokens, found[0]]], [1], [pages]), toy.greedy(1))
    for _ in range(steps - 2):
        following = executor.advance()
        found.append(int(pending.tokens()[0]))
        pending = following
    return [*found, int(pending.tokens()[0])]


def expected_decode(tokens: list[int], steps: int) -> list[int]:
    sequence = list(tokens)
    for _ in range(steps):
        sequence.append(int(np.argmax(toy.ToyCheckpoint().logits(sequence)[-1])))
    return sequence[len(tokens) :]


def test_a_ragged_step_gives_each_sequence_the_logits_of_its_own_tokens(open_toy: Open) -> None:
    a, b, c = [5, 7, 1, 2, 9, 30], [8], [3, 3, 4]
    pages = [[4, 9], [7, -1], [2, -1]]
    with open_toy() as executor:
        executor.logits(toy.step([a[:3], b[:1]], [3, 1], pages[:2]))  # a prompt in two chunks
        logits = executor.logits(toy.step([a, [*b, 6], c], [3, 1, 3], pages))
    reference = toy.ToyCheckpoint()
    expected = [reference.logits(tokens)[-1] for tokens in (a, [*b, 6], c)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_graphs", [True, False])
def test_advancing_gives_the_tokens_of_a_step_by_step_decode(open_toy: Open, use_graphs: bool) -> None:
    with open_toy(use_graphs=use_graphs) as executor:
        assert decode(executor, [8, 8, 1], 12, [3, 1, 6, 11]) == expected_decode([8, 8, 1], 12)


def test_a_decode_is_launched_eagerly_once_and_replayed_ever_after(open_toy: Open, gpu: FakeGpu) -> None:
    with open_toy() as executor:
        decode(executor, [8, 8, 1], 4, [3, 1])
        launches = gpu.eager_launches
        decode(executor, [9, 2, 2], 6, [4, 5, 7])
    assert gpu.graph_launches == 2 + 5
    assert gpu.eager_launches - launches == launches // 2, "only the second prompt was launched by kernel"


def test_a_context_that_outgrows_what_a_graph_was_made_for_is_launched_anew_and_then_replayed(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dims, "round_pages", lambda pages: pages)
    with open_toy() as executor:
        assert decode(executor, [8, 8, 1], 8, [3, 1, 6]) == expected_decode([8, 8, 1], 8)
    assert toy.PAGE == 4
    assert gpu.graph_launches == 4, "of the 4th to 10th token, all but the first on each page"


@pytest.mark.parametrize("part", ["launch", "instantiate"])
def test_a_decode_that_cannot_be_captured_is_launched_by_kernel_and_not_tried_again(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    attempts: list[int] = []
    launch = FakeStream.launch

    def no_launch(stream: FakeStream, *arguments: Any) -> None:
        if stream.capturing is not None:
            attempts.append(1)
            raise DeviceError("launching a kernel failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        launch(stream, *arguments)

    def no_graph(*_: Any) -> None:
        attempts.append(1)
        raise DeviceError("instantiating a CUDA graph: the GPU is out of memory")

    if part == "launch":
        monkeypatch.setattr(FakeStream, "launch", no_launch)
    else:
        monkeypatch.setattr(fake_gpu, "FakeGraph", no_graph)
    with open_toy() as executor:
        assert decode(executor, [8, 8, 1], 12, [3, 1, 6, 11]) == expected_decode([8, 8, 1], 12)
    assert (len(attempts), gpu.graph_launches) == (1, 0)
    (record,) = caplog.records
    assert "decode of 1 tokens" in record.message and record.levelname == "WARNING"


def test_of_many_decodes_the_graphs_of_those_used_last_are_kept(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "MOST_DECODES", 2)
    pages, prompts = [[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 8], [30, 31], [2, 4], [9, 1]]

    def decode_of(executor: CudaExecutor, seqs: int) -> int:
        """Three steps of a decode; how many of them were replayed."""
        before = gpu.graph_launches
        steps = [executor.run(toy.step(prompts[:seqs], [1] * seqs, pages[:seqs]), toy.greedy(seqs))]
        steps += [executor.advance() for _ in range(2)]
        tokens = np.stack([pending.tokens() for pending in steps], axis=1)
        assert tokens.tolist() == [expected[seq] for seq in range(seqs)]
        return gpu.graph_launches - before

    with open_toy() as executor:
        executor.run(toy.step(prompts, [2] * 4, pages), toy.greedy(4)).tokens()
        expected = [expected_decode(prompt, 3) for prompt in prompts]
        replayed = [decode_of(executor, seqs) for seqs in (2, 3, 2, 4, 2, 3)]
        assert replayed == [2, 2, 3, 2, 3, 2]
        assert len(gpu.graphs) == 2 * sampled.TURNS
    assert gpu.graphs == []


def test_a_graph_that_cannot_be_uploaded_is_destroyed() -> None:
    calls: list[str] = []

    class Api:
        def __getattr__(self, name: str) -> Callable[..., tuple[int, ...]]:
            def call(*_: Any) -> tuple[int, ...]:
                calls.append(name)
                return (2 if name == "cuGraphUpload" else 0, *([7] if name == "cuGraphInstantiate" else []))

            return call

    with pytest.raises(DeviceError, match="uploading a CUDA graph: the GPU is out of memory"):
        CudaGraph(Api(), 1, 2)
    assert calls == ["cuGraphInstantiate", "cuGraphDestroy", "cuGraphUpload", "cuGraphExecDestroy"]


def test_decodes_are_rounded_to_few_sizes() -> None:
    sizes = {n: dims.round_decodes(n) for n in range(1, 1025)}
    assert [sizes[n] for n in range(1, 10)] == [*range(1, 9), 16]
    assert [sizes[n] for n in (33, 64, 65, 129, 257, 513, 1000, 1024)] == [
        40,
        64,
        80,
        160,
        320,
        640,
        1024,
        1024,
    ]
    assert len(set(sizes.values())) == 31
    assert all(n <= size < n + max(8, n / 4) for n, size in sizes.items())


def in_fours(sequences: int) -> int:
    """As `dims.round_decodes`: multiples of 4, the largest number that the toy model computes at once."""
    return -(-sequences // 4) * 4


def prompts_of(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of one or two tokens, and two pages for each."""
    prompts = [[n + 5] if n % 2 else [n + 5, 2 * n + 1] for n in range(count)]
    return prompts, [[n, 15 - n] for n in range(count)]


@pytest.mark.parametrize("use_graphs", [True, False])
def test_a_decode_that_is_padded_gives_the_same_tokens_and_touches_no_other_page(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, use_graphs: bool
) -> None:
    monkeypatch.setattr(dims, "round_decodes", in_fours)
    prompts, pages = prompts_of(8)
    expected = [expected_decode(prompt, 6) for prompt in prompts]
    with open_toy(use_graphs=use_graphs) as executor:
        for part in (slice(0, 4), slice(4, 8)):
            lengths = [len(prompt) for prompt in prompts[part]]
            executor.run(toy.step(prompts[part], lengths, pages[part]), toy.greedy(4)).tokens()

        def go_on(sequences: list[int], done: int, steps: int) -> None:
            """Decode sequences whose first `done` tokens are known: a run of them, then steps without the host."""
            known = [prompts[s] + expected[s][:done] for s in sequences]
            batch = toy.step(known, [1] * len(known), [pages[s] for s in sequences])
            pending = [executor.run(batch, toy.greedy(len(known)))]
            pending += [executor.advance() for _ in range(steps - 1)]
            found = np.stack([each.tokens() for each in pending], axis=1).tolist()
            assert found == [expected[s][done : done + steps] for s in sequences]

        go_on([0, 1, 2], 1, 3)
        go_on([5, 6], 1, 2)
        go_on([3, 4], 1, 5)
        go_on([7, 1, 6], 1, 2)
        go_on([0, 2, 1], 3, 3)
    sizes = 3 + 2 + 5 + 2 + 3
    assert gpu.graph_launches == (sizes - 1 if use_graphs else 0), "2 and 3 sequences share the graphs of 4"


def test_graphs_that_are_warm_serve_the_first_decode_of_every_size_and_sampler(
    open_toy: Open, gpu: FakeGpu
) -> None:
    prompts, pages = prompts_of(12)
    done: list[tuple[int, int]] = []
    with open_toy() as executor:
        executor.warm_graphs(lambda number, total: done.append((number, total)))
        assert done == [(number, 2 * 9) for number in range(1, 2 * 9 + 1)], (
            "1 … 8 and 12 sequences, two samplers"
        )
        launches, graphs = gpu.eager_launches, gpu.graph_launches
        for size in (1, 5, 9, 12):
            batch = toy.step([prompt[:1] for prompt in prompts[:size]], [1] * size, pages[:size])
            expected = [expected_decode(prompt[:1], 1)[0] for prompt in prompts[:size]]
            assert executor.run(batch, toy.greedy(size)).tokens().tolist() == expected
            executor.run(batch, toy.sampling(size, temperature=1.0, seed=0)).tokens()
    assert gpu.eager_launches == launches and gpu.graph_launches == graphs + 8


def test_warming_ends_where_a_graph_cannot_be_captured(
    open_toy: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_graph(*_: Any) -> None:
        raise DeviceError("instantiating a CUDA graph: the GPU is out of memory")

    monkeypatch.setattr(fake_gpu, "FakeGraph", no_graph)
    with open_toy() as executor:
        executor.warm_graphs()
        assert decode(executor, [8, 8, 1], 12, [3, 1, 6, 11]) == expected_decode([8, 8, 1], 12)
    assert len(caplog.records) == 1


def test_tokens_named_by_row_are_those_of_a_padded_step(
    open_toy: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dims, "round_decodes", in_fours)
    prompts, pages = prompts_of(3)
    expected = [expected_decode(prompt, 4) for prompt in prompts]
    with open_toy() as executor:
        pending = [executor.run(toy.step(prompts, [2, 1, 2], pages), toy.greedy(3))]
        for step, order in enumerate([[0, 1, 2], [2, 0], [0, 2]]):
            rows = [0, 1, 2] if step == 0 else [[0, 1, 2], [2, 0], [0, 2]][step - 1]
            known = [prompts[s] + expected[s][: step + 1] for s in order]
            batch = toy.step(known, [1] * len(order), [pages[s] for s in order])
            named = np.array([-1 - rows.index(s) for s in order], np.int32)
            pending.append(executor.run(replace(batch, token_ids=named), toy.greedy(len(order))))
        found = [each.tokens().tolist() for each in pending]
    assert found[0] == [tokens[0] for tokens in expected]
    assert found[1] == [tokens[1] for tokens in expected]
    assert found[2] == [expected[2][2], expected[0][2]] and found[3] == [expected[0][3], expected[2][3]]


@pytest.mark.parametrize("use_graphs", [True, False])
def test_more_rows_than_logits_at_once_are_sampled_part_by_part(
    open_toy: Open, gpu: FakeGpu, use_graphs: bool
) -> None:
    prompts, pages = prompts_of(8)
    expected = [expected_decode(prompt, 6) for prompt in prompts]
    with open_toy(use_graphs=use_graphs) as executor:
        assert executor.max_rows == 12 and toy.VARIANTS[-1].max_rows == 4
        pending = [executor.run(toy.step(prompts, [len(p) for p in prompts], pages), toy.greedy(8))]
        for step in range(1, 3):
            known = [prompt + tokens[:step] for prompt, tokens in zip(prompts, expected, strict=True)]
            batch = toy.step(
                known[::-1] if step == 1 else known, [1] * 8, pages[::-1] if step == 1 else pages
            )
            named = -8 + np.arange(8, dtype=np.int32)  # in the order of the step before, backwards
            pending.append(executor.run(replace(batch, token_ids=named), toy.greedy(8)))
        pending += [executor.advance() for _ in range(3)]
        found = [each.tokens().tolist() for each in pending]
    found[1].reverse()
    assert np.transpose(found).tolist() == expected
    assert gpu.graph_launches == (4 if use_graphs else 0)


def test_each_row_has_its_own_parameters_and_table_rows_in_every_part(open_toy: Open) -> None:
    prompts, pages = prompts_of(7)
    logits = [toy.ToyCheckpoint().logits(prompt)[-1] for prompt in prompts]
    counts = np.zeros(toy.VOCAB, np.int32)
    counts[int(np.argmax(logits[6]))] = 1
    plain = toy.sampling(7, temperature=1.0, seed=0)
    seeds, rows = np.arange(7, dtype=np.int32), np.array([-1] * 6 + [0], np.int32)
    chosen = replace(
        plain,
        parameters={**plain.parameters, "seed": seeds},
        table_rows={"counts_row": rows},
        writes=(TableRow("counts", 0, counts),),
    )
    with open_toy() as executor:
        found = executor.run(toy.step(prompts, [len(p) for p in prompts], pages), chosen).tokens()
    best = [int(np.argmax(row)) for row in logits[:6]] + [int(np.argsort(-logits[6])[1])]
    assert found.tolist() == [(token + seed + 1) % toy.VOCAB for seed, token in enumerate(best)]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_sampler_waits_for_rows_that_are_made_while_the_model_runs(
    open_toy: Open, gpu: FakeGpu, count: int
) -> None:
    prompts, pages = prompts_of(count)
    logits = [toy.ToyCheckpoint().logits(prompt[:1])[-1] for prompt in prompts]
    batch = toy.step([prompt[:1] for prompt in prompts], [1] * count, pages)
    table_rows = {"counts_row": np.arange(count, dtype=np.int32)}
    plain = replace(toy.sampling(count, temperature=1.0, seed=0), table_rows=table_rows)
    launched: list[int] = []

    def late() -> list[TableRow]:
        launched.append(gpu.eager_launches + gpu.graph_launches)
        counts = np.zeros((count, toy.VOCAB), np.int32)
        counts[np.arange(count), np.argmax(logits, axis=1)] = 1
        return [TableRow("counts", row, counts[row]) for row in range(count)]

    with open_toy() as executor:
        for _ in range(3):
            before = gpu.eager_launches + gpu.graph_launches
            found = executor.run(batch, replace(plain, late=late)).tokens()
            assert found.tolist() == [(int(np.argsort(-row)[1]) + 1) % toy.VOCAB for row in logits]
            assert launched.pop() > before, "the model is launched first"
    assert gpu.graph_launches == (2 if count <= 4 else 0), "the model alone has a graph"


def test_logits_of_many_rows_are_those_of_each(open_toy: Open) -> None:
    prompts, pages = prompts_of(7)
    with open_toy() as executor:
        found = executor.logits(toy.step(prompts, [len(p) for p in prompts], pages))
    expected = [toy.ToyCheckpoint().logits(prompt)[-1] for prompt in prompts]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_contexts_are_rounded_to_few_sizes() -> None:
    assert [dims.round_pages(n) for n in (0, 1, 64, 65, 128, 129, 2048)] == [64, 64, 64, 128, 128, 256, 2048]


def test_many_sequences_advance_together_each_in_its_own_pages(open_toy: Open) -> None:
    prompts = [[8, 8, 1], [8, 8], [30, 31, 2, 4]]
    pages = [[0, 1, -1], [5, 6, -1], [9, 3, 2]]
    with open_toy() as executor:
        first = executor.run(toy.step(prompts, [3, 2, 4], pages), toy.greedy(3)).tokens()
        longer = [[*prompt, int(token)] for prompt, token in zip(prompts, first, strict=True)]
        steps = [executor.run(toy.step(longer, [1, 1, 1], pages), toy.greedy(3))]
        steps += [executor.advance() for _ in range(3)]
        found = np.stack([first, *(pending.tokens() for pending in steps)], axis=1)
    assert found.tolist() == [expected_decode(prompt, 5) for prompt in prompts]


def test_a_step_may_ask_for_no_logits_at_all(open_toy: Open) -> None:
    chunk = replace(toy.step([[8, 8]], [2], [[3, 1]]), output_rows=np.zeros(0, np.int32))
    with open_toy() as executor:
        assert executor.run(chunk, toy.greedy(0)).tokens().tolist() == []
        logits = executor.logits(toy.step([[8, 8, 1]], [1], [[3, 1]]))
    np.testing.assert_allclose(logits, toy.ToyCheckpoint().logits([8, 8, 1])[-1:], rtol=1e-4, atol=1e-4)


def test_sampling_parameters_and_counts_reach_the_sampler(open_toy: Open) -> None:
    best = np.argsort(-toy.ToyCheckpoint().logits([5, 7])[-1])
    counts = np.zeros(toy.VOCAB, np.int32)
    counts[best[0]] = 1
    with open_toy() as executor:
        chosen = toy.sampling(1, temperature=2.0, seed=11, counts=counts)
        pending = executor.run(toy.step([[5, 7]], [2], [[3]]), chosen)
        chosen.writes[0].values[:] = 0  # the caller's arrays are his own again
        assert pending.tokens().tolist() == [(best[1] + 13) % toy.VOCAB]


def test_logprobs_of_a_step_and_of_those_that_follow_it_arrive_with_its_tokens(open_toy: Open) -> None:
    context, checkpoint = [5, 7], toy.ToyCheckpoint()
    with open_toy() as executor:
        asking = replace(toy.greedy(1), logprobs=True)
        executor.run(toy.step([context], [2], [[3, 1]]), toy.greedy(1)).tokens()
        pending = [executor.run(toy.step([context], [1], [[3, 1]]), asking)]
        pending += [executor.advance() for _ in range(3)]
        for step in pending:
            logits = checkpoint.logits(context)[-1]
            (token,) = step.tokens().tolist()
            logprobs = step.logprobs()
            assert logprobs.tokens[0].tolist() == [token, *np.argsort(-logits, kind="stable")[:20]]
            exact = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            np.testing.assert_allclose(logprobs.values[0], exact[logprobs.tokens[0]], rtol=1e-4, atol=1e-4)
            context.append(token)
        scored = executor.run(toy.step([[5, 7]], [2], [[3]]), replace(asking, scored=np.array([4], np.int32)))
        assert scored.logprobs().tokens[0, 0] == 4
        unscored = executor.run(toy.step([[5, 7]], [2], [[3]]), asking)
        assert unscored.logprobs().tokens[0, 0] == unscored.tokens()[0]
        with pytest.raises(AssertionError, match="computed no log-probabilities"):
            executor.run(toy.step([context], [1], [[3, 1]]), toy.greedy(1)).logprobs()


def test_rows_of_tables_outlive_the_step_and_more_may_be_written_than_are_staged(open_toy: Open) -> None:
    best = np.argsort(-toy.ToyCheckpoint().logits([5, 7])[-1])
    counts = np.zeros(toy.VOCAB, np.int32)
    counts[best[0]] = 1
    batch = toy.step([[5, 7]], [2], [[3]])
    with open_toy() as executor:
        chosen = toy.sampling(1, temperature=2.0, seed=11, counts=counts)
        many = replace(chosen, writes=chosen.writes * 20)
        assert executor.run(batch, many).tokens().tolist() == [(best[1] + 13) % toy.VOCAB]
        token = executor.run(batch, replace(chosen, writes=())).tokens()[0]
        assert token == (next(t for t in best[1:] if t != (best[1] + 13) % toy.VOCAB) + 13) % toy.VOCAB


def test_a_sampler_is_loaded_once_and_serves_the_steps_of_every_variant(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load_module = gpu.load_module

    def load(data: bytes, name: str) -> Any:
        loaded.append(name)
        return load_module(data, name)

    monkeypatch.setattr(gpu, "load_module", load)
    with open_toy() as executor:
        samplers = [name for name in loaded if name.startswith(("greedy", "sample"))]
        assert samplers == ["greedy.any.cubin", "sample.any.cubin"]
        assert decode(executor, [5, 2, 7], 4, [3, 1, 6]) == expected_decode([5, 2, 7], 4)  # prefill, then t1


def test_a_variant_that_has_a_sampler_of_its_own_runs_that_one() -> None:
    manifest = toy.toy_manifest()
    own = msgspec.structs.replace(manifest.blocks["greedy"]["any"], variant="t1")
    manifest.blocks["greedy"]["t1"] = own
    found = [layout.block_variant(manifest, "greedy", name).variant for name in ("t1", "prefill")]
    assert found == ["t1", "any"]


def test_steps_queued_behind_one_another_keep_their_own_inputs(open_toy: Open) -> None:
    prompts = [[8, 8, 1], [8, 8], [30, 31, 2, 4], [9, 1]]
    with open_toy() as executor:
        steps = [
            executor.run(toy.step([prompt], [len(prompt)], [[page]]), toy.greedy(1))
            for page, prompt in enumerate(prompts)
        ]
        found = [int(pending.tokens()[0]) for pending in steps]
    assert found == [expected_decode(prompt, 1)[0] for prompt in prompts]


def test_tokens_must_be_read_before_their_place_is_used_again(open_toy: Open) -> None:
    with open_toy() as executor:
        pending = executor.run(toy.step([[8]], [1], [[3, 1, 6]]), toy.greedy(1))
        early = executor.advance()
        second = early.tokens()
        later = [executor.advance().tokens() for _ in range(sampled.BUFFERS)]
        assert [int(t[0]) for t in (second, *later)] == expected_decode([8], sampled.BUFFERS + 2)[1:]
        assert early.tokens() is second, "tokens once read stay"
        with pytest.raises(AssertionError, match="must be read before"):
            pending.tokens()


def test_no_step_overwrites_tokens_that_were_not_copied_yet(gpu: FakeGpu) -> None:
    with ExitStack() as stack:
        device: Any = gpu
        stream: Any = gpu.stream()
        ring = sampled.TokenRing(device, stream, 1, stack)
        places = [gpu.alloc(4, "next_tokens") for _ in range(sampled.TURNS)]
        pending: list[sampled.SampledTokens] = []
        for step in range(sampled.BUFFERS):
            place = places[ring.next_turn()]
            stream.fill(place.address, step, 4)
            pending.append(ring.fetch(place.address, 1))
            stream.synchronize()  # steps run as early as they may, copies as late
        assert [int(tokens.tokens()[0]) for tokens in pending] == [
            step * 0x01010101 for step in range(sampled.BUFFERS)
        ]


def test_a_stream_that_waits_runs_behind_the_mark_of_another_and_not_behind_what_came_later(
    gpu: FakeGpu,
) -> None:
    first, second, event = gpu.stream(), gpu.stream(), gpu.event()
    ran: list[str] = []
    first.put(lambda: ran.append("before the mark"))
    first.record(event)
    first.put(lambda: ran.append("after the mark"))
    second.put(lambda: ran.append("before the wait"))
    second.wait(event)
    second.put(lambda: ran.append("after the wait"))
    second.synchronize()
    assert ran == ["before the wait", "before the mark", "after the wait"]
    first.synchronize()
    assert ran[-1] == "after the mark"


def test_a_sequence_without_a_token_ends_while_the_next_step_is_in_flight_and_the_others_go_on(
    open_toy: Open,
) -> None:
    params, first = SamplingParams(max_tokens=8, temperature=0), expected_decode([8, 8, 1], 8)
    others = expected_decode([30, 31], 8)
    assert first[5] not in (*first[:5], *others, 8, 1, 30, 31)
    checkpoint = toy.ToyCheckpoint()
    embedding = toy.KERNELS["embed"][1]

    def embed(grid: tuple[int, ...], x: int, table: int, ids: int) -> None:
        embedding(grid, x, table, ids)
        tokens = at(ids, np.int32, grid[0])
        at(x, np.float32, grid[0], toy.WIDTH)[tokens == first[5]] = np.nan

    gpu = FakeGpu({**toy.KERNELS, "embed": ("ppp", embed)})
    with open_toy(gpu=gpu, checkpoint=checkpoint) as executor:
        engine = Engine(executor, toy.toy_manifest().model)
        tokens = {engine.add(prompt, params): list[int]() for prompt in ([8, 8, 1], [30, 31])}
        errors: list[LogitsError] = []
        while engine.busy:
            try:
                for event in engine.step():
                    tokens[event.sequence] += event.tokens
            except LogitsError as error:
                errors.append(error)
    assert list(tokens.values()) == [first[:6], others]
    assert [str(error) for error in errors] == [
        "sequence 0: no token can be drawn, since its logits are not finite;"
        " they were computed in float32: look for NaN or infinity in the checkpoint"
    ]


def test_a_sequence_does_not_advance_past_its_pages(open_toy: Open) -> None:
    with open_toy() as executor:
        executor.run(toy.step([[5, 2]], [1], [[3, -1]]), toy.greedy(1))
        executor.advance()
        executor.advance()
        with pytest.raises(AssertionError, match="past the pages"):
            executor.advance()


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        *(("launch", nth) for nth in (0, 6, 13, 25, 36)),
        *((call, nth) for call in ("upload", "upload_rows") for nth in (0, 1)),
        *((call, nth) for call in ("record", "wait", "download") for nth in (0, 1, 2, 5)),
    ],
)
def test_a_call_that_fails_is_one_error_and_every_token_comes_once(
    open_toy: Open, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    prompts, params = [[8, 8, 1], [30, 31, 2, 4]], SamplingParams(max_tokens=8, temperature=0)
    with open_toy(use_graphs=False) as executor:
        engine = Engine(executor, toy.toy_manifest().model)
        tokens = {engine.add(prompt, params): list[int]() for prompt in prompts}
        method, calls, errors = getattr(FakeStream, call), itertools.count(), list[DeviceError]()

        def fails(stream: FakeStream, *arguments: Any) -> None:
            if next(calls) == nth:
                raise DeviceError("the GPU is out of memory")
            method(stream, *arguments)

        monkeypatch.setattr(FakeStream, call, fails)
        for _ in range(100):
            if not engine.busy:
                break
            try:
                for event in engine.step():
                    tokens[event.sequence] += event.tokens
            except DeviceError as error:
                errors.append(error)
    assert list(tokens.values()) == [expected_decode(prompt, 8) for prompt in prompts]
    assert len(errors) == 1


def test_a_decode_whose_step_failed_does_not_advance(open_toy: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise DeviceError("the GPU is out of memory")

    with open_toy() as executor:
        executor.run(toy.step([[5]], [1], [[3, 1]]), toy.greedy(1))
        with monkeypatch.context() as patch:
            patch.setattr(FakeStream, "launch", fails)
            patch.setattr(FakeStream, "record", fails)
            with pytest.raises(DeviceError, match="out of memory"):
                executor.advance()
        with pytest.raises(AssertionError, match="follows a run"):
            executor.advance()
        executor.run(toy.step([[5]], [1], [[3, 1]]), toy.greedy(1))
        with monkeypatch.context() as patch:
            patch.setattr(FakeStream, "upload", fails)
            with pytest.raises(DeviceError, match="out of memory"):
                executor.logits(toy.step([[5]], [1], [[3, 1]]))
        with pytest.raises(AssertionError, match="follows a run"):
            executor.advance()


def test_closing_gives_everything_back(open_toy: Open, gpu: FakeGpu) -> None:
    executor = open_toy()
    assert executor.memory.kv_cache == (16 + 1) * toy.LAYERS * 2 * toy.PAGE * toy.WIDTH * 4
    executor.close()
    assert gpu.live == [] and gpu.closed


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Cycles stay, so that what is given back is given back by the last reference alone."""
    gc.disable()
    yield
    gc.enable()


def test_an_executor_that_is_dropped_gives_everything_back(
    open_toy: Open, gpu: FakeGpu, no_collector: None
) -> None:
    executor = open_toy()
    assert decode(executor, [8, 8, 1], 6, [3, 1, 6]) == expected_decode([8, 8, 1], 6)
    assert gpu.graphs
    del executor
    assert gpu.live == [] and gpu.graphs == [] and gpu.closed


def test_an_executor_that_is_closed_may_be_closed_again_and_dropped(open_toy: Open, gpu: FakeGpu) -> None:
    executor = open_toy()
    executor.close()
    executor.close()
    del executor
    assert gpu.live == [] and gpu.closed


def test_tokens_may_be_read_after_their_executor_was_dropped(
    open_toy: Open, gpu: FakeGpu, no_collector: None
) -> None:
    pending = open_toy().run(toy.step([[8, 8, 1]], [3], [[3]]), toy.greedy(1))
    assert pending.tokens().tolist() == expected_decode([8, 8, 1], 1)
    del pending
    assert gpu.live == [] and gpu.closed


@pytest.mark.parametrize("fails", [False, True], ids=["dropped", "half made"])
def test_an_llm_that_is_dropped_or_half_made_gives_everything_back(
    open_toy: Open, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, no_collector: None, fails: bool
) -> None:
    monkeypatch.setattr(llm_module, "load_executor", lambda *_, **__: open_toy())
    if fails:
        monkeypatch.setattr(llm_module, "Engine", lambda *_: 1 / 0)
        with suppress(ZeroDivisionError):
            LLM(device="cpu")
    else:
        llm = LLM(device="cpu")
        events = llm.stream([[1, 2]], SamplingParams(max_tokens=4, temperature=0))
        next(events)
        del llm
        assert gpu.live, "a stream that is open needs its model"
        del events
    assert gpu.live == [] and gpu.closed


class CountingGpu(FakeGpu):
    """Fails at the nth thing that it is asked for. `handles` holds the streams, events and modules that are open."""

    def __init__(self, nth: int) -> None:
        super().__init__(toy.KERNELS)
        self.handles: dict[int, Any] = {}
        self._asked, self._nth = itertools.count(), nth

    def _count(self) -> None:
        if next(self._asked) == self._nth:
            raise DeviceError("the GPU is out of memory")

    def _opened(self, handle: Any) -> Any:
        self.handles[id(handle)] = handle
        handle.close = lambda: self.handles.pop(id(handle))
        return handle

    def alloc(self, nbytes: int, what: str) -> FakeMemory:
        self._count()
        return super().alloc(nbytes, what)

    def alloc_pinned(self, nbytes: int) -> FakeMemory:
        self._count()
        return super().alloc_pinned(nbytes)

    def stream(self) -> Any:
        self._count()
        return self._opened(super().stream())

    def event(self, *, timing: bool = False) -> Any:
        self._count()
        return self._opened(super().event(timing=timing))

    def load_module(self, image: bytes, where: str) -> Any:
        self._count()
        return self._opened(super().load_module(image, where))


def test_whatever_fails_while_loading_everything_is_given_back(tmp_path: Path) -> None:
    bundle, library = toy.toy_bundle(tmp_path), cast("Any", FakeProducts)
    for nth in itertools.count():
        gpu = CountingGpu(nth)
        try:
            with CudaExecutor(
                bundle,
                toy.ToyCheckpoint(),
                cast("Any", gpu),
                LoadOptions(max_pages_total=16),
                open_library=library,
            ):
                assert gpu.handles
        except DeviceError:
            pass
        else:
            break
        finally:
            assert (gpu.live, gpu.handles, gpu.closed) == ([], {}, True), nth
    assert nth > 30


def test_a_device_that_cannot_be_made_current_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Any] = []
    api = SimpleNamespace(
        cuDeviceGet=lambda index: (0, index),
        cuDevicePrimaryCtxRetain=lambda handle: (0, "context"),
        cuCtxSetCurrent=lambda context: (2,),
        cuDevicePrimaryCtxRelease=lambda handle: (released.append(handle), (0,))[1],
    )
    monkeypatch.setattr(device_module, "bindings", lambda: api)
    monkeypatch.setattr(device_module, "gpu_facts", lambda index: FakeGpu({}).facts)
    with pytest.raises(DeviceError, match="out of memory"):
        Device.open(3)
    assert released == [3]


@pytest.fixture
def lose_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After it is called, whoever waits for the GPU gets an error."""
    lost: list[bool] = []
    synchronize = FakeStream.synchronize

    def waited(stream: FakeStream) -> None:
        if lost:
            raise DeviceError("the GPU is lost")
        synchronize(stream)

    monkeypatch.setattr(FakeStream, "synchronize", waited)
    return lambda: lost.append(True)


def test_an_error_inside_is_not_hidden_by_what_fails_while_closing(
    open_toy: Open, lose_gpu: Callable[[], None]
) -> None:
    def fail_first() -> None:
        with open_toy():
            lose_gpu()
            raise DeviceError("what went wrong first")

    with pytest.raises(DeviceError, match="what went wrong first"):
        fail_first()


def test_a_gpu_that_is_lost_does_not_disturb_whoever_drops_its_executor(
    open_toy: Open, lose_gpu: Callable[[], None]
) -> None:
    executor = open_toy()
    lose_gpu()
    del executor  # pytest reports an exception in a finalizer as a failure


def test_what_fails_while_closing_is_reported_where_nothing_else_was_wrong(
    open_toy: Open, lose_gpu: Callable[[], None]
) -> None:
    with pytest.raises(DeviceError, match="the GPU is lost"), open_toy():
        lose_gpu()


def test_a_load_that_fails_gives_everything_back(open_toy: Open, gpu: FakeGpu) -> None:
    with pytest.raises(DeviceError, match="KV cache"):
        open_toy(pages=1, max_model_len=20)
    assert gpu.live == [] and gpu.closed


def test_a_missing_or_misshapen_tensor_is_refused_before_anything_is_copied(open_toy: Open) -> None:
    checkpoint = toy.ToyCheckpoint()
    checkpoint.tensors["layers.2.scale"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"layers\.2\.scale: the checkpoint has shape \[3\].*\[8\]"):
        open_toy(checkpoint=checkpoint)
    del checkpoint.tensors["layers.2.scale"]
    with pytest.raises(CheckpointError, match=r"layers\.2\.scale: the checkpoint has no such tensor"):
        open_toy(checkpoint=checkpoint)


def test_random_weights_need_no_checkpoint_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def logits(seed: int) -> np.ndarray:
        gpu: Any = FakeGpu(toy.KERNELS)
        library: Any = FakeProducts
        options = LoadOptions(max_pages_total=4, seed=seed)
        with CudaExecutor(toy.toy_bundle(tmp_path), None, gpu, options, open_library=library) as executor:
            return executor.logits(toy.step([[5, 7]], [2], [[1]]))

    assert np.array_equal(logits(1), logits(1)) and np.isfinite(logits(1)).all()
    assert not np.array_equal(logits(1), logits(2))


def edited(manifest: Manifest, block: str, **changes: Any) -> Manifest:
    """The manifest with changes to the last variant of one block."""
    variants = dict(manifest.blocks[block])
    last = list(variants)[-1]
    variants[last] = msgspec.structs.replace(variants[last], **changes)
    return msgspec.structs.replace(manifest, blocks={**manifest.blocks, block: variants})


@pytest.mark.parametrize(
    ("block", "changes", "message"),
    [
        ("head", {"stream_in": [toy.spec("y", "tokens", 9)]}, "is fed .* but reads"),
        ("decoder", {"batch": [toy.spec("alibi", "tokens")]}, "no batch array 'alibi'"),
        ("greedy", {"batch": [toy.spec("token_ids", "tokens")]}, "'token_ids' is i32, not f32"),
        ("decoder", {"buffers": {}}, r"decoder\.prefill: mean: no tensor 'h'"),
        ("decoder", {"state": [toy.spec("kv", "pages", 2, 1, 64, 8)]}, "disagree about the KV cache"),
        ("embed", {"steps": [toy.launch("embed", "$experts")]}, "unknown symbol 'experts'"),
        ("embed", {"weights": {"table": toy.weight("table", ["l.{layer}"], 40, 8)}}, "belongs to a layer"),
        ("head", {"stream_out": [toy.spec("logits", "rows", 40, dtype="bf16")]}, "is fed|must give logits"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    open_toy: Open, tmp_path: Path, block: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        open_toy(bundle=toy.toy_bundle(tmp_path, edited(toy.toy_manifest(), block, **changes)))


@pytest.mark.parametrize(
    ("arch", "gpu_arch", "runs"),
    [
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_80", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_80", (9, 0), False),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
    ],
)
def test_a_bundle_runs_on_the_architectures_its_cubins_fit(
    tmp_path: Path, arch: str, gpu_arch: tuple[int, int], runs: bool
) -> None:
    bundle = Bundle(tmp_path / "toy", toy.toy_manifest(arch), {})
    if runs:
        layout.check_arch(bundle, gpu_arch, "a GPU")
    else:
        found = f"sm_{gpu_arch[0]}{gpu_arch[1]}"
        with pytest.raises(BundleError, match=rf"{arch}, and a GPU is {found}.*--arch native"):
            layout.check_arch(bundle, gpu_arch, "a GPU")


def qkv_manifest(whole_shape: int) -> Manifest:
    """The toy, but its decoder wants q, k, v stacked when there is one token, and one by one otherwise."""
    names = [f"layers.{{layer}}.{n}" for n in "qkv"]
    stacked = {"qkv": toy.weight("qkv", names, 3 * whole_shape, toy.WIDTH)}
    single = {n[-1]: toy.weight(n[-1], [n], whole_shape, toy.WIDTH) for n in names}
    manifest = edited(toy.toy_manifest(), "decoder", weights=single)
    t1 = msgspec.structs.replace(manifest.blocks["decoder"]["t1"], weights=stacked)
    manifest.blocks["decoder"]["t1"] = t1
    return manifest


def test_weights_shared_by_blocks_variants_and_layers_are_stored_once() -> None:
    plan = plan_weights(toy.toy_manifest())
    assert [weight.recipe for weight in plan.stored].count(read("embed.weight", toy.VOCAB, toy.WIDTH)) == 1
    assert len(plan.stored) == 1 + toy.LAYERS


def test_a_part_of_a_stacked_weight_is_found_inside_it() -> None:
    manifest = qkv_manifest(8)  # 8 rows of 8 float32 are 256 bytes
    plan = plan_weights(manifest)
    layer = Stage(block="decoder", layer=1)
    prefill, t1 = (manifest.blocks["decoder"][name].weights for name in ("prefill", "t1"))
    start = plan.offset(t1["qkv"], layer)
    assert [plan.offset(prefill[n], layer) - start for n in "qkv"] == [0, 256, 512]
    assert len(plan.stored) == 1 + toy.LAYERS


def test_a_part_that_is_not_aligned_within_a_stacked_weight_is_stored_again() -> None:
    manifest = qkv_manifest(5)
    plan = plan_weights(manifest)
    for stored in plan.stored:
        assert stored.offset % 256 == 0
    prefill = manifest.blocks["decoder"]["prefill"].weights
    assert all(plan.offset(prefill[n], Stage(block="decoder", layer=0)) % 256 == 0 for n in "qkv")
    assert len(plan.stored) == 1 + 3 * toy.LAYERS  # the table; q, k, v whole; then k and v once more


def test_two_uses_of_a_weight_must_agree_about_its_shape() -> None:
    other = Weight(spec=toy.spec("table", 20, 16), recipe=read("embed.weight", 20, 16))
    with pytest.raises(BundleError, match="two shapes"):
        plan_weights(edited(toy.toy_manifest(), "head", weights={"table": other}))


def test_casting_rounds_through_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CAST_ELEMENTS", 3)
    values = np.array([1.0, 1e5, -2.5, 3.1415927, 1e-9, 65504.0, 0.1], np.float32)
    for stored in (np.float16, ml_dtypes.bfloat16, np.float32):
        with np.errstate(over="ignore"):
            source = values.astype(stored)
        for wanted in (np.float16, ml_dtypes.bfloat16, np.float32):
            out = np.empty(len(values), wanted)
            weights.cast_into(out, source)
            with np.errstate(over="ignore"):
                expected = source.astype(np.float32).astype(wanted)
            assert out.tobytes() == expected.tobytes()


def test_a_tensor_longer_than_two_chunks_arrives_whole(gpu: FakeGpu) -> None:
    manifest = toy.toy_manifest()
    checkpoint = toy.ToyCheckpoint()  # the table has 1280 bytes; make the chunk smaller than half of it
    weights.CHUNK_BYTES = 512  # restored by the autouse fixture
    plan, reports = plan_weights(manifest), list[tuple[int, int]]()
    memory: FakeMemory = gpu.alloc(plan.total_bytes, "")
    device: Any = gpu
    stream: Any = gpu.stream()
    weights.fill_weights(
        plan,
        checkpoint,
        memory.address,
        device,
        stream,
        progress=lambda done, total: reports.append((done, total)),
    )
    for stored in plan.stored:
        assert isinstance(stored.recipe, Read)
        arrived = at(memory.address + stored.offset, np.float32, *stored.recipe.shape)
        assert np.array_equal(arrived, checkpoint.tensors[stored.recipe.names[0]])
    assert reports[-1][0] == reports[-1][1] == sum(stored.nbytes for stored in plan.stored)
    assert gpu.live == [memory], "staging buffers are given back"


def test_random_weights_depend_on_name_and_seed_and_not_on_where_they_lie(gpu: FakeGpu) -> None:
    plan = plan_weights(toy.toy_manifest())
    turned = replace(plan, stored=plan.stored[::-1])
    device: Any = gpu
    stream: Any = gpu.stream()
    weights.CHUNK_BYTES = 2**20  # restored by the autouse fixture
    filled: list[dict[Recipe, bytes]] = []
    for order, seed in ((plan, 1), (turned, 1), (plan, 2)):
        memory: FakeMemory = gpu.alloc(plan.total_bytes, "")
        weights.fill_weights(order, None, memory.address, device, stream, seed=seed)
        filled.append(
            {w.recipe: at(memory.address + w.offset, np.uint8, w.nbytes).tobytes() for w in order.stored}
        )
    assert filled[0] == filled[1]
    assert all(filled[0][name] != filled[2][name] for name in filled[0])


GIB = 2**30
FULL, WINDOWED = CacheGroup(0, 2**21), CacheGroup(1024, 10 * 2**20)


def counted(
    *groups: CacheGroup, free: int = 70 * GIB, need_tokens: int = 1, max_pages: int | None = None
) -> list[int]:
    """The pages of each group where 90 % of 100 GiB may be in use."""
    return count_pages(
        groups,
        page_size=64,
        chunk=4096,
        sequences=256,
        length=2**17,
        need_tokens=need_tokens,
        free=free,
        total=100 * GIB,
        utilization=0.9,
        max_pages=max_pages,
    )


def test_the_cache_takes_what_utilization_leaves() -> None:
    assert counted(FULL) == [60 * 512 - 1], (
        "90 % of 100 GiB, less 30 GiB in use, in pages of 2 MiB, one of them for scratch"
    )


def test_the_cache_is_no_larger_than_asked_for() -> None:
    assert counted(FULL, need_tokens=65, max_pages=2) == [2]
    assert counted(FULL, WINDOWED, need_tokens=65, max_pages=2) == [2, 2]


def test_layers_with_a_window_leave_most_of_the_memory_to_those_without() -> None:
    full, windowed = counted(FULL, WINDOWED)
    assert 59 * GIB < full * FULL.page_bytes + windowed * WINDOWED.page_bytes <= 60 * GIB
    sequences = (full - 2**17 // 64) // (2**15 // 64)  # beside one of the whole context
    assert sequences > 20, "sequences of a quarter of the context"
    assert windowed >= 17 * sequences + 4096 // 64, "each has its window, and one of them computes its prompt"
    assert full > 2 * (60 * GIB) // (64 * 12 * 2**15), "twice what fits where all layers keep whole sequences"


def test_a_cache_for_one_long_sequence_holds_no_more_of_it_than_its_layers_read() -> None:
    assert counted(FULL, WINDOWED, free=16 * GIB, need_tokens=2**17)[0] >= 2**17 // 64
    with pytest.raises(DeviceError, match=r"2048 pages of 2\.00 MiB and 81 pages of 10\.00 MiB; .*4084 MiB"):
        counted(FULL, WINDOWED, free=14 * GIB, need_tokens=2**17)


def test_where_every_layer_has_a_window_the_pages_of_those_without_cost_nothing() -> None:
    assert counted(CacheGroup(0, 0), WINDOWED) == [256 * 2048, 60 * GIB // WINDOWED.page_bytes - 1]


@pytest.mark.parametrize(("free", "need_tokens"), [(2 * GIB, 1), (12 * GIB, 128 * 1024 * 10)])
def test_a_cache_that_does_not_fit_says_what_is_needed_and_what_to_lower(free: int, need_tokens: int) -> None:
    with pytest.raises(DeviceError, match=r"tokens need \d+ pages of 2\.00 MiB.*lower --max-model-len"):
        counted(FULL, free=free, need_tokens=need_tokens)


def test_a_cache_that_is_asked_to_be_too_small_says_so_and_does_not_blame_the_memory() -> None:
    with pytest.raises(DeviceError, match="65 tokens need 2 pages, and no more than 1 are allowed"):
        counted(FULL, need_tokens=65, max_pages=1)


def test_a_sequence_may_not_be_longer_than_the_model_allows() -> None:
    with pytest.raises(BundleError, match="contexts of 1 to 24 tokens"):
        layout.step_limits(toy.toy_manifest(), 25)


def test_poison_is_nan_in_every_float_type() -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        assert np.isnan(np.full(4, kv_cache.POISON, np.uint8).view(dtype).astype(np.float32)).all()


def test_an_algorithm_is_chosen_anew_when_a_pointer_is_less_aligned() -> None:
    product = MatrixProduct(
        "p", 512, 1024, 768, n=8, k=8, x_stride=8, out_stride=8, dtype="bf16", out_dtype="bf16"
    )
    assert product.shape_key(4) == replace(product, x=4096, out=1280).shape_key(4)
    assert product.shape_key(4) != replace(product, x=512 + 16).shape_key(4)
    assert product.shape_key(4) != replace(product, residual=512, residual_stride=8).shape_key(4)


def test_a_machine_without_the_bindings_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    driver.bindings.cache_clear()
    try:
        assert not driver.gpu_available()
        with pytest.raises(DeviceError, match="pip install cuda-python"):
            Device.open()
    finally:
        driver.bindings.cache_clear()


def test_importing_the_runtime_loads_no_compiler_and_touches_no_gpu() -> None:
    code = (
        "import sys, infernum.runtime.executor, infernum.runtime.timing\n"
        "heavy = ('cuda', 'nvmath', 'jinja2', 'networkx')\n"
        "heavy += tuple('infernum.' + name for name in ('ir', 'ops', 'fusion', 'models', 'codegen'))\n"
        "print([m for m in sys.modules if any(m == h or m.startswith(h + '.') for h in heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
