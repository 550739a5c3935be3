"""Whether the two graphs of a change mean the same: both are evaluated in NumPy, in float32 and in a half type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infernum import ops
from infernum.dtypes import F32, DType, round_to
from infernum.errors import ShapeError
from infernum.ir.graph import Graph, Input, Node, Value
from infernum.ir.op import Fused
from infernum.lab.verify.compare import row_errors
from infernum.lab.verify.rule_change import GraphPair
from infernum.lab.verify.rule_values import InputValues, RuleTrial
from infernum.lab.verify.values import smallest_normal

Array = np.ndarray[Any, Any]

CHUNK = 1 << 22
"""Elements of a weight that are held in float64 at a time."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave: the error in float32 and in the half type, and what is wrong, or None.

    `error` and `tolerance` belong to what is wrong, and to float32 where nothing is. `unusable`: the graph before
    could not be evaluated, and why.
    """

    error: float = 0.0
    tolerance: float = F32.tolerance
    half_error: float = 0.0
    wrong: str | None = None
    unusable: str | None = None


def compare(change: GraphPair, dtype: DType, half: DType, rounds: Sequence[RuleTrial]) -> Comparison:
    """Compare both graphs of a change, written for `dtype`, in float32 and in `half`, for each round of inputs."""
    mistyped = change.mistyped()
    if mistyped:
        return Comparison(math.inf, wrong=mistyped)
    worst = {F32: 0.0, half: 0.0}
    for measured in worst:
        typed = change.typed(dtype, measured)
        for chosen in rounds:
            found = _compare(typed, measured, chosen)
            if found.wrong or found.unusable:
                return found
            worst[measured] = max(worst[measured], found.error)
    return Comparison(worst[F32], half_error=worst[half])


def _compare(change: GraphPair, dtype: DType, chosen: RuleTrial) -> Comparison:
    values, states = InputValues(chosen), _states(change.before)
    try:
        wanted = _outcome(change.before, states, values)
    except Exception as error:
        return Comparison(unusable=_said(error))
    try:
        got = _outcome(change.after, states, values)
    except Exception as error:
        return Comparison(
            math.inf, dtype.tolerance, wrong=f"what it made cannot be evaluated: {_said(error)}"
        )
    worst = 0.0
    names = [*map(str, change.before.outputs), *(f"%{name}" for name in states)]
    for name, out, ref in zip(names, got, wanted, strict=True):
        error, place = _error(out, ref, dtype)
        if not error <= dtype.tolerance:
            return Comparison(error, dtype.tolerance, wrong=_sentence(name, error, place, dtype, chosen))
        worst = max(worst, error)
    return Comparison(worst)


def _sentence(name: str, error: float, place: str, dtype: DType, chosen: RuleTrial) -> str:
    size = place if math.isinf(error) else f"a relative error of {error:.2g}{place}, over {dtype.tolerance:g}"
    return f"{name} has {size} (in {dtype.long_name}, {chosen.tokens} token(s))"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _states(graph: Graph) -> list[str]:
    return [n.name for n in graph.inputs if isinstance(n.op, Input) and n.op.role == "state"]


def _outcome(graph: Graph, states: Sequence[str], values: InputValues) -> list[Array]:
    """The outputs, and what became of the states, which those keep that no call of the graph reads."""
    arrays = {node.name: values.of(node) for node in graph.inputs}
    for node in graph.inputs:
        _check_shape(node, 0, arrays[node.name], values.round)
    with np.errstate(all="ignore"):
        results = _evaluate(graph, arrays, values.round)
    return [*results, *(arrays[name] if name in arrays else values.made[name] for name in states)]


def _evaluate(graph: Graph, arrays: Mapping[str, Array], chosen: RuleTrial) -> list[Array]:
    """As `infernum.ir.interpret`, but products are summed in float64, and shapes must be the declared ones."""
    values: dict[Value, Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            values[Value(node.name)] = arrays[node.name]
            continue
        operands = [values[v] for v in graph.operands(node.name)]
        if isinstance(node.op, Fused):
            results = _evaluate(node.op.body, dict(zip(node.op.params, operands, strict=True)), chosen)
        elif node.op is ops.linear:
            results = [round_to(_product(operands[0], operands[1]), node.types[0].dtype)]
        else:
            results = node.op.evaluate(operands, node.attrs, node.types)
        for index, result in enumerate(results):
            _check_shape(node, index, result, chosen)
            values[Value(node.name, index)] = result
    return [values[v] for v in graph.outputs]


def _product(x: Array, weight: Array) -> Array:
    """x · weightᵀ summed in float64: stacked weights must not differ from single ones by the order of a sum."""
    rows = max(1, CHUNK // weight.shape[1])
    wide = x.astype(np.float64)
    blocks = [wide @ weight[i : i + rows].astype(np.float64).T for i in range(0, len(weight), rows)]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _check_shape(node: Node, index: int, array: Array, chosen: RuleTrial) -> None:
    wanted = chosen.facts.sizes(node.types[index])
    if array.shape != wanted:
        raise ShapeError(
            f"{Value(node.name, index)} is {node.types[index]}, and its array {list(array.shape)}"
        )


def _error(out: Array, ref: Array, dtype: DType) -> tuple[float, str]:
    """How wrong `out` is, and what to say of it: in float32 the largest relative error of a row, else the mean square.

    Infinite where one of two elements is no number.
    """
    if out.shape != ref.shape:
        return math.inf, f"the shape {list(out.shape)} instead of {list(ref.shape)}"
    if ref.dtype.kind in "iu":
        same = np.array_equal(out, ref)
        return (0.0, "") if same else (math.inf, "other integers")
    if np.array_equal(out, ref, equal_nan=True):
        return 0.0, ""
    for what, is_there in {"NaN": np.isnan, "+inf": np.isposinf, "-inf": np.isneginf}.items():
        differs = is_there(out) != is_there(ref)
        if differs.any():
            count = int(differs.sum())
            return math.inf, f"{what} in one of the two and not in the other, at {count} element(s)"
    width = ref.shape[-1] if ref.ndim else 1
    known = np.isfinite(ref)
    got, wanted = (np.where(known, array, 0).reshape(-1, width) for array in (out, ref))
    errors = row_errors(got, wanted, smallest_normal(dtype))
    if dtype is not F32:  # roundings of single rows scatter, all the more in short ones
        return float(np.sqrt(np.mean(np.square(errors)))), " on average"
    row = int(errors.argmax())
    return float(errors[row]), f" in row {row}"
