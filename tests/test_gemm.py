"""The choice of cuBLASLt's algorithms: by the heuristic, by timing, and from the user's cache."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import toy_bundle as toy
from clock_gpu import ClockGpu, clock_gpu
from fake_cublaslt import FakeAlgorithm, FakeCublasLt
from fake_gpu import FakeMemory

from infernum.errors import DeviceError
from infernum.runtime import gemm
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.gemm import CublasLt
from infernum.runtime.gemm_algorithms import bucket, buckets, known_algorithms
from infernum.runtime.loading import LoadOptions
from infernum.runtime.product import MatrixProduct

M, N, K = 48, 6, 8
ROOM = 64  # rows that the operands have memory for
SLOW, FAST = FakeAlgorithm(10.0), FakeAlgorithm(8.0)
Install = Callable[..., FakeCublasLt]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a cuBLASLt with these algorithms in place of the real one, as in a process of its own; the cache stays."""
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))

    def put(*proposed: FakeAlgorithm, gpu: ClockGpu | None = None, **changes: Any) -> FakeCublasLt:
        made = FakeCublasLt(gpu or ClockGpu({}), list(proposed), **changes)
        monkeypatch.setitem(sys.modules, "nvmath.bindings.cublasLt", made)
        return made

    return put


class Setting:
    """A library with the operands of one product in several layers, that differ in their weights and biases."""

    def __init__(self, lt: FakeCublasLt, *, layers: int = 1, bias: bool = False, residual: str = "") -> None:
        device: Any = lt.gpu
        stream: Any = lt.open_stream()
        self.stream = stream
        self.library = CublasLt(device, stream)
        rng = np.random.default_rng(1)
        self.x, self.out, self.residual = (self.memory(ROOM * size) for size in (K, N, N))
        self.weights = [self.memory(N * K, rng.standard_normal(N * K)) for _ in range(layers)]
        self.biases = [self.memory(N, rng.standard_normal(N)) for _ in range(layers)]
        self.x.array(np.float32, ROOM * K)[:] = rng.standard_normal(ROOM * K)
        added = {"": 0, "in place": self.out.address, "apart": self.residual.address}[residual]
        self.products = [
            MatrixProduct(
                *(
                    f"layer {layer}",
                    self.x.address,
                    weight.address,
                    self.out.address,
                    N,
                    K,
                    K,
                    N,
                    "f32",
                    "f32",
                ),
                bias=self.biases[layer].address if bias else 0,
                bias_dtype="f32" if bias else "",
                residual=added,
                residual_stride=N if added else 0,
            )
            for layer, weight in enumerate(self.weights)
        ]

    def memory(self, count: int, values: Any = 0.0) -> FakeMemory:
        memory = FakeMemory(self.stream.gpu, count * 4, pinned=False)
        memory.array(np.float32, count)[:] = values
        return memory

    def run(self, layer: int = 0, m: int = M) -> np.ndarray:
        """What the product gives."""
        self.library.run(self.products[layer], m)
        self.stream.synchronize()
        return self.out.array(np.float32, m * N).reshape(m, N).copy()

    def expected(self, layer: int = 0, m: int = M) -> np.ndarray:
        x = self.x.array(np.float32, m * K).reshape(m, K)
        return x @ self.weights[layer].array(np.float32, N * K).reshape(N, K).T


def used(lt: FakeCublasLt) -> int:
    """The number of the algorithm that ran last."""
    return lt.ran[-1][0]


def test_without_timing_the_first_proposal_runs_and_nothing_is_kept(install: Install) -> None:
    lt = install(SLOW, FAST)
    setting = Setting(lt)
    assert np.allclose(setting.run(), setting.expected()) and np.allclose(setting.run(), setting.expected())
    assert (lt.asked, [number for number, _ in lt.ran], known_algorithms()) == ([1], [0, 0], [])


def test_the_fastest_algorithm_is_kept_and_the_next_process_runs_it_without_asking(install: Install) -> None:
    setting = Setting(install(SLOW, FakeAlgorithm(9.0), FAST, FakeAlgorithm(8.5)))
    tuned = setting.library.tune(setting.products, M)
    assert (tuned.rank, tuned.microseconds, tuned.first_microseconds) == (2, 8.0, 10.0)
    assert (tuned.candidates, tuned.rejected, tuned.gain) == (4, 0, pytest.approx(0.2))
    lt = install(SLOW, FakeAlgorithm(9.0), FAST)
    fresh = Setting(lt)
    assert np.allclose(fresh.run(), fresh.expected())
    assert (lt.asked, used(lt)) == ([], 2)


def test_the_library_that_tuned_uses_what_it_found_from_then_on(install: Install) -> None:
    lt = install(SLOW, FAST)
    setting = Setting(lt)
    setting.run()
    setting.library.tune(setting.products, M)
    assert np.allclose(setting.run(), setting.expected())
    assert used(lt) == 1


def test_the_cache_tells_what_it_holds_in_the_names_of_the_library(install: Install) -> None:
    setting = Setting(install(SLOW, FAST))
    tuned = setting.library.tune(setting.products, M)
    (known,) = known_algorithms()
    assert (known.gpu, known.library, known.tuned) == ("a fake GPU", 130100, tuned)
    facts = known.tuned.facts
    assert (facts.id, facts.tile, facts.stages, facts.cluster, facts.split_k) == (
        66,
        "128x256",
        "999",
        "2x1x1",
        1,
    )
    assert (known.tuned.shape.n, known.tuned.shape.k, known.tuned.m) == (N, K, M)


@pytest.mark.parametrize(("us", "rank"), [(9.9, 0), (9.7, 1)])
def test_an_algorithm_must_save_two_percent_to_be_preferred(install: Install, us: float, rank: int) -> None:
    setting = Setting(install(SLOW, FakeAlgorithm(us)))
    tuned = setting.library.tune(setting.products, M)
    assert (tuned.rank, tuned.microseconds) == (rank, pytest.approx(us if rank else 10.0))


@pytest.mark.parametrize(
    "bad",
    [FakeAlgorithm(1.0, off=0.1), FakeAlgorithm(1.0, wavers=True), FakeAlgorithm(1.0, fails=True)],
    ids=["another result", "not the same twice", "fails"],
)
def test_a_faster_algorithm_that_is_not_right_is_rejected(install: Install, bad: FakeAlgorithm) -> None:
    setting = Setting(install(SLOW, bad, FAST))
    tuned = setting.library.tune(setting.products, M)
    assert (tuned.rank, tuned.candidates, tuned.rejected) == (2, 3, 1)


def test_a_proposal_that_the_library_marks_as_unusable_is_no_candidate(install: Install) -> None:
    setting = Setting(install(SLOW, replace(FAST, state=15), FAST))
    assert setting.library.tune(setting.products, M).candidates == 2


@pytest.mark.parametrize("residual", ["in place", "apart"])
def test_a_residual_that_the_product_adds_to_does_not_confuse_the_comparison(
    install: Install, residual: str
) -> None:
    setting = Setting(install(SLOW, FAST, FakeAlgorithm(1.0, off=0.1)), residual=residual)
    assert setting.library.tune(setting.products, M).rank == 1
    for memory in (setting.out, setting.residual):
        memory.array(np.float32, M * N)[:] = 3.0
    assert np.allclose(setting.run(), setting.expected() + 3.0)


def test_layers_keep_their_own_weights_and_biases(install: Install) -> None:
    lt = install(SLOW, FAST)
    setting = Setting(lt, layers=3, bias=True)
    setting.library.tune(setting.products, M)
    for layer in (0, 1, 2, 1):
        bias = setting.biases[layer].array(np.float32, N)
        assert np.allclose(setting.run(layer), setting.expected(layer) + bias, atol=1e-6)
    assert used(lt) == 1


def test_the_weights_of_all_layers_are_read_in_turn(install: Install) -> None:
    lt = install(SLOW, FAST)
    setting = Setting(lt, layers=3)
    tuned = setting.library.tune(setting.products, M)
    in_turn = [weight.address for weight in setting.weights]
    last = [weight for _, weight in lt.ran[-32:]]  # the last graph that was timed
    assert last == [in_turn[i % 3] for i in range(32)]
    assert tuned.in_cache, "three small layers fit into the L2 cache"


@pytest.mark.parametrize("refusal", ["the library refuses it", "it needs too much workspace"])
def test_an_algorithm_that_is_refused_gives_way_to_the_first_proposal_with_one_warning(
    install: Install, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.library.tune(setting.products, M)
    if refusal == "the library refuses it":
        lt = install(SLOW, FAST, refused={1})
    else:
        lt = install(SLOW, replace(FAST, workspace=33 * 2**20))
    fresh = Setting(lt)
    with caplog.at_level(logging.WARNING):
        assert np.allclose(fresh.run(), fresh.expected()) and np.allclose(fresh.run(), fresh.expected())
    assert used(lt) == 0 and len(caplog.messages) == 1
    assert caplog.messages[0].startswith("layer 0: cuBLASLt refuses the algorithm kept for it in ")


def cut_algorithm(content: bytes) -> bytes:
    kept = msgspec.json.decode(content)
    kept["products"][0]["algorithm"] = "ab" * 63
    return msgspec.json.encode(kept)


@pytest.mark.parametrize(
    ("damage", "warnings"),
    [
        (lambda content: content[:-20], 1),
        (lambda content: b"", 1),
        (cut_algorithm, 1),
        (lambda content: content.replace(b'"rank"', b'"of another version"'), 1),
        (lambda content: content.replace(b"a fake GPU", b"a-fake-GPU"), 0),
    ],
    ids=["cut off", "empty", "half an algorithm", "another schema", "another GPU"],
)
def test_a_file_that_cannot_be_used_is_left_aside_and_written_anew(
    install: Install,
    damage: Callable[[bytes], bytes],
    warnings: int,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.library.tune(setting.products, M)
    (path,) = (tmp_path / "gemm").glob("*.json")
    path.write_bytes(damage(path.read_bytes()))
    lt = install(SLOW, FAST)
    fresh = Setting(lt)
    with caplog.at_level(logging.WARNING):
        fresh.run()
        fresh.run(m=M - 1)
    assert used(lt) == 0 and len(caplog.messages) == warnings
    fresh.library.tune(fresh.products, M)
    assert [known.gpu for known in known_algorithms()] == ["a fake GPU"]


def test_another_version_of_the_library_starts_afresh_and_leaves_the_old_entries(install: Install) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.library.tune(setting.products, M)
    lt = install(SLOW, FAST, version=130200)
    fresh = Setting(lt)
    fresh.run()
    assert used(lt) == 0
    fresh.library.tune(fresh.products, M)
    assert [known.library for known in known_algorithms()] == [130100, 130200]


def test_what_another_process_has_kept_in_the_meantime_survives(install: Install) -> None:
    lt = install(SLOW, FAST)
    one, other = Setting(lt), Setting(lt)
    for setting in (one, other):
        setting.run()  # has read the file
    one.library.tune(one.products, M)
    other.library.tune(other.products, 7)
    assert sorted(known.tuned.m for known in known_algorithms()) == [7, M]


def test_a_folder_that_cannot_be_written_is_a_warning_and_the_choice_holds(
    install: Install, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "gemm").write_text("a file where the folder should be")
    lt = install(SLOW, FAST)
    setting = Setting(lt)
    for m in (M, 7):
        setting.library.tune(setting.products, m)
    setting.run()
    assert used(lt) == 1 and "algorithms cannot be kept there" in caplog.text


@pytest.mark.parametrize(("m", "number"), [(48, 1), (33, 1), (32, 0), (49, 0)])
def test_timing_serves_fewer_rows_of_the_same_bucket(install: Install, m: int, number: int) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.library.tune(setting.products, 48)
    lt = install(SLOW, FAST)
    fresh = Setting(lt)
    assert np.allclose(fresh.run(m=m), fresh.expected(m=m))
    assert used(lt) == number


def test_of_two_larger_sizes_in_a_bucket_the_nearer_serves(install: Install) -> None:
    setting = Setting(install(SLOW, FAST, FakeAlgorithm(6.0)))
    setting.library.tune(setting.products, 48)
    again = Setting(install(SLOW, FAST))
    again.library.tune(again.products, 40)
    lt = install(SLOW, FAST, FakeAlgorithm(6.0))
    fresh = Setting(lt)
    fresh.run(m=41)
    fresh.run(m=39)
    assert [number for number, _ in lt.ran] == [2, 1]


def test_a_small_gain_is_used_only_where_it_was_measured(install: Install) -> None:
    setting = Setting(install(SLOW, FakeAlgorithm(9.6)))
    setting.library.tune(setting.products, 48)
    lt = install(SLOW, FakeAlgorithm(9.6))
    fresh = Setting(lt)
    fresh.run(m=47)
    fresh.run(m=48)
    assert [number for number, _ in lt.ran] == [0, 1]


def test_another_alignment_is_another_shape(install: Install) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.library.tune(setting.products, M)
    lt = install(SLOW, FAST)
    fresh = Setting(lt)
    shifted = replace(fresh.products[0], x=fresh.x.address + 4, x_stride=K)
    fresh.library.run(shifted, 40)
    fresh.stream.synchronize()
    assert used(lt) == 0


def test_what_x_holds_before_does_not_matter(install: Install) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.x.array(np.float32, ROOM * K)[:] = np.nan
    assert setting.library.tune(setting.products, M).rank == 1


def test_weights_that_hold_no_numbers_cannot_be_tuned(install: Install) -> None:
    setting = Setting(install(SLOW, FAST))
    setting.weights[0].array(np.float32, N * K)[3] = np.nan
    with pytest.raises(DeviceError, match=r"layer 0: \[48, 8\] by \[6, 8\] .* values that are no numbers"):
        setting.library.tune(setting.products, M)
    assert known_algorithms() == []


def test_a_first_proposal_that_fails_is_an_error(install: Install) -> None:
    setting = Setting(install(replace(SLOW, fails=True), FAST))
    with pytest.raises(DeviceError, match="layer 0: cuBLASLt could not multiply"):
        setting.library.tune(setting.products, M)


def test_no_proposal_is_an_error_that_names_the_product(install: Install) -> None:
    with pytest.raises(DeviceError, match="layer 0: cuBLASLt has no algorithm for"):
        Setting(install()).run()


def test_of_many_shapes_those_used_last_are_remembered(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "MOST_PREPARED", 3)
    lt = install(SLOW, FAST)
    setting = Setting(lt)
    live: list[int] = []
    for m in (1, 2, 3, 4, 5, 3, 6, 3, 1):
        assert np.allclose(setting.run(m=m), setting.expected(m=m))
        live.append(len(lt.live))
    assert live[2:] == [live[2]] * 7
    assert len(lt.asked) == 7, "the third shape was remembered, the first was not"


def test_everything_is_given_back(install: Install) -> None:
    lt = install(SLOW, FAST)
    setting = Setting(lt)
    setting.run()
    setting.library.tune(setting.products, M)
    setting.run(m=M - 1)
    operands = len(setting.weights) + len(setting.biases) + 3
    setting.library.close()
    assert lt.live == {} and len(lt.gpu.live) == operands


def test_a_library_that_does_not_know_its_version_is_let_go(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(lt: FakeCublasLt) -> int:
        raise RuntimeError("no such symbol")

    lt = install(SLOW)
    monkeypatch.setattr(FakeCublasLt, "get_version", fails)
    with pytest.raises(DeviceError, match=r"cannot be loaded \(no such symbol\)"):
        Setting(lt)
    assert lt.live == {}


def test_a_workspace_that_does_not_fit_leaves_nothing_behind(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(nbytes: int, what: str) -> None:
        raise DeviceError(f"no {nbytes} bytes for {what}")

    lt = install(SLOW)
    monkeypatch.setattr(lt.gpu, "alloc", full)
    with pytest.raises(DeviceError, match="the workspace of matrix products"):
        Setting(lt)
    assert lt.live == {}


@pytest.mark.parametrize(
    ("m", "rows"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (1537, 2048), (2048, 2048), (2049, 3072)]
)
def test_buckets_are_powers_of_two_and_their_halves_more(m: int, rows: int) -> None:
    assert bucket(m) == rows == bucket(rows)


def test_the_sizes_to_time_end_with_the_largest_step() -> None:
    assert buckets(64, 500) == [64, 96, 128, 192, 256, 384, 500]


def test_an_executor_tunes_the_products_of_a_step_and_then_answers_as_before(
    install: Install, tmp_path: Path
) -> None:
    gpu = clock_gpu()
    lt = install(SLOW, FAST, gpu=gpu)
    gpu.total = 2**28
    gpu.stream = lt.open_stream  # the executor's own
    device: Any = gpu
    options = LoadOptions(max_pages_total=8)
    with CudaExecutor(toy.toy_bundle(tmp_path / "toy"), toy.ToyCheckpoint(), device, options) as executor:
        prompts = toy.step([[5, 7, 9], [2, 4]], [3, 2], [[1], [2]])
        before = executor.logits(prompts)
        told: list[Any] = []
        (tuned,) = executor.tune_products(3, told.append)
        executor.logits(toy.step([[5, 7, 9]], [3], [[1]]))
        assert used(lt) == 1
        after = executor.logits(prompts)
    assert (tuned.m, tuned.shape.n, tuned.shape.k, tuned.rank) == (1, toy.VOCAB, toy.WIDTH, 1)
    assert told == [tuned]
    assert np.array_equal(before, after)


def test_a_decode_that_was_captured_takes_up_what_was_tuned_since(install: Install, tmp_path: Path) -> None:
    gpu = clock_gpu()
    lt = install(SLOW, FAST, gpu=gpu)
    gpu.total = 2**28
    gpu.stream = lt.open_stream
    device: Any = gpu
    options = LoadOptions(max_pages_total=8)
    with CudaExecutor(toy.toy_bundle(tmp_path / "toy"), toy.ToyCheckpoint(), device, options) as executor:

        def decode() -> set[int]:
            begin = len(lt.ran)
            executor.run(toy.step([[5]], [1], [[1, 2]]), toy.greedy(1)).tokens()
            for _ in range(5):
                executor.advance().tokens()
            return {number for number, *_ in lt.ran[begin:]}

        assert decode() == {0}
        executor.tune_products(1)
        assert decode() == {1}
