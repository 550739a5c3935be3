"""What `bench latency` measures and checks, on the NumPy executor: everything but the GPU's own time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny

from infernum.cli.bench_latency import rows
from infernum.cpu.executor import CpuExecutor
from infernum.errors import DeviceError, RequestError
from infernum.lab.measure import generation, latency, origin, subject
from infernum.lab.measure.bounds import Speeds
from infernum.lab.measure.checks import CHECKED_STEPS, drawable_weights
from infernum.models.presets import resolve
from infernum.sampling_params import SamplingParams

NAME = "llama31"
SAMPLING = SamplingParams(temperature=0.9, top_k=5, top_p=0.9, min_p=0.01, seed=7)


@pytest.fixture
def request_(tiny: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch) -> latency.LatencyRequest:
    """A request that NumPy serves, two sequences at once and the prompts in several steps."""
    case = tiny(NAME)

    def compiled(
        source: object, device: str, dtype: str, fuse: bool, *rest: object, **options: object
    ) -> object:
        return case.bundle(fuse=fuse, max_batch_tokens=50)

    def opened(request: latency.LatencyRequest, bundle: Any, weights: Any, pages: np.ndarray) -> CpuExecutor:
        length = request.prompt + request.tokens
        return CpuExecutor.open(bundle, weights, max_model_len=length, max_pages_total=pages.size)

    monkeypatch.setattr(subject, "compile_for", compiled)
    monkeypatch.setattr(latency, "_open", opened)
    monkeypatch.setattr(CpuExecutor, "weights_address", 4096, raising=False)
    monkeypatch.setattr(latency, "measure_speeds", lambda products_of: Speeds(4e12, None))
    gpu = type("Gpu", (), {"name": "an imagined GPU"})
    monkeypatch.setattr(
        origin, "describe", lambda: type("Facts", (), {"gpus": (gpu,), "cuda_version": "13.0"})
    )
    source = resolve(str(case.folder))
    return latency.LatencyRequest(source, "dummy", prompt=70, tokens=12, batch=2, repeats=2, dtype="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top-k", "5"), "give --temperature above 0"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--temperature", "1", "--top-p", "0"), "top_p is 0.0"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(
    infernum: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    found = infernum("bench", "latency", *options)
    assert found.code == 2 and message in found.err


@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_a_measurement_is_checked_and_says_what_it_was_made_with(
    request_: latency.LatencyRequest, load_format: str
) -> None:
    found = latency.measure(replace(request_, load_format=load_format))
    assert 0 <= found["error_against_unfused"] <= found["allowed_error"] < 1e-4
    assert found["ms_per_token"] > found["floor_ms_per_token"] > 0
    assert found["fraction_of_bound"] == found["floor_ms_per_token"] / found["ms_per_token"]
    assert len(found["ms_per_token_all"]) == 2
    for name in ("prompt_ms", "ms_per_token"):
        least, most = found[f"{name}_range"]
        assert least <= found[name] <= most
    assert found["identical_generations"] == 3
    assert found["sampling"] is None and "against" not in found
    assert found["gpu"] == "an imagined GPU"
    assert {"python", "numpy", "nvrtc"} <= set(found["versions"])


def test_no_number_is_given_when_the_logits_are_wrong(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = latency.prefilled_logits
    for wrong, message in ((np.float32(1.001), "differ"), (np.float32(np.nan), "not finite")):
        monkeypatch.setattr(latency, "prefilled_logits", lambda *given, by=wrong: right(*given) * by)
        with pytest.raises(DeviceError, match=message):
            latency.measure(request_)


def test_no_number_is_given_when_other_tokens_were_decoded(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = latency.decoded_logits
    monkeypatch.setattr(latency, "decoded_logits", lambda *given: -right(*given))
    with pytest.raises(DeviceError, match="other tokens than the most likely"):
        latency.measure(request_)


def test_sampling_is_timed_in_turns_with_greedy_decoding(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, ran = latency.generate, list[bool]()

    def noting(executor: Any, generation: Any, steps: Any, params: SamplingParams) -> latency.TimedGeneration:
        ran.append(params.greedy)
        found = right(executor, generation, steps, params)
        return replace(found, decode_seconds=1.0 if params.greedy else 1.25)

    monkeypatch.setattr(latency, "generate", noting)
    found = latency.measure(replace(request_, sampling=SAMPLING))
    assert ran[4:8] == [False, True, True, False]
    assert found["sampling_cost"] == pytest.approx(0.25)
    assert found["ms_per_token"] == pytest.approx(1.25 * found["greedy_ms_per_token"])
    assert found["sampling"] == {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 7}


def test_sampled_tokens_must_be_ones_that_the_sampler_may_draw(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = generation.drawn
    monkeypatch.setattr(
        generation, "drawn", lambda params, rows: drawn(replace(params, top_k=0, temperature=50.0), rows)
    )
    with pytest.raises(DeviceError, match="which top-k, top-p or min-p exclude"):
        latency.measure(replace(request_, sampling=replace(SAMPLING, top_k=1)))


def test_what_transformers_takes_is_kept_with_the_results_and_printed(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    theirs = {
        "name": "transformers",
        "how": "as fast as it can",
        "versions": {"torch": "2.11", "transformers": "5.17"},
        "prompt_ms": 12.3,
        "ms_per_token": 1.297,
        "speedup": 1.85,
        "prompt_speedup": 1.5,
        "error_against_ours": 0.02,
        "allowed_error": 0.1,
        "tokens_that_agree": 11,
        "cuda_graph_skips": 0,
    }
    monkeypatch.setattr(latency, "check_comparable", lambda config: None)
    monkeypatch.setattr(latency, "tensors_on_gpu", lambda manifest, base: {"base": base})
    monkeypatch.setattr(latency, "against_transformers", lambda *all_: given.extend(all_) or theirs)
    found = latency.measure(replace(request_, against="transformers", sampling=SAMPLING))
    assert found["against"] == theirs
    _, tensors, what, ours, (output, logits), places, allowed = given
    assert tensors == {"base": 4096} and what.prompts.shape == (2, 70) and allowed == found["allowed_error"]
    assert [1e3 * t.decode_seconds / 11 for t in ours] == found["greedy_ms_per_token_all"]
    assert output.shape == (2, 12) and logits.shape[:2] == (len(places), 2)
    printed = "\n".join(f"{name} {text}" for name, text in rows(found))
    for part in (
        "transformers 1.2970 ms a token, prompt 12.30 ms; torch 2.11",
        "1.85× a token",
        "top_k 5",
        "first 11",
    ):
        assert part in printed
    note = ("note", "torch made no CUDA graph of the compiled step: the comparison is not fair to it")
    assert note not in rows(found)
    assert note in rows(found | {"against": theirs | {"cuda_graph_skips": 1}})


def test_a_token_that_may_be_drawn_is_among_the_most_likely_and_above_the_thresholds() -> None:
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.2, 0.05], np.float32))

    def tokens(**params: Any) -> list[int]:
        return np.flatnonzero(
            drawable_weights(logits, SamplingParams(**{"temperature": 1.0, "top_p": 1.0} | params))
        ).tolist()

    assert tokens() == [0, 1, 2, 3, 4]
    assert tokens(top_k=2) == [0, 2]
    assert tokens(top_p=0.75) == [0, 2, 3]
    assert tokens(min_p=0.6) == [0, 2]
    assert tokens(min_p=0.6, temperature=100.0) == [0, 1, 2, 3, 4]


def test_generations_that_differ_are_found_and_named(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, count = latency.generate, iter(range(100))

    def one_is_other(*given: Any) -> latency.TimedGeneration:
        found = right(*given)
        if next(count) != 6:  # two to warm up, two that are timed, one that is checked, and then the second
            return found
        output = found.output.copy()
        output[1, 9:] += 1
        return replace(found, output=output)

    monkeypatch.setattr(latency, "generate", one_is_other)
    latency.measure(replace(request_, identical=1))
    count = iter(range(100))
    with pytest.raises(
        DeviceError, match=r"generation 5 gave other tokens .* sequence 1 differs from output token 9"
    ):
        latency.measure(replace(request_, identical=3))


def test_a_timed_generation_that_differs_from_the_checked_one_is_found(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, count = latency.generate, iter(range(100))
    monkeypatch.setattr(
        latency,
        "generate",
        lambda *given: replace(found := right(*given), output=found.output + (next(count) == 2)),
    )
    with pytest.raises(DeviceError, match="generation 2 gave other tokens"):
        latency.measure(request_)


def test_identical_generations_have_the_same_logits_bit_by_bit(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = latency.measure(replace(request_, identical=2, sampling=SAMPLING))
    assert found["identical_generations"] == 5
    right, count = latency.decoded_logits, iter(range(100))

    def last_bit(*given: Any) -> np.ndarray:
        logits = right(*given)
        if next(count) == 1:
            logits[-1, 0, 0] = np.nextafter(logits[-1, 0, 0], np.float32(np.inf))
        return logits

    monkeypatch.setattr(latency, "decoded_logits", last_bit)
    with pytest.raises(DeviceError, match="by other logits"):
        latency.measure(replace(request_, identical=1))


def test_only_rows_that_are_asked_for_have_logits(
    request_: latency.LatencyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    right = CpuExecutor.logits
    monkeypatch.setattr(
        CpuExecutor, "logits", lambda self, batch: computed.append(batch.rows) or right(self, batch)
    )
    latency.measure(request_)
    decoded, prefilled = (
        2 * CHECKED_STEPS,
        2 * (CHECKED_STEPS + 1),
    )  # of two chunks of 50, the first asks for none
    assert sum(computed) == decoded + prefilled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 0}, "--prompt is 0"),
        ({"tokens": 2}, "--tokens is 2"),
        ({"repeats": 0}, "--repeats"),
        ({"identical": -1}, "--identical is -1"),
        ({"prompt": 600}, "more than the context of 512"),
        ({"batch": 100}, "--batch is 100"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(
    request_: latency.LatencyRequest, change: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        latency.measure(replace(request_, **change))


def test_the_bound_counts_every_weight_once_and_of_the_embedding_a_row(tiny: Callable[[str], Tiny]) -> None:
    case = tiny(NAME)
    config = case.case.config
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim
    layer = attention + 3 * hidden * wide + 2 * hidden
    weights = config["num_hidden_layers"] * layer + hidden + vocab * hidden + 2 * hidden
    read = latency.bytes_per_token(case.bundle(), batch=2, mean_context=100)
    assert read["weights"] == 4 * weights
    assert read["kv"] == 4 * 2 * 100 * config["num_hidden_layers"] * 2 * kv_heads * dim


def test_the_bound_counts_of_the_cache_what_windows_leave(tiny: Callable[[str], Tiny]) -> None:
    case = tiny("gemma3_text")
    config = case.case.config
    row = 4 * 2 * config["num_key_value_heads"] * config["head_dim"]
    sliding = config["num_hidden_layers"] // config["sliding_window_pattern"]
    full, window = config["num_hidden_layers"] - sliding, config["sliding_window"]
    assert sliding and full and window < 100
    read = latency.bytes_per_token(case.bundle(), batch=2, mean_context=100)
    assert read["kv"] == 2 * row * (full * 100 + sliding * window)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_the_bandwidth_kernel_compiles_without_spills(arch: str, tmp_path: Path) -> None:
    from infernum.codegen.nvrtc import compile_cuda
    from infernum.codegen.templates import render
    from infernum.lab.measure.read_bandwidth import NAME as KERNEL
    from infernum.lab.measure.read_bandwidth import THREADS, UNROLL

    source = render(KERNEL, {"name": KERNEL, "THREADS": THREADS, "UNROLL": UNROLL}, arch=90)
    cubin = compile_cuda(source, name=f"{KERNEL}.cu", arch=arch, cache=tmp_path)
    assert cubin.kernels[KERNEL].spill_bytes == 0
