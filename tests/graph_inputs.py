"""Random arrays for the inputs of a graph, and for those of the same graph after rules have stacked its weights."""

from __future__ import annotations

import numpy as np

from infernum.dtypes import round_to
from infernum.ir.block import PAGE
from infernum.ir.graph import Graph, Input
from infernum.recipes import Stack

Arrays = dict[str, np.ndarray]


def step(tokens: int) -> tuple[dict[str, int], Arrays]:
    """Sizes and facts of a step: one sequence, or two of which the first begins near the end of a page."""
    lengths = [tokens] if tokens < 2 else [tokens // 2, tokens - tokens // 2]
    starts = (PAGE - 2, 3)[: len(lengths)]
    positions = np.concatenate([np.arange(n) + start for n, start in zip(lengths, starts, strict=True)])
    facts = {
        "positions": positions,
        "sequence": np.repeat(np.arange(len(lengths)), lengths),
        "query_start": np.cumsum([0, *lengths]),
        "page_table": np.arange(3 * len(lengths))[::-1].reshape(len(lengths), 3),
        "output_rows": np.cumsum(lengths) - 1,
        "lengths": np.repeat(np.add(starts, lengths), lengths),
    }
    sizes = {
        "tokens": tokens,
        "seqs": len(lengths),
        "rows": len(lengths),
        "max_pages": 3,
        "context_pages": 64,
        "pages": 3 * len(lengths),
    }
    return sizes, {name: array.astype(np.int32) for name, array in facts.items()}


def random_inputs(graph: Graph, tokens: int = 3, seed: int = 7) -> Arrays:
    """Random numbers that the declared types can store, and facts of a step that fit together."""
    rng = np.random.default_rng(seed)
    sizes, facts = step(tokens)
    made: Arrays = {}
    for node in graph.inputs:
        if node.name in facts:
            made[node.name] = facts[node.name]
            continue
        shape = [d if isinstance(d, int) else sizes[d] for d in node.types[0].shape]
        scale = (
            shape[-1] ** -0.5 if len(shape) == 2 and isinstance(node.op, Input) and node.op.recipe else 1.0
        )
        numbers = rng.standard_normal(shape) * scale
        made[node.name] = round_to(numbers.astype(np.float32), node.types[0].dtype)
    return made


def copied(inputs: Arrays) -> Arrays:
    """The same arrays anew: ops that write in place change theirs."""
    return {name: array.copy() for name, array in inputs.items()}


def stacked(graph: Graph, before: Graph, inputs: Arrays) -> Arrays:
    """The inputs of `before` as inputs of `graph`, whose weights may be stacks of those of `before`."""
    parts = {n.op.recipe: inputs[n.name] for n in before.inputs if isinstance(n.op, Input) and n.op.recipe}
    made: Arrays = {}
    for node in graph.inputs:
        assert isinstance(node.op, Input)
        if node.name in inputs:
            made[node.name] = inputs[node.name].copy()
        else:
            assert isinstance(node.op.recipe, Stack)
            made[node.name] = np.concatenate([parts[part] for part in node.op.recipe.of])
    return made
