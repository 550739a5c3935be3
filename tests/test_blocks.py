"""Blocks with settings, and layers of several kinds: one block is compiled for each kind, and no two share a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Tiny

from infernum import ops
from infernum.checkpoint import Checkpoint
from infernum.compiler import Options, emit_sources
from infernum.cpu.executor import CpuExecutor
from infernum.dtypes import BF16
from infernum.engine.engine import Engine
from infernum.errors import CompileError
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.ir.interface import weights_of
from infernum.models import llama, sampler
from infernum.models.presets import resolve
from infernum.recipes import Read
from infernum.rope import Rope

CFG = SimpleNamespace(hidden_size=64)


@block(x="tokens hidden_size")
def layer(
    x: Tensor,
    *,
    batch: BatchInputs,
    w: Weights,
    cfg: Any,
    kind: str = "full",
    window: object = None,
    gated: bool = False,
) -> Tensor:
    gain = ops.mul(x, w.tensor("gain", cfg.hidden_size))
    return ops.silu(gain) if kind == "full" else ops.add(gain, gain)


@block(x="tokens hidden_size")
def needs_a_kind(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any, kind: str) -> Tensor:
    return ops.silu(x) if kind == "full" else ops.add(x, x)


@block(x="tokens hidden_size")
def around(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return layer.of(kind="double")(x, batch=batch, w=w, cfg=cfg)


def line_of(declared: Block) -> str:
    return f"test_blocks.py:{declared.function.__code__.co_firstlineno}"


# ---- settings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kind": "sliding"}, "layer_sliding"),
        ({"window": 4096}, "layer_window_4096"),
        ({"window": 4096, "kind": "sliding"}, "layer_sliding_window_4096"),
        ({"gated": True}, "layer_gated"),
        ({"gated": False}, "layer_no_gated"),
        ({"window": None}, "layer_window_none"),
        ({}, "layer"),
    ],
)
def test_a_block_with_settings_is_named_after_them(settings: dict[str, Any], name: str) -> None:
    assert layer.of(**settings).name == name


VALUES = [
    -1,
    0.5,
    1e-05,
    1e16,
    1e-16,
    (1, 2),
    (12,),
    "a-b",
    "a_b",
    "",
    "ä",
    "x" * 41,
    Rope(),
    Rope(theta=5.0),
]


def test_any_value_gives_a_name_that_is_an_identifier_and_its_own() -> None:
    names = [layer.of(window=value).name for value in VALUES]
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and len(name) < 80 for name in names)
    assert len({name.lower() for name in names}) == len(VALUES)


def test_settings_given_one_after_the_other_are_the_same_as_given_together() -> None:
    together = layer.of(kind="double", window=8)
    assert layer.of(kind="double").of(window=8) == layer.of(window=8).of(kind="double") == together
    assert together.of(window=9).name == "layer_double_window_9"
    assert layer.of(kind="double") != layer.of(kind="full")


def test_the_function_receives_its_settings() -> None:
    graphs = {kind: layer.of(kind=kind).trace(CFG, BF16) for kind in ("full", "double")}
    assert [graph.name for graph in graphs.values()] == ["layer_full", "layer_double"]
    last = {kind: graph.calls[-1].op.name for kind, graph in graphs.items()}
    assert last == {"full": "silu", "double": "add"}
    assert layer.trace(CFG, BF16).calls[-1].op.name == "silu"


def test_a_block_with_settings_may_be_a_part_of_another() -> None:
    assert [node.op.name for node in around.trace(CFG, BF16).calls] == ["mul", "add"]


def test_a_setting_that_the_function_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(CompileError) as error:
        layer.of(knd="full")
    assert re.fullmatch(
        rf"test_blocks\.py:\d+: the block layer \({line_of(layer)}\) has no setting 'knd';"
        " its settings are: kind, window, gated",
        str(error.value),
    )
    with pytest.raises(CompileError, match="its settings are: none"):
        llama.embed.of(cfg=3)


@dataclass(frozen=True)
class Holder:
    """A dataclass that holds what has no name."""

    held: object


@pytest.mark.parametrize("value", [lambda: 3, object(), [1], {"a": 1}, Holder(object()), (print,)])
def test_a_setting_that_cannot_name_a_block_is_refused(value: object) -> None:
    with pytest.raises(
        CompileError, match=r"test_blocks.py:\d+: layer\.of\(window=…\) with .*: give a string"
    ):
        layer.of(window=value)


def test_a_block_whose_setting_is_missing_is_refused_where_it_is_declared() -> None:
    with pytest.raises(CompileError) as error:
        needs_a_kind.trace(CFG, BF16)
    assert str(error.value) == (
        f"{line_of(needs_a_kind)}: the block needs_a_kind needs a setting kind; give it by needs_a_kind.of(kind=…)"
    )
    assert needs_a_kind.of(kind="full").trace(CFG, BF16).calls


def test_a_configuration_may_have_other_beginnings_of_the_names_of_tensors() -> None:
    cfg = SimpleNamespace(**vars(CFG), tensor_beginnings={"model.": ("text.",)})
    (gain,) = weights_of(named.trace(cfg, BF16)).values()
    assert gain.recipe == Read(("model.layers.{layer}.part.gain", "text.layers.{layer}.part.gain"), (64,))


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def named(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
    return ops.mul(x, w.under("part.").tensor("gain", 64))


# ---- layers of several kinds


@block(x="tokens hidden_size", prefix="model.layers.{layer}.")
def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any, turn: str) -> Tensor:
    """Llama's layer. `turn` changes the order of the operands of a sum, and nothing of what it means."""
    normed = ops.rms_norm(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    a = llama.self_attention(normed, batch, w.under("self_attn."), cfg)
    x = ops.add(x, a) if turn == "even" else ops.add(a, x)
    h = ops.rms_norm(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=cfg.rms_norm_eps)
    return ops.add(x, llama.mlp(h, w.under("mlp."), cfg))


def layers(monkeypatch: pytest.MonkeyPatch, choose: Callable[[Any, int], Block], **changes: Any) -> None:
    """Let Llama have these layers."""
    family = replace(llama.FAMILY, layer=choose, **changes)
    monkeypatch.setattr("infernum.program.find_family", lambda name: family)


def test_each_kind_of_layer_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    from conftest import graphs_only

    model = tiny("llama32_tied")
    tokens = np.arange(1, 20).tolist()
    options = Options(dtype="float32", max_batch_tokens=64)
    source = resolve(str(model.folder))

    def logits(out: Path) -> Any:
        bundle = graphs_only(source, options, out)
        with CpuExecutor.open(bundle, Checkpoint.open(model.folder)) as executor:
            return bundle, Engine(executor, bundle.manifest.model).logits(tokens)

    _, expected = logits(tmp_path / "plain")
    layers(monkeypatch, lambda cfg, index: decoder.of(turn="even" if index % 2 == 0 else "odd"))
    bundle, by_kind = logits(tmp_path / "kinds")
    assert list(bundle.manifest.blocks) == [
        "embed",
        "decoder_even",
        "decoder_odd",
        "head",
        "greedy",
        "sample",
        "logprobs",
    ]
    names = [stage.block for stage in bundle.manifest.program]
    assert names == ["embed", "decoder_even", "decoder_odd", "decoder_even", "head"]
    assert (bundle.folder / "decoder_odd.t1.cu").is_file()
    np.testing.assert_array_equal(by_kind, expected)


def test_two_different_blocks_of_one_name_are_refused_with_both_definitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers(
        monkeypatch, lambda cfg, index: llama.decoder if index else replace(decoder, settings={"turn": "odd"})
    )
    with pytest.raises(CompileError) as error:
        emit_sources(resolve("dante"), Options(max_batch_tokens=1))
    line = llama.decoder.function.__code__.co_firstlineno
    assert str(error.value) == (
        f"two different blocks are called decoder: {line_of(decoder)} (turn='odd') and models/llama.py:{line};"
        " rename one, or bind what differs by Block.of, which names a block after its settings"
    )


def test_a_kind_that_is_called_as_another_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (replace(decoder.of(turn=turn), name="decoder_x") for turn in ("even", "odd"))
    layers(monkeypatch, lambda cfg, index: one if index else other)
    with pytest.raises(CompileError, match=r"called decoder_x: .*\(turn='odd'\) and .*\(turn='even'\)"):
        emit_sources(resolve("dante"), Options(max_batch_tokens=1))


@pytest.mark.parametrize("taken", [sampler.greedy, sampler.sample], ids=lambda block: block.name)
def test_a_block_that_is_called_as_a_sampler_is_refused(
    monkeypatch: pytest.MonkeyPatch, taken: Block
) -> None:
    mine = replace(llama.head, name=taken.name)
    layers(monkeypatch, llama.FAMILY.layer, last=mine)
    line = taken.function.__code__.co_firstlineno
    with pytest.raises(
        CompileError, match=rf"called {taken.name}: models/llama.*models/sampler\.py:{line}; rename"
    ):
        emit_sources(resolve("dante"), Options(max_batch_tokens=1))


def test_equal_blocks_of_one_name_are_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    layers(monkeypatch, lambda cfg, index: replace(llama.decoder))
    blocks = emit_sources(resolve("dante"), Options(max_batch_tokens=1)).blocks
    assert [b.stem for b in blocks] == [
        "embed.t1",
        "decoder.t1",
        "head.t1",
        "greedy.any",
        "sample.any",
        "logprobs.any",
    ]
