"""A graph flattened, once for many steps, to the list of op calls that interpret it.

The meaning is that of `infernum.ir.interpret`: each op's NumPy function, with its results rounded to their types.
Rounding is left out only where it changes nothing: a result that is a view of an operand, or is written in place into
an operand, is rounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from infernum.dtypes import DType, round_to
from infernum.ir.fuse import decomposed
from infernum.ir.graph import Graph, Value
from infernum.ir.kernel import View
from infernum.ir.op import Op

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _RoutineCall:
    """One op call. `rounded[i]` is the type that result i is rounded to, None where it needs no rounding.

    `last_reads` are the registers that no later call reads. A `collective` call reads the operands of all ranks.
    """

    meaning: Callable[..., Any]
    operands: tuple[int, ...]
    attrs: Mapping[str, Any]
    results: tuple[int, ...]
    rounded: tuple[DType | None, ...]
    last_reads: tuple[int, ...]
    collective: bool

    def write(self, values: list[Any], out: Any) -> None:
        """Write what the call has returned to its registers, and forget what no later call reads."""
        results = cast("tuple[Array, ...]", out if isinstance(out, tuple) else (out,))
        for register, result, dtype in zip(self.results, results, self.rounded, strict=True):
            values[register] = result if dtype is None else round_to(np.asarray(result), dtype)
        for register in self.last_reads:
            values[register] = None


class Routine:
    """A graph that is ready to run. Values live in numbered registers, and fused nodes are split into their ops."""

    def __init__(self, graph: Graph) -> None:
        flat = decomposed(graph)
        registers: dict[Value, int] = {}
        for node in flat.nodes:
            for index in range(max(1, len(node.types))):
                registers[Value(node.name, index)] = len(registers)
        self.inputs = {node.name: registers[Value(node.name)] for node in flat.inputs}
        self._count = len(registers)
        self._outputs = tuple(registers[value] for value in flat.outputs)
        outlasting = {*self._outputs, *self.inputs.values()}
        reads = [[registers[v] for v in flat.operands(node.name)] for node in flat.calls]
        last = {register: place for place, operands in enumerate(reads) for register in operands}
        steps: list[_RoutineCall] = []
        for place, (node, operands) in enumerate(zip(flat.calls, reads, strict=True)):
            op = node.op
            assert isinstance(op, Op), "a decomposed graph holds primitive ops only"
            results = tuple(registers[Value(node.name, i)] for i in range(len(node.types)))
            rounded = tuple(_rounding(op, i, t.dtype) for i, t in enumerate(node.types))
            done = tuple(s for s in dict.fromkeys(operands) if last[s] == place and s not in outlasting)
            steps.append(
                _RoutineCall(op.meaning, tuple(operands), node.attrs, results, rounded, done, op.collective)
            )
        self._segments = _segments(steps)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The graph's outputs. Inputs are by name, as for `interpret`; extra ones are ignored.

        Overflow and NaN raise no warning, as on a GPU: the sampler returns `NO_TOKEN` for such a row.
        """
        return self.run_ranks([inputs])[0]

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def run_ranks(self, inputs: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
        """The graph's outputs on each rank, from the inputs of each.

        Each rank runs up to the next collective call, which then takes the operands of all.
        """
        ranks: list[list[Any]] = [[None] * self._count for _ in inputs]
        for values, arrays in zip(ranks, inputs, strict=True):
            for name, register in self.inputs.items():
                values[register] = arrays[name]
        for calls, collective in self._segments:
            for values in ranks:
                for call in calls:
                    call.write(values, call.meaning(*[values[r] for r in call.operands], **call.attrs))
            if collective is not None:
                operands = [np.stack([values[r] for values in ranks]) for r in collective.operands]
                out = collective.meaning(*operands, **collective.attrs)
                for values in ranks:
                    collective.write(values, out)
        return [[values[register] for register in self._outputs] for values in ranks]


def _segments(calls: Sequence[_RoutineCall]) -> list[tuple[tuple[_RoutineCall, ...], _RoutineCall | None]]:
    """The calls in front of each collective call, with that call; behind the last one there is none."""
    segments: list[tuple[tuple[_RoutineCall, ...], _RoutineCall | None]] = []
    first = 0
    for place, call in enumerate(calls):
        if call.collective:
            segments.append((tuple(calls[first:place]), call))
            first = place + 1
    return [*segments, (tuple(calls[first:]), None)]


def _rounding(op: Op, result: int, dtype: DType) -> DType | None:
    if result in op.in_place or isinstance(op.lowering, View):
        return None
    return dtype
