"""Whether two graphs mean the same: both are evaluated in NumPy, in float32 and in a half type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infernum import ops
from infernum.dtypes import BF16, F32, DType, round_to
from infernum.errors import ShapeError
from infernum.ir.graph import Graph, Input, Value
from infernum.ir.op import Fused
from infernum.lab.verify.compare import row_errors
from infernum.lab.verify.rule_firings import GraphPair
from infernum.lab.verify.rule_values import InputValues, RuleTrial
from infernum.lab.verify.values import Array, smallest_normal

CHUNK = 1 << 22
"""Elements of a weight that are held in float64 at a time."""


@dataclass(frozen=True)
class Comparison:
    """The errors in float32 and in the half type, and a sentence on what is wrong, or None.

    `error` and `tolerance` belong to what is wrong, and to float32 where nothing is. `unusable`: why the graph before
    could not be evaluated.
    """

    error: float = 0.0
    tolerance: float = F32.tolerance
    half_error: float = 0.0
    wrong: str | None = None
    unusable: str | None = None


def compare(pair: GraphPair, dtype: DType, trials: Sequence[RuleTrial]) -> Comparison:
    """Compare two graphs, written for `dtype`, in every trial: in float32 and in `dtype`, or bfloat16 for float32."""
    if mistyped := pair.mistyped():
        return Comparison(math.inf, wrong=mistyped)
    errors = {F32: 0.0, BF16 if dtype is F32 else dtype: 0.0}
    for measured in errors:
        typed = pair.typed(dtype, measured)
        for trial in trials:
            comparison = _compare(typed, measured, trial)
            if comparison.wrong or comparison.unusable:
                return comparison
            errors[measured] = max(errors[measured], comparison.error)
    in_f32, in_half = errors.values()
    return Comparison(in_f32, half_error=in_half)


def _compare(pair: GraphPair, dtype: DType, trial: RuleTrial) -> Comparison:
    values = InputValues(trial)
    states = [n.name for n in pair.before.inputs if isinstance(n.op, Input) and n.op.role == "state"]
    try:
        references = _outcome(pair.before, states, values)
    except Exception as error:
        return Comparison(unusable=f"{type(error).__name__}: {error}")
    try:
        results = _outcome(pair.after, states, values)
    except Exception as error:
        sentence = f"what it made cannot be evaluated: {type(error).__name__}: {error}"
        return Comparison(math.inf, dtype.tolerance, wrong=sentence)
    worst = 0.0
    names = [*map(str, pair.before.outputs), *(f"%{name}" for name in states)]
    for name, result, reference in zip(names, results, references, strict=True):
        error, where = _error(result, reference, dtype)
        if not error <= dtype.tolerance:
            relative = f"a relative error of {error:.2g}{where}, over {dtype.tolerance:g}"
            what = where if math.isinf(error) else relative
            sentence = f"{name} has {what} (in {dtype.long_name}, {trial.tokens} token(s))"
            return Comparison(error, dtype.tolerance, wrong=sentence)
        worst = max(worst, error)
    return Comparison(worst)


def _outcome(graph: Graph, states: Sequence[str], values: InputValues) -> list[Array]:
    """The outputs, and the states afterwards; a state that the graph lacks is unchanged."""
    arrays = {node.name: values.of(node) for node in graph.inputs}
    with np.errstate(all="ignore"):
        results = _evaluate(graph, arrays, values.trial)
    return [*results, *(arrays[name] if name in arrays else values.arrays[name] for name in states)]


def _evaluate(graph: Graph, arrays: Mapping[str, Array], trial: RuleTrial) -> list[Array]:
    """As `infernum.ir.interpret`, but products are summed in float64, and shapes must be the declared ones."""
    values: dict[Value, Array] = {}
    for node in graph.nodes:
        operands = [values[v] for v in graph.operands(node.name)]
        if isinstance(node.op, Input):
            results = [arrays[node.name]]
        elif isinstance(node.op, Fused):
            results = _evaluate(node.op.body, dict(zip(node.op.params, operands, strict=True)), trial)
        elif node.op is ops.linear:
            results = [round_to(_product(operands[0], operands[1]), node.types[0].dtype)]
        else:
            results = node.op.evaluate(operands, node.attrs, node.types)
        for index, (result, type_) in enumerate(zip(results, node.types, strict=True)):
            value = Value(node.name, index)
            if result.shape != trial.facts.sizes(type_):
                raise ShapeError(f"{value} is {type_}, and its array {list(result.shape)}")
            values[value] = result
    return [values[v] for v in graph.outputs]


def _product(x: Array, weight: Array) -> Array:
    """x · weightᵀ summed in float64: stacked weights must not differ from single ones by the order of a sum."""
    rows = max(1, CHUNK // weight.shape[1])
    wide = x.astype(np.float64)
    blocks = [wide @ weight[i : i + rows].astype(np.float64).T for i in range(0, len(weight), rows)]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _error(result: Array, reference: Array, dtype: DType) -> tuple[float, str]:
    """The error of a result, and words on it: in float32 the largest relative error of a row, else the mean square.

    Infinite where integers or shapes differ, or only one of two elements is NaN or infinite.
    """
    if result.shape != reference.shape:
        return math.inf, f"the shape {list(result.shape)} instead of {list(reference.shape)}"
    if np.array_equal(result, reference, equal_nan=reference.dtype.kind == "f"):
        return 0.0, ""
    if reference.dtype.kind in "iu":
        return math.inf, "other integers"
    for what, is_there in {"NaN": np.isnan, "+inf": np.isposinf, "-inf": np.isneginf}.items():
        differs = is_there(result) != is_there(reference)
        if differs.any():
            count = int(differs.sum())
            return math.inf, f"{what} in one of the two and not in the other, at {count} element(s)"
    width = reference.shape[-1] if reference.ndim else 1
    finite = np.isfinite(reference)
    rows, reference_rows = (np.where(finite, a, 0).reshape(-1, width) for a in (result, reference))
    errors = row_errors(rows, reference_rows, smallest_normal(dtype))
    if dtype is not F32:  # roundings of single rows scatter, all the more in short ones
        return float(np.sqrt(np.mean(np.square(errors)))), " on average"
    row = int(errors.argmax())
    return float(errors[row]), f" in row {row}"
