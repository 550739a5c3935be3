"""Ops and blocks as a plugin would declare them, for which no rule of the package was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from infernum import ops
from infernum.codegen.templates import add_folder
from infernum.ir.block import BatchInputs, Block, Tensor, Weights, block
from infernum.ir.kernel import Prologue
from infernum.ir.op import OPS, Op, elements, op, pointwise
from infernum.models.config import add_family, families
from infernum.models.family import Family
from infernum.models.llama import LlamaConfig, embed, head
from infernum.ops import norm
from infernum.rope import Rope

FOLDER = Path(__file__).parent
"""Where the include file of `offset_norm` is found."""


@pointwise("{x} + {y} + {z}")
def add_three(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x + y + z."""
    return x + y + z


@op(
    infer=norm.norm_types,
    kernels=[norm.NORM],
    prologue=Prologue("OffsetNorm", "offset_norm.cuh"),
    flops=lambda call: f"5 * {elements(call.operands['x'])}",
)
def offset_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """Each row scaled to unit root-mean-square, then by 1 + weight."""
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * (1.0 + weight)


OWN = {each.name: OPS.pop(each.name) for each in (add_three, offset_norm)}
"""The ops above, which are known by name only where a test adds them to the others."""


def geglu(h: Tensor, w: Weights, cfg: Any) -> Tensor:
    """A feed-forward layer that is gated by a GELU, its result times 0.22."""
    gate = ops.gelu_tanh(ops.dense(h, w, "gate_proj", cfg.intermediate_size))
    up = ops.dense(h, w, "up_proj", cfg.intermediate_size)
    return ops.scale(ops.dense(ops.mul(gate, up), w, "down_proj", cfg.hidden_size), by=0.22)


def swiglu(h: Tensor, w: Weights, cfg: Any) -> Tensor:
    gate = ops.silu(ops.dense(h, w, "gate_proj", cfg.intermediate_size))
    up = ops.dense(h, w, "up_proj", cfg.intermediate_size)
    return ops.dense(ops.mul(gate, up), w, "down_proj", cfg.hidden_size)


def attention(
    h: Tensor,
    batch: BatchInputs,
    w: Weights,
    cfg: Any,
    *,
    norms: Sequence[tuple[Op, float] | None] = (None, None),
    ropes: Sequence[Rope | None] = (Rope(), Rope()),
    biased: str = "",
) -> Tensor:
    """Self-attention. Queries and keys are normalised by an op and its eps, and turned by a rope, each of them or not.

    `biased` names the projections that have a bias: some of q, k and v.
    """
    dim, kv_heads = cfg.head_dim, cfg.num_key_value_heads
    counts = {"q": cfg.num_attention_heads, "k": kv_heads, "v": kv_heads}
    rows = {
        name: ops.heads(ops.dense(h, w, f"{name}_proj", count * dim, bias=name in biased), dim=dim)
        for name, count in counts.items()
    }
    for name, of_heads, by_rope in zip("qk", norms, ropes, strict=True):
        if of_heads:
            by, eps = of_heads
            rows[name] = by(rows[name], w.tensor(f"{name}_norm.weight", dim), eps=eps)
        if by_rope:
            rows[name] = ops.turn(rows[name], batch, by_rope)
    facts = batch.positions, batch.sequence, batch.page_table
    kv = ops.append(batch.kv(kv_heads, dim), rows["k"], rows["v"], *facts)
    facts = batch.positions, batch.sequence, batch.query_start, batch.page_table
    return ops.dense(
        ops.flatten(ops.attention(rows["q"], kv, *facts, scale=dim**-0.5)), w, "o_proj", cfg.hidden_size
    )


def layer(by: Op = ops.rms_norm, mlp: Any = swiglu, **settings: Any) -> Block:
    """A decoder layer with a norm of its own, a feed-forward layer, and settings of `attention`."""

    @block(x="tokens hidden_size", prefix="model.layers.{layer}.")
    def decoder(x: Tensor, *, batch: BatchInputs, w: Weights, cfg: Any) -> Tensor:
        h = by(x, w.tensor("input_layernorm.weight", cfg.hidden_size), eps=1e-5)
        x = ops.add(x, attention(h, batch, w.under("self_attn."), cfg, **settings))
        h = by(x, w.tensor("post_attention_layernorm.weight", cfg.hidden_size), eps=1e-5)
        return ops.add(x, mlp(h, w.under("mlp."), cfg))

    return decoder


@dataclass(frozen=True)
class NormedConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_normed"


@dataclass(frozen=True)
class UnturnedConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_unturned"


@dataclass(frozen=True)
class GegluConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_geglu"


@dataclass(frozen=True)
class NeighboursConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_neighbours"


@dataclass(frozen=True)
class PositionConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_position"


@dataclass(frozen=True)
class LongConfig(LlamaConfig):
    model_type: ClassVar[str] = "composed_long"


def turning(rope: Rope, **settings: Any) -> Block:
    """A layer whose queries and keys are turned by `rope`."""
    return layer(ropes=(rope, rope.of_keys), **settings)


def long_rope(pairs: int, **settings: Any) -> Rope:
    """A LongRoPE of so many pairs, whose short sequences have up to five tokens."""
    short, long = tuple(1 + i / pairs for i in range(pairs)), tuple(2.0 + i for i in range(pairs))
    numbers = {
        "original_max_position": 5,
        "attention_factor": 1.19,
        "short_factor": short,
        "long_factor": long,
    }
    return Rope("longrope", **numbers, **settings)


NEIGHBOURS = Rope(partial=0.5, interleaved=True, attention_factor=1.3)
BY_POSITION = Rope("yarn", factor=4.0, original_max_position=3, attention_factor=1.14, beta=0.1)
LAYERS: dict[type[LlamaConfig], Block] = {
    NormedConfig: layer(norms=((ops.rms_norm, 1e-6), (ops.rms_norm, 1e-3)), biased="qk"),
    UnturnedConfig: layer(norms=(None, (offset_norm, 1e-6)), ropes=(None, None)),
    GegluConfig: layer(offset_norm, geglu),
}
"""The layers of three families with the settings of a Llama: queries and keys normalised, not turned, and a GeGLU."""


TURNED: dict[type[LlamaConfig], Block] = {
    NeighboursConfig: turning(NEIGHBOURS, norms=((ops.rms_norm, 1e-6), (ops.rms_norm, 1e-3))),
    PositionConfig: turning(BY_POSITION, norms=((ops.rms_norm, 1e-6), (ops.rms_norm, 1e-6))),
    LongConfig: turning(long_rope(36, partial=0.75)),  # heads of 96
}
"""The layers of three families that turn heads by ropes unlike Llama's."""


def register() -> None:
    """Make the ops, the include file and the families known, as loading a plugin does."""
    OPS.update(OWN)
    add_folder(FOLDER)
    for config, made in (LAYERS | TURNED).items():
        if config.model_type not in families():
            add_family(
                Family(configs=(config,), first=embed, layer=lambda cfg, i, made=made: made, last=head)
            )
