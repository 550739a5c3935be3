"""Rules for gated feed-forward layers (SwiGLU: Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Iterator

from infernum.fusion.linear import is_product, needs_gemv, not_weights, split_columns
from infernum.ir.block import Tensor
from infernum.ir.graph import Graph, Node
from infernum.ir.kernel import Target
from infernum.ir.op import Fused
from infernum.ir.rewrite import Site, absorb, rewrite
from infernum.ops import add, columns, linear, mul, silu, stack_rows


def _one_width(site: Site) -> str | None:
    gate, up = site.type("gate"), site.type("up")
    return None if gate == up else f"gate is {gate} and up {up}: stacked projections have one width"


def _weights_of_one_width(site: Site) -> str | None:
    return not_weights(site, "gate", "up") or _one_width(site)


def _biased_weights_of_one_width(site: Site) -> str | None:
    wrong = [
        f"{name} is {site.type(name)}" for name in ("gate_bias", "up_bias") if len(site.type(name).shape) != 1
    ]
    return _weights_of_one_width(site) or (f"{' and '.join(wrong)}, not a vector" if wrong else None)


@rewrite(
    why="Gate and up projections read their input once, and run as one product.", when=_weights_of_one_width
)
def merge_gate_up(x: Tensor, gate: Tensor, up: Tensor) -> Iterator[object]:
    yield mul(silu(linear(x, gate)), linear(x, up))
    g, u = split_columns(linear(x, stack_rows(gate, up)), [gate.shape[0], up.shape[0]])
    yield mul(silu(g), u)


@rewrite(why="The same, where both projections have a bias.", when=_biased_weights_of_one_width)
def merge_gate_up_bias(
    x: Tensor, gate: Tensor, up: Tensor, gate_bias: Tensor, up_bias: Tensor
) -> Iterator[object]:
    yield mul(silu(add(linear(x, gate), gate_bias)), add(linear(x, up), up_bias))
    g, u = split_columns(linear(x, stack_rows(gate, up)), [gate.shape[0], up.shape[0]])
    yield mul(silu(add(g, gate_bias)), add(u, up_bias))


def _bare_gemv(graph: Graph, node: Node, target: Target) -> str | None:
    """The epilogue combines columns of the sum itself: a product that adds something to it first has none to offer."""
    if isinstance(node.op, Fused) and node.op.body.node(node.op.body.outputs[0].node).op is not linear:
        ops = ", ".join(n.op.name for n in node.op.body.calls if n.op is not linear)
        return f"{node.name} applies {ops} to its sum already, and SwiGLU takes columns of the bare sum"
    return needs_gemv(graph, node, target)


def _halves(site: Site) -> str | None:
    attrs, width = site.match.attrs, site.type("y").width
    wanted = {"gate_start": 0, "gate_stop": width // 2, "up_start": width // 2, "up_stop": width}
    if width % 2 or any(attrs[name] != value for name, value in wanted.items()):
        gate, up = (f"{attrs[f'{n}_start']}:{attrs[f'{n}_stop']}" for n in ("gate", "up"))
        halves = "not its first and second half: stack gate before up"
        return f"gate is columns {gate} and up {up} of {site.type('y')}, {halves}"
    return None


@absorb(
    "epilogue",
    why="A gate and its up projection are summed side by side, so SwiGLU is applied before anything is written.",
    is_host=is_product,
    host=_bare_gemv,
    when=_halves,
)
def swiglu_into_gemv(y: Tensor, *, gate_start: int, gate_stop: int, up_start: int, up_stop: int) -> Tensor:
    return mul(silu(columns(y, start=gate_start, stop=gate_stop)), columns(y, start=up_start, stop=up_stop))


@absorb(
    "epilogue",
    why="The same, where gate and up have a bias, which is added in registers too.",
    is_host=is_product,
    host=_bare_gemv,
    when=_halves,
)
def biased_swiglu_into_gemv(
    y: Tensor,
    gate_bias: Tensor,
    up_bias: Tensor,
    *,
    gate_start: int,
    gate_stop: int,
    up_start: int,
    up_stop: int,
) -> Tensor:
    gate = add(columns(y, start=gate_start, stop=gate_stop), gate_bias)
    return mul(silu(gate), add(columns(y, start=up_start, stop=up_stop), up_bias))
