"""Steps on several GPUs, by fake ones: the toy model with its vocabulary divided, whose parts the ranks exchange.

A kernel that waits for words of another rank lets that rank's GPU work until they have come. So a step that is awaited
before every rank has been given it fails here, as it would hang on GPUs.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import toy_bundle as toy
from fake_gpu import FakeGpu, at
from test_runtime_host import FakeProducts, decode, expected_decode

from infernum.errors import BundleError, DeviceError
from infernum.manifest import BlockVariant, Buffer, Gemm, Launch, Manifest, Pointer, Stage, Weight
from infernum.recipes import Share, read
from infernum.runtime import driver, ranks, weights
from infernum.runtime.device import Device
from infernum.runtime.exchange import _RECORD as RECORD  # pyright: ignore[reportPrivateUsage]
from infernum.runtime.exchange import words_exchanged
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.loading import LoadOptions
from infernum.runtime.ranks import RanksExecutor
from infernum.step import TableRow
from infernum.weights.plan import plan_weights

RANKS = 2


def divided(manifest: Manifest, ranks: int = RANKS) -> Manifest:
    """The toy model for several ranks: each computes its part of the logits, and they exchange the parts."""
    part = toy.VOCAB // ranks
    table = Weight(
        spec=toy.spec("table", part, toy.WIDTH), recipe=Share(read("embed.weight", toy.VOCAB, toy.WIDTH), 0)
    )
    heads: dict[str, BlockVariant] = {}
    for name, head in manifest.blocks["head"].items():
        gather, gemm = head.steps
        assert isinstance(gather, Launch) and isinstance(gemm, Gemm)
        product = msgspec.structs.replace(gemm, n=part, out=Pointer(tensor="part"), out_stride=part)
        exchanging = msgspec.structs.replace(
            toy.launch("exchange_logits", "part", "logits", "exchange", "$rows", grid="min(rows, 3)"),
            exchanged=f"rows * {part}",
        )
        heads[name] = msgspec.structs.replace(
            head,
            steps=[gather, product, exchanging],
            buffers={**head.buffers, "part": Buffer(spec=toy.spec("part", "rows", part), offset=1024)},
            weights={"table": table},
        )
    return msgspec.structs.replace(manifest, ranks=ranks, blocks={**manifest.blocks, "head": heads})


class Gpus(list[FakeGpu]):
    """Fake GPUs whose kernels exchange words as those of templates/gather_ranks.cu.j2, in the memory that they have."""

    def __init__(self, count: int) -> None:
        super().__init__(
            FakeGpu({**toy.KERNELS, "exchange_logits": ("pppi", self._exchange)}, index=index)
            for index in range(count)
        )

    def _exchange(self, grid: tuple[int, ...], part: int, logits: int, exchange: int, rows: int) -> None:
        record = at(exchange, RECORD, 1)[0]
        begun, arrived = record["begun"]
        assert arrived == 0 and len(self) == RANKS
        number, rank, capacity = int(begun) + 1, int(record["rank"]), int(record["capacity"])
        at(exchange, np.uint32, 1)[0] = number
        width = toy.VOCAB // RANKS
        assert rows * width <= capacity
        own = at(part, np.float32, rows, width)
        words = np.stack([own.reshape(-1).view(np.uint32), np.full(own.size, number, np.uint32)], axis=1)
        inboxes = [at(int(record["inboxes"][r]), np.uint32, 2, RANKS, capacity, 2) for r in range(RANKS)]
        out = at(logits, np.float32, rows, RANKS, width)
        for other in range(RANKS):
            if other != rank:
                assert other in self[rank].reached
                inboxes[other][number % 2, rank, : own.size] = words
        for other in range(RANKS):
            if other == rank:
                out[:, rank] = own
                continue
            sent = inboxes[rank][number % 2, other, : own.size]
            while (sent[:, 1] != number).any():
                stream = self[other].streams[0]
                assert stream.waiting, f"rank {rank} waits for a step that rank {other} has not been given"
                stream.run_until(stream.done + 1)
            out[:, other] = sent[:, 0].copy().view(np.float32).reshape(rows, width)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1024)


@pytest.fixture
def gpus() -> Gpus:
    return Gpus(RANKS)


Open = Callable[..., RanksExecutor]


@pytest.fixture
def open_ranks(tmp_path: Path, gpus: Gpus) -> Open:
    def opened(manifest: Manifest | None = None, **changes: Any) -> RanksExecutor:
        bundle = toy.toy_bundle(tmp_path, manifest or divided(toy.toy_manifest()))
        options = LoadOptions(max_pages_total=changes.pop("pages", 16))
        devices: Any = changes.pop("gpus", gpus)
        library: Any = changes.pop("library", FakeProducts)
        return RanksExecutor(bundle, toy.ToyCheckpoint(), devices, options, open_library=library, **changes)

    return opened


def test_several_gpus_generate_what_one_does(open_ranks: Open, gpus: Gpus) -> None:
    """Prompts, decodes one by one and by CUDA graphs, and advances, for contexts of several pages."""
    with open_ranks() as executor:
        assert decode(executor, [8, 3, 5], 12, [0, 1, 2, 3]) == expected_decode([8, 3, 5], 12)  # pyright: ignore
        assert all(gpu.graph_launches > 0 for gpu in gpus)
        assert decode(executor, [7], 4, [4, 5]) == expected_decode([7], 4)  # pyright: ignore


def test_the_ranks_give_the_logits_of_one(open_ranks: Open) -> None:
    batch = toy.step([[8, 3, 5], [2, 4]], [3, 2], [[0], [1]])
    with open_ranks() as executor:
        found = executor.logits(batch)
        expected = [toy.ToyCheckpoint().logits(tokens)[-1] for tokens in ([8, 3, 5], [2, 4])]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert np.array_equal(executor.logits(batch), found)


def test_every_rank_samples_the_same(open_ranks: Open) -> None:
    batch = toy.step([[8, 3], [2, 4]], [2, 2], [[0], [1]])
    with open_ranks() as executor:
        executor.run(batch, toy.sampling(2, temperature=1.0, seed=7)).tokens()
        ranks: list[CudaExecutor] = executor._ranks  # pyright: ignore[reportPrivateUsage]
        places = [rank._loaded.inputs.addresses["token_ids"] for rank in ranks]  # pyright: ignore
        for rank in ranks:
            rank.synchronize()
        first, second = (at(place, np.int32, 2).tolist() for place in places)
        assert first == second


def test_a_sampler_waits_on_all_ranks_for_rows_that_are_made_once(open_ranks: Open, gpus: Gpus) -> None:
    """They are made when the model is launched everywhere, so that no rank waits for them in an exchange."""
    made: list[int] = []

    def late() -> list[TableRow]:
        made.append(sum(len(gpu.streams[0].waiting) + gpu.streams[0].done for gpu in gpus))
        assert all(any(True for _ in gpu.streams[0].waiting) for gpu in gpus)
        return [TableRow("counts", 0, np.eye(1, toy.VOCAB, expected_decode([8, 3], 1)[0], dtype=np.int32)[0])]

    with open_ranks() as executor:
        plain = executor.run(toy.step([[8, 3]], [2], [[0]]), toy.greedy(1)).tokens()
        rows = {"counts_row": np.zeros(1, np.int32)}
        sampling = replace(toy.sampling(1, temperature=1.0, seed=0), table_rows=rows, late=late)
        found = executor.run(toy.step([[8, 3]], [2], [[1]]), sampling).tokens()
        assert len(made) == 1 and found.tolist() != plain.tolist()


def test_graphs_of_all_sizes_are_captured_ahead_on_all_ranks(open_ranks: Open, gpus: Gpus) -> None:
    seen: list[tuple[int, int]] = []
    with open_ranks() as executor:
        executor.warm_graphs(lambda done, total: seen.append((done, total)))
        assert seen and seen[-1][0] == seen[-1][1]
        assert len({len(gpu.graphs) for gpu in gpus}) == 1 and gpus[0].graphs
    assert all(gpu.closed and not gpu.live and not gpu.graphs for gpu in gpus)


def test_a_rank_has_its_part_of_the_head_within_the_whole_embedding(tmp_path: Path) -> None:
    manifest = divided(toy.toy_manifest())
    assert words_exchanged(manifest) == 4 * toy.VOCAB // RANKS
    stage = Stage(block="head")
    (weight,) = manifest.blocks["head"]["t1"].weights.values()
    offsets = [plan_weights(manifest, rank).offset(weight, stage) for rank in range(RANKS)]
    assert offsets[0] == plan_weights(toy.toy_manifest()).offset(
        toy.toy_manifest().blocks["head"]["t1"].weights["table"], stage
    )
    sizes = {plan_weights(manifest, rank).total_bytes for rank in range(RANKS)}
    assert len(sizes) <= 2


def test_a_step_is_launched_block_by_block_on_all_ranks_in_turn(open_ranks: Open, gpus: Gpus) -> None:
    """A stream has room for a thousand launches, and a rank whose stream is full waits for what others lack."""
    launched: list[int] = []
    for gpu in gpus:
        stream_of = gpu.stream

        def stream(gpu: FakeGpu = gpu, made: Any = stream_of) -> Any:
            opened = made()
            launch = opened.launch

            def noted(*arguments: Any) -> None:
                launched.append(gpu.index)
                launch(*arguments)

            opened.launch = noted
            return opened

        gpu.stream = stream  # pyright: ignore[reportAttributeAccessIssue]
    with open_ranks() as executor:
        executor.run(toy.step([[8, 3]], [2], [[0]]), toy.greedy(1)).tokens()
        turns = [rank for rank, _ in groupby(launched)]
        assert turns[:8] == [0, 1] * 4, "the embedding and three layers, one after the other"


def test_ranks_of_one_gpu_start_no_kernel_early(open_ranks: Open) -> None:
    """It could take the room of another rank's kernel, for which the kernel before it waits."""
    together = Gpus(RANKS)
    together[1].index = 0
    early: list[bool] = []
    for gpus in (together, Gpus(RANKS)):
        with open_ranks(gpus=gpus):
            configs = [config for stream in gpus[0].streams for config in stream.configs]
        early.append(any(config.programmatic for config in configs))
    assert early == [False, True]


def test_fewer_pages_on_one_gpu_are_what_all_have(open_ranks: Open, gpus: Gpus) -> None:
    with open_ranks(pages=None) as executor:
        most = executor.num_pages
    small = Gpus(RANKS)
    small[1].total = gpus[1].total // 2
    with open_ranks(pages=None, gpus=small) as executor:
        assert 0 < executor.num_pages < most


@pytest.fixture
def broken_library() -> Any:
    opened: list[int] = []

    def library(device: FakeGpu, stream: Any) -> FakeProducts:
        opened.append(1)
        if len(opened) == RANKS:
            raise DeviceError("no library on the second GPU")
        return FakeProducts(device, stream)

    return library


def test_ranks_are_loaded_at_once_and_what_is_done_of_all_is_reported(open_ranks: Open) -> None:
    seen: list[tuple[int, int]] = []
    with open_ranks(progress=lambda done, total: seen.append((done, total))):
        pass
    manifest = divided(toy.toy_manifest())
    plans = [plan_weights(manifest, rank) for rank in range(RANKS)]
    total = sum(weight.nbytes for plan in plans for weight in plan.stored)
    assert max(seen) == (total, total) and len(seen) > RANKS


def test_where_one_rank_cannot_be_loaded_all_memory_is_given_back(
    open_ranks: Open, gpus: Gpus, broken_library: Any
) -> None:
    with pytest.raises(DeviceError, match="no library on the second GPU"):
        open_ranks(library=broken_library)
    assert all(gpu.closed and not gpu.live for gpu in gpus)


def test_an_executor_that_is_dropped_gives_everything_back(open_ranks: Open, gpus: Gpus) -> None:
    executor = open_ranks()
    executor.run(toy.step([[8, 3]], [2], [[0]]), toy.greedy(1)).tokens()
    del executor
    gc.collect()
    assert all(gpu.closed and not gpu.live for gpu in gpus)


def test_a_bundle_for_another_number_of_gpus_is_refused(open_ranks: Open, tmp_path: Path, gpus: Gpus) -> None:
    with pytest.raises(
        BundleError, match=r"compiled for --tensor-parallel-size 1, and runs on 2 GPU\(s\) here"
    ):
        open_ranks(toy.toy_manifest())
    bundle = toy.toy_bundle(tmp_path, divided(toy.toy_manifest()))
    device: Any = FakeGpu(toy.KERNELS)
    library: Any = FakeProducts
    with pytest.raises(BundleError, match="compiled for --tensor-parallel-size 2, and runs on 1 GPU"):
        CudaExecutor(bundle, toy.ToyCheckpoint(), device, LoadOptions(), open_library=library)
    assert device.closed


def test_a_gpu_that_cannot_be_opened_leaves_none_open(
    tmp_path: Path, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(index: int) -> FakeGpu:
        if index == RANKS - 1:
            raise DeviceError("GPU 1 is away")
        return gpus[index]

    monkeypatch.setattr(ranks, "load_kernels_at_once", lambda: None)
    monkeypatch.setattr(ranks, "Device", SimpleNamespace(open=opened))
    bundle = toy.toy_bundle(tmp_path, divided(toy.toy_manifest()))
    monkeypatch.setattr(ranks, "gpu_count", lambda: 1)
    with pytest.raises(DeviceError, match="--tensor-parallel-size 2: needs so many GPUs, and 1 can be seen"):
        RanksExecutor.open(bundle, None)
    monkeypatch.setattr(ranks, "gpu_count", lambda: RANKS)
    with pytest.raises(DeviceError, match="GPU 1 is away"):
        RanksExecutor.open(bundle, None)
    assert [gpu.closed for gpu in gpus] == [True, False], "the second was never opened"


@pytest.fixture
def pair() -> tuple[Any, list[tuple[str, Any]]]:
    """Two devices over a driver that records calls; its answers are in `replies`."""
    calls: list[tuple[str, Any]] = []
    replies: dict[str, Any] = {}

    class Api:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                calls.append((name, arguments))
                return replies.get(name, (0, 1))

            return called

    gpus = Gpus(2)
    return ([Device(Api(), gpu.facts, gpu.index, f"context {gpu.index}") for gpu in gpus], replies), calls


def test_gpus_reach_each_other_or_the_error_says_which_cannot(pair: Any) -> None:
    ((first, second), replies), calls = pair
    replies["cuCtxEnablePeerAccess"] = (0,)
    first.reach(second)
    assert calls[-1] == ("cuCtxEnablePeerAccess", ("context 1", 0))
    first.reach(first)
    replies["cuCtxEnablePeerAccess"] = (704,)
    first.reach(second)
    replies["cuCtxEnablePeerAccess"] = (1,)
    with pytest.raises(DeviceError, match="letting GPU 0 and GPU 1 reach each other"):
        first.reach(second)
    replies["cuDeviceCanAccessPeer"] = (0, 0)
    with pytest.raises(DeviceError, match="GPU 0 and GPU 1 cannot reach each other's memory"):
        first.reach(second)


def test_kernels_are_loaded_at_once_or_the_error_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reads its environment when it is started; afterwards it is too late."""

    class Mode:
        CU_MODULE_EAGER_LOADING = 1

    class Api:
        CUmoduleLoadingMode = Mode
        mode = 2

        def cuModuleGetLoadingMode(self) -> tuple[int, int]:
            return 0, self.mode

    class Started:
        currsize = 0

    api, info = Api(), Started()

    def bindings() -> Api:
        return api

    bindings.cache_info = lambda: info  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(driver, "bindings", bindings)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    api.mode, info.currsize = 1, 0
    driver.load_kernels_at_once()
    assert os.environ["CUDA_MODULE_LOADING"] == "EAGER"
    monkeypatch.delenv("CUDA_MODULE_LOADING")
    api.mode, info.currsize = 2, 1
    with pytest.raises(DeviceError, match="set CUDA_MODULE_LOADING=EAGER in the environment"):
        driver.load_kernels_at_once()
    assert "CUDA_MODULE_LOADING" not in os.environ
