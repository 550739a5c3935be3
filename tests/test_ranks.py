"""Models that are divided among ranks, which run in lockstep in NumPy: what they compute is what one computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from oracle.golden import relative_error
from test_families import MODEL_TYPES, TINY, small

from infernum import LLM, SamplingParams
from infernum.bundle import open_bundle
from infernum.dtypes import BF16
from infernum.errors import CompileError, DeviceError, ShapeError
from infernum.graph_bundle import describe_graphs, trace_model
from infernum.ir.block import BatchInputs, Tensor, Weights, block
from infernum.ir.interpret import interpret
from infernum.ir.text import parse_graph, print_graph
from infernum.models import gemma
from infernum.models.presets import resolve
from infernum.ops import add, dense, gathered, linear, sum_ranks
from infernum.program import read_program
from infernum.recipes import Rank, Share, read, shape_of
from infernum.weights.plan import plan_weights

SAME = 5e-6
"""Largest relative error between the logits of several ranks and of a single one: their sums run in another order."""

EIGHT_HEADS = TINY | {
    "vocab_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 32,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
"""Two key heads, which 4 and 8 ranks have copies of. A bias behind a sum must be added once."""

OF_A_TYPE: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.22, "attention_multiplier": 0.25, "logits_scaling": 16.0},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    "mistral": {"sliding_window": 24},
}
UNKNOWN = {
    "attention_bias": ("mistral", "ministral", "mistral3", "ministral3", "qwen2", "phi3"),
    "mlp_bias": ("mistral", "ministral", "mistral3", "ministral3", "qwen2", "qwen3", "phi3", "gemma"),
}
ALL_TYPES = [*MODEL_TYPES, *gemma.FAMILY.model_types]
TOKENS = np.random.default_rng(3).integers(2, 96, 70).tolist()


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a small model with eight heads, and with biases where the model type may have them."""
    fields: dict[str, Any] = EIGHT_HEADS | OF_A_TYPE.get(model_type, {}) | changes
    for name, types in UNKNOWN.items():
        if any(model_type.startswith(each) for each in types):
            fields[name] = ...
    return small(model_type, **fields)


def written(folder: Path, fields: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def of_ranks(model: Path, ranks: int, **options: Any) -> LLM:
    return LLM(model, "cpu", "float32", load_format="dummy", tensor_parallel_size=ranks, **options)


@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_logits_of_several_ranks_are_those_of_one(model_type: str, tmp_path: Path) -> None:
    """Of every family, with the same weights; a prompt longer than a page and than a window."""
    model = written(tmp_path / "model", config(model_type))
    with of_ranks(model, 1) as alone:
        expected = alone.logits(TOKENS)
    assert np.std(expected) > 0.01
    for ranks in (2, 4, 8):
        with of_ranks(model, ranks) as llm:
            assert llm.bundle.manifest.ranks == ranks
            assert relative_error(llm.logits(TOKENS), expected) < SAME, ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_demo_says_the_same_on_several_ranks(ranks: int) -> None:
    prompts = ["Midway upon the journey of our life", "In the middle"]
    params = [
        SamplingParams(temperature=0, max_tokens=24),
        SamplingParams(temperature=1.0, seed=5, max_tokens=24),
    ]
    answers = []
    for size in (1, ranks):
        with LLM("dante", "cpu", "float32", tensor_parallel_size=size) as llm:
            answers.append([completion.text for completion in llm.generate(prompts, params)])
    assert answers[0] == answers[1]


def test_a_rank_holds_its_part_of_the_weights_and_the_cache(tmp_path: Path) -> None:
    """Norms and the embedding are whole on each rank, and the tied head is stored as part of the embedding."""
    source = resolve(str(written(tmp_path / "model", config("llama", attention_bias=False, mlp_bias=False))))
    whole = describe_graphs(source)
    for ranks in (2, 4, 8):
        manifest = trace_model(source, tmp_path / f"of-{ranks}", ranks=ranks).manifest
        embedding, layers = 96 * 256, 4
        norms = 256 * (2 * layers + 1)
        attention = 2 * 256 * 256 // ranks + 2 * 64 * 256 // min(ranks, 2)
        expected = embedding + norms + layers * (attention + 3 * 256 * 512 // ranks)
        for index in range(ranks):
            assert abs(plan_weights(manifest, index).total_bytes - 4 * expected) < 256 * 9 * layers
        (cache,) = manifest.blocks["decoder"]["any"].state
        assert cache.shape == ["pages", 2, max(2 // ranks, 1), 64, 32]
    assert plan_weights(whole).total_bytes > 4 * (96 + 4 * (2 * 256 + 2 * 64 + 3 * 512)) * 256


def test_every_rank_has_its_own_part_and_ranks_with_one_key_head_the_same() -> None:
    recipe = Share(read("k", 4, 2), 0, heads=2)
    assert [shape_of(recipe, ranks) for ranks in (1, 2, 4, 8)] == [(4, 2), (2, 2), (2, 2), (2, 2)]
    from infernum.weights.values import values

    class Counted:
        names = frozenset({"k"})

        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return np.arange(8).reshape(4, 2)[start:stop]

    firsts = [int(values(recipe, Counted(), Rank(index, 4))[0, 0]) for index in range(4)]  # pyright: ignore
    assert firsts == [0, 0, 4, 4]


WRONG_SIZES = {
    3: r"q_proj\.weight: axis 0 of \[256, 256\] does not divide among 3 GPUs; .* divides among 2, 4, 8 GPUs",
    0: "among 1 to 8 GPUs of one host",
    9: "among 1 to 8 GPUs of one host",
    -2: "among 1 to 8 GPUs of one host",
}


@pytest.mark.parametrize("ranks", WRONG_SIZES)
def test_a_number_of_ranks_that_does_not_divide_is_refused_with_those_that_do(
    ranks: int, tmp_path: Path
) -> None:
    source = resolve(str(written(tmp_path / "model", config("llama"))))
    with pytest.raises(CompileError, match=rf"^--tensor-parallel-size {ranks}: .*{WRONG_SIZES[ranks]}"):
        read_program(source, "auto", 64, ranks)


def test_heads_are_not_cut(tmp_path: Path) -> None:
    """Of 6 query heads and 3 key heads, 2 ranks would have one and a half of the latter."""
    fields = config("llama", num_attention_heads=6, num_key_value_heads=3, intermediate_size=768)
    source = resolve(str(written(tmp_path / "model", fields)))
    with pytest.raises(
        CompileError, match=r"k_proj\.weight: 3 heads do not .*; model divides among 3, 6 GPUs$"
    ):
        read_program(source, "auto", 64, 2)


def test_a_vocabulary_that_does_not_divide_is_whole_on_every_rank(tmp_path: Path) -> None:
    model = written(tmp_path / "model", config("llama", vocab_size=97))
    with of_ranks(model, 1) as alone, of_ranks(model, 2) as llm:
        assert relative_error(llm.logits(TOKENS), alone.logits(TOKENS)) < SAME
        head = llm.bundle.read("head.traced.ir").decode()
    assert "gather_ranks" not in head and "share" not in head


@block(x="tokens hidden_size")
def undivided(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return add(x, dense(x, w, "o_proj", cfg.hidden_size))


@block(x="tokens hidden_size")
def divided(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    h = dense(x, w, "up_proj", 4 * cfg.hidden_size, bias=True, shard="rows")
    return add(x, dense(h, w, "down_proj", cfg.hidden_size, bias=True, shard="columns"))


CFG = SimpleNamespace(hidden_size=8)


def test_a_block_that_divides_nothing_has_one_graph_for_any_number_of_ranks() -> None:
    assert print_graph(undivided.trace(CFG, BF16, 4)) == print_graph(undivided.trace(CFG, BF16))
    assert print_graph(divided.trace(CFG, BF16, 1)) == print_graph(divided.trace(CFG, BF16))


def test_the_graph_of_a_rank_reads_back_from_its_text() -> None:
    text = print_graph(divided.trace(CFG, BF16, 4))
    assert 'share("down_proj.weight" [8, 32], 1)' in text and "sum_ranks(%linear_2) {ranks = 4" in text
    assert print_graph(parse_graph(text)) == text


def test_a_single_rank_is_interpreted_beside_others_with_its_values() -> None:
    graph = divided.trace(CFG, BF16, 4)
    draw = np.random.default_rng(1)
    inputs = {
        node.name: draw.standard_normal([2 if d == "tokens" else d for d in node.types[0].shape])
        for node in graph.inputs
    }
    inputs = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    (found,) = interpret(graph, inputs)
    h = inputs["x"] @ inputs["up_proj"].T + inputs["up_proj_bias"]
    expected = inputs["x"] + 4 * (h @ inputs["down_proj"].T) + inputs["down_proj_bias"]
    assert relative_error(found, expected) < 0.02


def test_partial_sums_are_float32_and_columns_of_ranks_make_a_whole() -> None:
    @block(x="tokens hidden_size")
    def sums_too_early(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return sum_ranks(linear(x, w.tensor("o", 8, 8)), ranks=2, out="bf16")

    @block(x="tokens hidden_size")
    def gathers_too_much(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        return gathered(x, 12)

    with pytest.raises(ShapeError, match="8 columns of a rank do not make 12"):
        gathers_too_much.trace(CFG, BF16, 2)
    with pytest.raises(Exception, match="partial sums are float32"):
        sums_too_early.trace(CFG, BF16, 2)


def test_a_bundle_of_ranks_says_so_and_its_kernels_add_what_follows_a_sum(
    tmp_path: Path, infernum: Callable[..., Outcome]
) -> None:
    """A layer for one token has seven kernels: five as on one GPU, and two that sum over ranks."""
    model, out = written(tmp_path / "model", config("llama", dtype="bfloat16")), tmp_path / "bundle"
    made = infernum("compile", model, "--tensor-parallel-size", "2", "--arch", "sm_90a", "-o", out)
    assert made.code == 0, made.err
    decoder = open_bundle(out).manifest.blocks["decoder"]["t1"]
    summing = [k for k in decoder.kernels if k.template == "sum_ranks"]
    assert [k.ops for k in summing] == [["sum_ranks", "add", "add"]] * 2 and len(decoder.kernels) == 7
    assert "sm_90a, 2 ranks, bf16" in infernum("inspect", out).out
    assert "one of 2 ranks" in infernum("explain", out).out
    verified = infernum("verify", out, "--rule", "into_epilogue")
    assert verified.code == 0 and "exchange words with other ranks are left out" in verified.err


def test_models_are_listed_with_the_memory_of_each_gpu(infernum: Callable[..., Outcome]) -> None:
    """A model of 123 B parameters, which no GPU of 141 GB holds, fits two."""
    whole, halves = (
        {preset["name"]: preset for preset in json.loads(done.out)["presets"]}
        for done in (
            infernum("models", "--json"),
            infernum("models", "--json", "--tensor-parallel-size", "2"),
        )
    )
    large, half = whole["mistral-large-123b"], halves["mistral-large-123b"]
    assert 122e9 < large["parameters"] < 123e9 and large["weight_bytes"] > 141e9
    assert half["weight_bytes"] < 0.503 * large["weight_bytes"]
    assert 2 * half["kv_bytes_per_token"] == large["kv_bytes_per_token"]
    assert halves["gemma-3-1b"]["kv_bytes_per_token"] == whole["gemma-3-1b"]["kv_bytes_per_token"], (
        "one key head"
    )
    thirds = infernum("models", "--tensor-parallel-size", "3").out
    assert "on each of 3 GPUs" in thirds and "llama-3.1-8b" not in thirds
    refused = infernum("models", "--tensor-parallel-size", "9")
    assert refused.code == 2 and "1 to 8 GPUs of one host" in refused.err


def test_a_gpu_refuses_several_ranks_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infernum.llm.choose_device", lambda device: "cuda")
    with pytest.raises(DeviceError, match=r"^--tensor-parallel-size 2: .*--device cpu"):
        LLM("dante", tensor_parallel_size=2)
