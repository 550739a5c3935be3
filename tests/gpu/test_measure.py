"""`bench` and `profile` on a real GPU, with the demo model: results are checked, and times add up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.recipes import Bundles, Recipe
from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.dtypes import relative_error
from infernum.lab.measure import latency
from infernum.lab.measure.against import language_model
from infernum.lab.measure.kernels import measure_kernels
from infernum.lab.measure.profile import profile
from infernum.lab.measure.shared_weights import tensors_on_gpu
from infernum.lab.measure.workload import chunk_batch, page_table
from infernum.models.presets import resolve
from infernum.runtime.layout import block_variant
from infernum.sampling_params import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

RECIPE = Recipe("dante", "bfloat16", True)
CONTEXT = 128


def names_of(bundle: Bundle, variant: str) -> list[tuple[str, str]]:
    """Block and name of every kernel of a step with the sampler `greedy`, in launch order.

    A prompt alone launches no kernel of the decodes beside it.
    """
    blocks = [*(stage.block for stage in bundle.manifest.program), "greedy"]
    kernels = [(b, kernel) for b in blocks for kernel in block_variant(bundle.manifest, b, variant).kernels]
    return [
        (b, kernel.name)
        for b, kernel in kernels
        if variant != "prefill" or not str(kernel.grid[0]).startswith("seqs if seqs > 1")
    ]


@pytest.mark.parametrize("variant", ["t1", "t8", "t64", "d128", "decode", "prefill"])
def test_every_kernel_is_measured_once_and_the_times_add_up_to_the_graph(
    bundles: Bundles, variant: str
) -> None:
    bundle = bundles.get(RECIPE)
    found = measure_kernels(
        bundle, None, lambda bundle, variant: None, variant=variant, context=CONTEXT, repeats=3
    )
    launched = names_of(bundle, variant)
    listed = [(row["block"], row["kernel"]) for row in found["kernels"]]
    assert sorted(listed) == sorted(set(launched))
    assert {(row["block"], row["kernel"]): row["layers"] for row in found["kernels"]} == {
        name: launched.count(name) for name in launched
    }
    total = sum(row["us"] * row["layers"] for row in found["kernels"])
    assert total == pytest.approx(1e3 * found["graph_ms"], rel=1e-6)
    assert math.isfinite(found["unaccounted_share"]) and found["ms_per_step"] > 0
    assert found["read_bandwidth_gb_s"] > 0 and found["flops_per_second"] > 0
    for row in found["kernels"]:
        assert row["alone_us"] >= row["floor_us"] * 0.5 or row["bytes"] < 50e6, (
            "faster than memory, twice over"
        )
    json.dumps(found, allow_nan=False)


def test_the_command_verifies_and_measures(infernum: Callable[..., Any], bundles: Bundles) -> None:
    folder = bundles.get(RECIPE).folder
    found = infernum("bench", "kernels", folder, "--context", str(CONTEXT), "--repeats", "2", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["variant"] == "t1"


def test_the_trace_names_exactly_the_kernels_that_are_launched(bundles: Bundles, tmp_path: Path) -> None:
    bundle = bundles.get(RECIPE)
    found = profile(bundle, None, prompt=70, tokens=3)
    kernels = [event for event in found["traceEvents"] if event.get("cat") == "kernel"]
    expected = [name for variant in ("prefill", "t1", "t1", "t1") for _, name in names_of(bundle, variant)]
    assert [event["name"] for event in kernels] == expected
    assert all(event["dur"] > 0 for event in kernels)
    steps = [event for event in found["traceEvents"] if event.get("cat") == "step"]
    assert [event["name"] for event in steps] == ["prompt", "token 1", "token 2", "token 3"]
    assert not any("note" in event["args"] for event in steps), "the host did not keep ahead of the GPU"


@pytest.mark.parametrize("batch", [1, 3])
def test_sampled_generations_are_checked_repeated_and_compared_with_greedy_ones(batch: int) -> None:
    sampling = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, seed=5)
    request = latency.LatencyRequest(
        resolve("dante"), "auto", prompt=70, tokens=40, batch=batch, seed=5, sampling=sampling, identical=3
    )
    found = latency.measure(request)
    assert found["identical_generations"] == 7
    assert found["greedy_ms_per_token"] > 0 and -0.5 < found["sampling_cost"] < 5
    assert 0 < found["error_against_unfused"] <= found["allowed_error"]
    json.dumps(found, allow_nan=False)


def test_torch_sees_the_very_weights_that_our_kernels_read(bundles: Bundles) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source, bundle = resolve("dante"), bundles.get(RECIPE)
    assert source.folder is not None
    checkpoint = Checkpoint.open(source.folder)
    request = latency.LatencyRequest(source, "auto", prompt=40, tokens=8)
    pages = page_table(1, 48, bundle.manifest.page_size, 0)
    tokens = np.arange(40, dtype=np.int32)
    with latency._open(request, bundle, checkpoint, pages) as executor:
        ours = executor.logits(chunk_batch(tokens, 0, pages))
        tensors = tensors_on_gpu(bundle.manifest, executor.weights_address)
        for name, tensor in tensors.items():
            assert tensor.dtype == torch.bfloat16 and tensor.is_cuda
            stored = torch.from_numpy(checkpoint.read(name).astype(np.float32)).to(torch.bfloat16)
            assert torch.equal(tensor.cpu(), stored), name
        model = language_model(source.config, tensors)
        with torch.no_grad():
            ids = torch.tensor(tokens[None].astype(np.int64), device="cuda")
            theirs = (
                model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, 0].float().cpu().numpy()
            )
        del model, tensors, tensor
    assert relative_error(theirs, ours) <= 0.1
