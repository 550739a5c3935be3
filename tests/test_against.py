"""What `--against transformers` builds, on the CPU: transformers over our weights says what our executor says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock_gpu import clock_gpu, described_toy, open_clocked
from conftest import Tiny
from fake_gpu import FakeGpu, at
from toy_bundle import ToyCheckpoint

from infernum import dtypes
from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.errors import DeviceError, RequestError
from infernum.lab.measure import against
from infernum.lab.measure.checks import checked_places, decoded_logits
from infernum.lab.measure.generation import GREEDY_PARAMS, Generation, generate
from infernum.lab.measure.shared_weights import shared_tensors
from infernum.lab.measure.workload import page_table, random_prompts
from infernum.models.presets import resolve
from infernum.runtime.weights import fill_weights
from infernum.weights.plan import plan_weights

PROMPT, TOKENS, BATCH = 20, 9, 2
STORED = {"float32": "float32", "bfloat16": "int16"}
"""What NumPy calls elements of a dtype that torch can take from it."""


def wrap_on_host(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    """As `wrap_on_gpu`, for memory of the host: bfloat16 goes in as integers and is viewed."""
    import torch

    name = dtypes.dtype(dtype).long_name
    return torch.from_numpy(at(address, STORED[name], *shape)).view(getattr(torch, name))


class Case:
    """A tiny model whose weights lie on a fake GPU as the runtime lays them out, and its generation in NumPy."""

    def __init__(self, tiny: Tiny, dtype: str) -> None:
        bundle = tiny.bundle(dtype=dtype)
        self.config = resolve(str(tiny.folder)).config
        checkpoint = Checkpoint.open(tiny.folder)
        gpu, plan = FakeGpu({}, total=2**26), plan_weights(bundle.manifest)
        self.memory = gpu.alloc(plan.total_bytes, "the weights")
        device: Any = gpu
        fill_weights(plan, checkpoint, self.memory.address, device, device.stream())
        self.tensors = shared_tensors(bundle.manifest, self.memory.address, wrap_on_host)
        prompts = random_prompts(BATCH, PROMPT, self.config.vocab_size, 0)
        pages = page_table(BATCH, PROMPT + TOKENS, bundle.manifest.page_size, 0)
        self.generation = Generation(prompts, pages, TOKENS)
        self.places = checked_places(TOKENS)
        executor = CpuExecutor.open(
            bundle, checkpoint, max_model_len=PROMPT + TOKENS, max_pages_total=pages.size
        )
        with executor:
            self.ours = generate(executor, self.generation, self.generation.steps(executor), GREEDY_PARAMS)
            self.logits = decoded_logits(executor, self.generation, self.ours.output, self.places)

    def against(
        self, allowed: float, compiled: Callable[[Any], Any] = lambda forward: forward
    ) -> dict[str, Any]:
        return against.against_transformers(
            self.config,
            self.tensors,
            self.generation,
            [self.ours] * 3,
            (self.ours.output, self.logits),
            self.places,
            allowed,
            compiled,
        )


@pytest.fixture
def case(tiny: Callable[[str], Tiny]) -> Callable[[str, str], Case]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return lambda name, dtype: Case(tiny(name), dtype)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["llama31", "all_biases", "head_80_mha_tied"])
def test_transformers_over_our_weights_gives_our_logits_and_tokens(
    case: Callable[[str, str], Case], name: str
) -> None:
    found = case(name, "float32").against(2e-5)
    assert found["error_against_ours"] <= 2e-5
    assert found["tokens_that_agree"] == TOKENS
    assert len(found["prompt_ms_all"]) == len(found["ms_per_token_all"]) == 3
    assert found["speedup"] > 0 and set(found["versions"]) == {"torch", "transformers"}


@pytest.mark.filterwarnings("default")
def test_bfloat16_weights_are_viewed_and_the_step_compiles_once_as_one_graph(
    case: Callable[[str, str], Case],
) -> None:
    import torch

    graphs: list[int] = []

    def one_graph(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    tiny = case("stored_bfloat16", "bfloat16")
    assert {tensor.dtype for tensor in tiny.tensors.values()} == {torch.bfloat16}
    found = tiny.against(
        0.03, lambda forward: torch.compile(forward, backend=one_graph, fullgraph=True, dynamic=False)
    )
    assert len(graphs) == 1
    assert 0 < found["error_against_ours"] <= 0.03


@pytest.mark.filterwarnings("default")
def test_no_number_is_given_when_transformers_says_something_else(case: Callable[[str, str], Case]) -> None:
    tiny = case("llama31", "float32")
    name = "model.layers.0.self_attn.k_proj.weight"
    tiny.tensors[name] = tiny.tensors[name] * 1.01
    with pytest.raises(DeviceError, match="logits of transformers differ from ours"):
        tiny.against(2e-5)


@pytest.mark.filterwarnings("default")
def test_parameters_are_our_memory_and_none_is_missing(case: Callable[[str, str], Case]) -> None:
    tiny = case("all_biases", "float32")
    model = against.language_model(tiny.config, tiny.tensors)  # type: ignore[arg-type]
    low, high = tiny.memory.address, tiny.memory.address + tiny.memory.nbytes
    assert all(low <= parameter.data_ptr() < high for parameter in model.parameters())
    assert all(buffer.device.type == "cpu" for buffer in model.buffers())
    del tiny.tensors["model.norm.weight"]
    with pytest.raises(RequestError, match=r"disagree about \['model.norm.weight'\]"):
        against.language_model(tiny.config, tiny.tensors)  # type: ignore[arg-type]


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("llama").config
    monkeypatch.setattr(against, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs torch and transformers.*pip install torch transformers"):
        against.check_comparable(config)
    monkeypatch.setattr(against, "find_spec", lambda name: object())
    monkeypatch.setattr(against.importlib.metadata, "version", lambda name: "2.11.0+cpu")
    with pytest.raises(RequestError, match="built for CPUs"):
        against.check_comparable(config)
    monkeypatch.setattr(against.importlib.metadata, "version", lambda name: "2.11.0+cu130")
    against.check_comparable(config)
    for base in (object, type(config)):
        other: Any = object.__new__(type("Other", (base,), {"model_type": "other"}))
        with pytest.raises(RequestError, match="compares llama, not other"):
            against.check_comparable(other)


def test_agreement_ends_where_any_sequence_differs() -> None:
    ours = np.arange(12, dtype=np.int32).reshape(2, 6)
    theirs = ours.copy()
    assert against.tokens_that_agree(theirs, ours) == 6
    theirs[1, 4] = theirs[0, 5] = 99
    assert against.tokens_that_agree(theirs, ours) == 4


def test_the_weights_lie_at_the_address_that_the_executor_names(tmp_path: Path) -> None:
    bundle = described_toy(tmp_path)
    with open_clocked(clock_gpu(), bundle) as executor:
        tensors = shared_tensors(
            bundle.manifest,
            executor.weights_address,
            lambda address, shape, dtype: at(address, "float32", *shape).copy(),
        )
    stored = ToyCheckpoint().tensors
    assert tensors.keys() == stored.keys()
    assert all(np.array_equal(tensors[name], stored[name]) for name in stored)
