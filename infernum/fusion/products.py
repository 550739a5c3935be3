"""Matrix products of one input become one product of stacked weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate

from infernum.dtypes import DType
from infernum.fusion.examples import PRODUCTS
from infernum.ir.block import Tensor
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.host import columns_of, has_epilogue, is_pointwise
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Candidate, Examples, place_of, rewritten
from infernum.ops import add, columns, linear, stack_rows


@dataclass(frozen=True)
class MergeProducts:
    """Stacks the weights of products that read one value, however many they are, in one firing.

    - Products whose results meet in pointwise ops, such as those of a gate and its up projection, make a product of
      their own: its epilogue can then combine them.
    - Of the others, those with a bias make one product and those without another. The biases are stacked too.
    - A product whose kernel absorbs the pointwise ops that read its result stays by itself.
    """

    name: str = "merge_products"
    why: str = "Products of one input read it once, and run as one kernel."
    examples: Examples = PRODUCTS

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        if node.op is not linear:
            return
        readers = [graph.node(name) for name, slot in graph.users(graph.operands(node.name)[0]) if slot == 0]
        products = [_Product(graph, reader) for reader in readers if reader.op is linear]
        if len(products) < 2 or products[0].node is not node:
            return
        for product in products:
            if product.obstacle:
                yield Candidate(product.node.name, product.obstacle, lambda: graph)
        groups = _groups([p for p in products if not p.obstacle], target)
        if groups:
            names = [name for group in groups for product in group for name in product.names]
            yield Candidate(place_of(graph, names), None, lambda: self._merged(graph, groups))

    def _merged(self, graph: Graph, groups: Sequence[Sequence[_Product]]) -> Graph:
        for group in groups:
            inputs = [group[0].x, *(p.weight for p in group), *(p.bias for p in group if p.bias)]
            names = frozenset(name for p in group for name in p.names)
            sizes = [p.node.types[0].width for p in group]
            stacked = partial(_stacked, sizes=sizes, out=group[0].node.attrs.get("out", ""))
            graph = rewritten(graph, names, inputs, [p.result for p in group], stacked, self.name)
        return graph


def _stacked(x: Tensor, *weights: Tensor, sizes: Sequence[int], out: str) -> tuple[Tensor, ...]:
    """A product with all weights, and the biases behind them where there are any, taken apart by columns."""
    biases = weights[len(sizes) :]
    merged = linear(x, stack_rows(*weights[: len(sizes)]), out=out)
    merged = add(merged, stack_rows(*biases)) if biases else merged
    ends = list(accumulate(sizes))
    return tuple(columns(merged, start=end - size, stop=end) for end, size in zip(ends, sizes, strict=True))


class _Product:
    """A product of the graph. `result` is what may be sliced: behind the bias, where one can be stacked."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node
        self.x, self.weight = graph.operands(node.name)
        self.result, self.bias, self.names = Value(node.name), None, (node.name,)
        readers = graph.readers(self.result)
        if [n.op for n in readers] != [add] or graph.is_output(self.result):
            return
        sum_ = Value(readers[0].name)
        bias = next((v for v in graph.operands(sum_.node) if v != self.result), self.result)
        if (
            graph.is_weight(bias)
            and len(graph.type(bias).shape) == 1
            and not any(map(is_pointwise, graph.readers(sum_)))
        ):
            self.result, self.bias, self.names = sum_, bias, (node.name, sum_.node)

    @property
    def obstacle(self) -> str | None:
        """Why the product cannot be merged with any other."""
        if not self.graph.is_weight(self.weight):
            return f"{self.weight} is computed in each step: only weights are stacked when a checkpoint is loaded"
        if self.graph.is_output(self.result):
            return f"{self.result} is an output of the block, which columns of a merged product cannot be"
        return None

    @property
    def types(self) -> tuple[DType, DType]:
        """The types of the weight and of the result, which products that are merged have in common."""
        return self.graph.type(self.weight).dtype, self.node.types[0].dtype

    @cached_property
    def reached(self) -> list[set[str]]:
        """For each slice of the result, or the whole, the pointwise ops that are computed from it by such ops alone."""
        slices = [Value(n.name) for n in self.graph.readers(self.result) if columns_of(n, self.node.types[0])]
        return [_reached(self.graph, value) for value in slices or [self.result]]


def _reached(graph: Graph, value: Value) -> set[str]:
    reached: set[str] = set()
    todo = [value]
    while todo:
        names = {n.name for n in graph.readers(todo.pop()) if is_pointwise(n)} - reached
        reached |= names
        todo += map(Value, names)
    return reached


def _groups(products: Sequence[_Product], target: Target) -> list[list[_Product]]:
    """Products that are merged, group by group, each of two or more."""
    joined: list[tuple[set[str], list[_Product]]] = []
    for product in products:
        reached, group = set[str]().union(*product.reached), [product]
        for other in [each for each in joined if each[0] & reached]:
            joined.remove(other)
            reached, group = reached | other[0], [*other[1], *group]
        joined.append((reached, group))
    groups: dict[object, list[_Product]] = {}
    for reached, group in joined:
        first = group[0]
        if len(group) > 1:
            for product in group:
                groups.setdefault((first.node.name, product.types), []).append(product)
        elif len(first.reached) == 1 and not (reached and has_epilogue(first.graph, first.node, target)):
            groups.setdefault((first.types, first.bias is None), []).append(first)
    return [group for group in groups.values() if len(group) > 1]


merge_products = MergeProducts()
