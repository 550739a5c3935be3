"""What `bench latency` measures and checks, on the NumPy executor: everything but the GPU's own time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny

from infernum.cpu.executor import CpuExecutor
from infernum.errors import DeviceError, RequestError
from infernum.measure import latency, origin
from infernum.models.presets import resolve

NAME = "llama31"


class NoDevice:
    """Stands for the GPU whose bandwidth is measured."""

    @staticmethod
    def open() -> NoDevice:
        return NoDevice()

    def close(self) -> None:
        pass


@pytest.fixture
def request_(tiny: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch) -> latency.Request:
    """A request that NumPy serves, two sequences at once and the prompts in several steps."""
    case = tiny(NAME)

    def compiled(request: latency.Request, *, fuse: bool, progress: object) -> object:
        return case.bundle(fuse=fuse, max_batch_tokens=50)

    def opened(request: latency.Request, bundle: Any, weights: Any, pages: np.ndarray) -> CpuExecutor:
        length = request.prompt + request.tokens
        return CpuExecutor.open(bundle, weights, max_model_len=length, max_pages_total=pages.size)

    monkeypatch.setattr(latency, "_compile", compiled)
    monkeypatch.setattr(latency, "_open", opened)
    monkeypatch.setattr(latency, "Device", NoDevice)
    monkeypatch.setattr(latency, "measure_read_bandwidth", lambda device: 4e12)
    gpu = type("Gpu", (), {"name": "an imagined GPU"})
    monkeypatch.setattr(
        origin, "describe", lambda: type("Facts", (), {"gpus": (gpu,), "cuda_version": "13.0"})
    )
    source = resolve(str(case.folder))
    return latency.Request(source, "dummy", prompt=70, tokens=12, batch=2, repeats=2, dtype="float32")


@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_a_measurement_is_checked_and_says_what_it_was_made_with(
    request_: latency.Request, load_format: str
) -> None:
    found = latency.measure(replace(request_, load_format=load_format))
    assert 0 <= found["error_against_unfused"] <= found["allowed_error"] < 1e-4
    assert found["ms_per_token"] > found["floor_ms_per_token"] > 0
    assert found["fraction_of_bound"] == found["floor_ms_per_token"] / found["ms_per_token"]
    assert len(found["ms_per_token_all"]) == 2
    assert found["gpu"] == "an imagined GPU"
    assert {"python", "numpy", "nvrtc"} <= set(found["versions"])


def test_no_number_is_given_when_the_logits_are_wrong(
    request_: latency.Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = latency._prefilled_logits
    for wrong, message in ((np.float32(1.001), "differ"), (np.float32(np.nan), "not finite")):
        monkeypatch.setattr(latency, "_prefilled_logits", lambda *given, by=wrong: right(*given) * by)
        with pytest.raises(DeviceError, match=message):
            latency.measure(request_)


def test_no_number_is_given_when_other_tokens_were_sampled(
    request_: latency.Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = latency._decoded_logits
    monkeypatch.setattr(latency, "_decoded_logits", lambda *given: -right(*given))
    monkeypatch.setattr(latency, "relative_error", lambda out, ref: 0.0)
    with pytest.raises(DeviceError, match="other tokens"):
        latency.measure(request_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 0}, "--prompt is 0"),
        ({"tokens": 2}, "--tokens is 2"),
        ({"repeats": 0}, "--repeats"),
        ({"prompt": 600}, "more than the context of 512"),
        ({"batch": 100}, "--batch is 100"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(
    request_: latency.Request, change: dict[str, int], message: str
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


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_the_bandwidth_kernel_compiles_without_spills(arch: str, tmp_path: Path) -> None:
    from infernum.codegen.nvrtc import compile_cuda
    from infernum.codegen.templates import render
    from infernum.measure.read_bandwidth import NAME as KERNEL
    from infernum.measure.read_bandwidth import THREADS, UNROLL

    source = render(KERNEL, {"name": KERNEL, "THREADS": THREADS, "UNROLL": UNROLL}, arch=90)
    cubin = compile_cuda(source, name=f"{KERNEL}.cu", arch=arch, cache=tmp_path)
    assert cubin.kernels[KERNEL].spill_bytes == 0
