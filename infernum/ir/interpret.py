"""The living definition of a graph: evaluate it in NumPy, op by op."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infernum.ir.graph import Graph, Input, Value


def interpret(graph: Graph, inputs: Mapping[str, np.ndarray], *, batched: bool = False) -> list[np.ndarray]:
    """The graph's outputs for the given inputs, by input name.

    Floating arrays are float32 holding values that the declared type can store; every result is rounded to its own
    type. State inputs (the KV cache) are updated in place, as on the GPU. `batched`: as of `Op.evaluate`.
    """
    values: dict[Value, np.ndarray] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            values[Value(node.name)] = inputs[node.name]
            continue
        operands = [values[v] for v in graph.operands(node.name)]
        for index, result in enumerate(node.op.evaluate(operands, node.attrs, node.types, batched=batched)):
            values[Value(node.name, index)] = result
    return [values[v] for v in graph.outputs]
