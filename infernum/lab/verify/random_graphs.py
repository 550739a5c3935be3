"""Random graphs of [tokens, width] values: some groups of ops are those that rules match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from infernum.dtypes import DType
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.trace import Tensor, Trace
from infernum.ops import add, cast, columns, flatten, heads, linear, mul, rms_norm, silu
from infernum.recipes import read

WIDTHS = (8, 16)
LARGEST = 8
"""Groups of ops in the largest graph."""

_T = TypeVar("_T")


class Maker:
    """Grows a graph of one element type; every choice is drawn from `rng`."""

    def __init__(self, rng: np.random.Generator, dtype: DType) -> None:
        self.rng, self.dtype, self.trace = rng, dtype, Trace(where=())
        self.values: list[Tensor] = []

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float = 0.5) -> bool:
        """True in that share of all cases."""
        return bool(self.rng.random() < share)

    def stream(self, type_: TensorType) -> Tensor:
        """A new input of the graph."""
        return self.trace.input(f"x{len(self.trace.entries)}", Input("stream"), type_)

    def weight(self, *shape: int) -> Tensor:
        """A new weight, one checkpoint tensor."""
        name = f"w{len(self.trace.entries)}"
        role = Input("weight", read(f"{name}.weight", *shape))
        return self.trace.input(name, role, TensorType(shape, self.dtype))

    def begin(self) -> None:
        """Two inputs to grow from."""
        types = [TensorType(("tokens", self.pick(WIDTHS)), self.dtype) for _ in range(2)]
        self.values += [self.stream(type_) for type_ in types]

    def like(self, value: Tensor) -> Tensor:
        """Some value of the same type, perhaps the same."""
        return self.pick([v for v in self.values if v.type == value.type])

    def grow(self) -> None:
        """Add a few ops that belong together."""
        self.values += self.pick(self.kinds())(self.pick(self.values))

    def kinds(self) -> list[Callable[[Tensor], list[Tensor]]]:
        """The ways to grow."""
        plain = [self.sum, self.product, self.silu, self.bias, self.scale, self.norm, self.linear, self.turn]
        return [*plain, self.halves, self.gate, self.three, self.residual, self.there_and_back, self.twice]

    def sum(self, x: Tensor) -> list[Tensor]:
        return [add(x, self.like(x))]

    def product(self, x: Tensor) -> list[Tensor]:
        return [mul(self.like(x), x)]

    def silu(self, x: Tensor) -> list[Tensor]:
        return [silu(x)]

    def bias(self, x: Tensor) -> list[Tensor]:
        vector = self.weight(width(x))
        return [add(x, vector) if self.chance() else add(vector, x)]

    def scale(self, x: Tensor) -> list[Tensor]:
        return [mul(x, self.weight(width(x)))]

    def norm(self, x: Tensor) -> list[Tensor]:
        return [rms_norm(x, self.weight(width(x)), eps=1e-5)]

    def linear(self, x: Tensor) -> list[Tensor]:
        return [linear(x, self.weight(self.pick(WIDTHS), width(x)))]

    def turn(self, x: Tensor) -> list[Tensor]:
        half = width(x) // 2
        turned, vector = heads(x, dim=half), self.weight(half)
        return [flatten(rms_norm(turned, vector, eps=1e-3) if self.chance() else add(turned, vector))]

    def halves(self, x: Tensor) -> list[Tensor]:
        half = width(x) // 2
        if half < 4:
            return []
        first, second = columns(x, start=0, stop=half), columns(x, start=half, stop=2 * half)
        if self.chance(0.3):
            first, second = add(first, self.weight(half)), add(self.weight(half), second)
        joined = self.pick(("gated", "added", "apart"))
        if joined == "apart":
            return [first, second]
        return [mul(silu(first), second) if joined == "gated" else add(first, second)]

    def gate(self, x: Tensor) -> list[Tensor]:
        inner = self.pick(WIDTHS)
        gate, up = (linear(x, self.weight(inner, width(x))) for _ in range(2))
        if self.chance():
            gate, up = add(gate, self.weight(inner)), add(self.weight(inner), up)
        return [mul(silu(gate), up)]

    def three(self, x: Tensor) -> list[Tensor]:
        products = [linear(x, self.weight(rows, width(x))) for rows in (16, 8, 8)]
        return [add(y, self.weight(width(y))) for y in products] if self.chance() else products

    def residual(self, x: Tensor) -> list[Tensor]:
        y = self.pick(self.values)
        total = add(x, linear(y, self.weight(width(x), width(y))))
        return [total, *(self.norm(total) if self.chance() else [])]

    def there_and_back(self, x: Tensor) -> list[Tensor]:
        wide = cast(x, to="f32")
        return [cast(silu(wide), to=self.dtype.name)]

    def twice(self, x: Tensor) -> list[Tensor]:
        if self.chance():
            return [silu(x), silu(x)]
        weight = self.weight(self.pick(WIDTHS), width(x))
        return [linear(x, weight), linear(x, weight)]


def width(value: Tensor) -> int:
    """The last dim of a value, which must be static."""
    last = value.shape[-1]
    assert isinstance(last, int), f"{value.type} has no static last dim"
    return last


def random_graph(seed: int, dtype: DType) -> Graph:
    """The random graph of a seed: the larger the seed, the more ops the graph tends to have, up to a limit.

    Its outputs are the value that was computed last and, in some graphs, earlier values.
    """
    maker = Maker(np.random.default_rng(seed), dtype)
    maker.begin()
    inputs = len(maker.values)
    for _ in range(1 + min(seed // 8, LARGEST - 1)):
        maker.grow()
    while len(maker.values) == inputs:
        maker.grow()
    computed = [v.value for v in maker.values[inputs:]]
    outputs = [maker.pick(computed) for _ in range(int(maker.rng.integers(3)))]
    ends = list(dict.fromkeys([*outputs, computed[-1]]))
    return Graph.build(f"random_{seed}", maker.trace.entries.values(), ends).live()
