"""The trials of a unit: one step, one kind of values, and what the results should be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import infernum.ops  # noqa: F401 - fills the registry
from infernum.codegen.places import Place
from infernum.ir.graph import Node
from infernum.ir.op import Fused, Op
from infernum.lab.verify.facts import Chunks, Facts, ragged_step
from infernum.lab.verify.operands import operands_of
from infernum.lab.verify.units import Unit
from infernum.lab.verify.values import KINDS, LARGE, Kind, largest_number

Array = np.ndarray[Any, Any]

_TELLING = 1 << 22
"""Elements of an operand by which it is told from another."""


@dataclass(frozen=True)
class Trial:
    """One step with one kind of values: operands and expected results of a unit, in the order of its node."""

    facts: Facts
    kind: Kind
    operands: list[Array] = field(repr=False)
    expected: list[Array] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.facts}, {self.kind}"


def trials(unit: Unit, chunks: Chunks, kinds: Iterable[Kind] = KINDS, again: int = 0) -> Iterator[Trial]:
    """The trials of a unit in one step, but for kinds that make the same operands as an earlier one.

    "large" is also left out where nothing large has a finite result. `again`: other numbers for every other value.
    """
    seed = [*(n for chunk in chunks for n in chunk), unit.graph.order.index(unit.node.name), again]
    facts = ragged_step(chunks, unit.bundle.manifest.model.vocab_size, np.random.default_rng(seed))
    weights: dict[Place, Array] = {}
    seen: set[bytes] = set()
    for kind in kinds:
        for factor in _factors(unit, kind):
            operands = operands_of(unit, facts, kind, factor, seed, weights)
            mark = _fingerprint(operands)
            if mark in seen:
                break
            expected = _finite_meaning(unit, operands) if kind == "large" else meaning(unit.node, operands)
            if expected is not None:
                seen.add(mark)
                yield Trial(facts, kind, operands, expected)
                break


def _factors(unit: Unit, kind: Kind) -> Sequence[float]:
    if kind != "large":
        return (1.0,)
    floats = [place.type.dtype for place in unit.program.operands if place.type.dtype.is_float]
    if not floats:
        return (1.0,)
    narrowest = min(floats, key=lambda dtype: LARGE[dtype.name][0])
    return tuple(2.0**exponent for exponent in LARGE[narrowest.name])


def _fingerprint(operands: Sequence[Array]) -> bytes:
    """What tells operands apart, bit by bit: −0 from 0, and NaN from nothing. Large ones repeat themselves."""
    digest = hashlib.blake2b()
    for array in operands:
        digest.update(array.reshape(-1)[:_TELLING].tobytes())
    return digest.digest()


def _finite_meaning(unit: Unit, operands: Sequence[Array]) -> list[Array] | None:
    """What a unit's results should be; None where something within overflows, or a result is near to it."""
    try:
        with np.errstate(over="raise"):
            expected = meaning(unit.node, operands)
    except FloatingPointError:
        return None
    assert isinstance(unit.node.op, Op | Fused)
    for i, (result, type_) in enumerate(zip(expected, unit.node.types, strict=True)):
        if not type_.dtype.is_float or i in unit.node.op.in_place:
            continue  # the cache is NaN where it was never written
        if not float(np.abs(result).max(initial=0)) <= largest_number(type_.dtype) / 2:
            return None
    return expected


def meaning(node: Node, operands: Sequence[Array]) -> list[Array]:
    """What a node's results should be. The operands are not changed."""
    op = node.op
    assert isinstance(op, Op | Fused)
    overwritten = set(op.in_place.values())
    given = [array.copy() if slot in overwritten else array for slot, array in enumerate(operands)]
    return op.evaluate(given, node.attrs, node.types)
