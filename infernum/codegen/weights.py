"""Work done once, when a checkpoint is loaded: stacked weights become one weight with a recipe."""

from __future__ import annotations

from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.kernel import LoadTime
from infernum.ir.op import Op
from infernum.recipes import Recipe, stack


def fold_weights(graph: Graph) -> Graph:
    """The graph with every stack of weights replaced by a weight whose recipe is the stack."""
    while True:
        stacked = next((n for n in graph.calls if _is_stack_of_weights(graph, n)), None)
        if stacked is None:
            return graph
        parts = [graph.node(v.node) for v in graph.operands(stacked.name)]
        role = Input("weight", stack(_recipe(part) for part in parts))
        merged = Node(graph.fresh(_merged_name([p.name for p in parts])), role, stacked.types)
        graph = graph.replaced([stacked.name], [(merged, [])], {Value(stacked.name): Value(merged.name)})


def _is_stack_of_weights(graph: Graph, node: Node) -> bool:
    if not isinstance(node.op, Op) or not isinstance(node.op.lowering, LoadTime):
        return False
    producers = [graph.node(v.node) for v in graph.operands(node.name)]
    return all(isinstance(p.op, Input) and p.op.role == "weight" for p in producers)


def _recipe(node: Node) -> Recipe:
    assert isinstance(node.op, Input) and node.op.recipe, f"%{node.name} is a weight made of nothing"
    return node.op.recipe


def _merged_name(names: list[str]) -> str:
    """`self_attn_q_proj`, `self_attn_k_proj`, `self_attn_v_proj` -> `self_attn_q_k_v_proj`."""
    words = [name.split("_") for name in names]
    head = _shared(words)
    tail = _shared([w[head:][::-1] for w in words])
    middles = ["_".join(w[head : len(w) - tail]) for w in words]
    first = words[0]
    return "_".join([*first[:head], *middles, *first[len(first) - tail :]])


def _shared(lists: list[list[str]]) -> int:
    """How many words the lists have in common at their start."""
    count = 0
    for words in zip(*lists, strict=False):
        if len(set(words)) > 1:
            break
        count += 1
    return count
