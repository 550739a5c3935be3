"""The trials of a unit: one step, one kind of values, and the results that NumPy gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

import infernum.ops  # noqa: F401 - fills the registry
from infernum.codegen.places import Place
from infernum.ir.graph import Node
from infernum.ir.op import Fused, Op
from infernum.lab.verify.facts import Chunks, Facts, ragged_step
from infernum.lab.verify.operands import OperandSource
from infernum.lab.verify.units import Unit
from infernum.lab.verify.values import KINDS, LARGE, Array, Kind, largest_number

_COMPARED = 1 << 16
"""Elements of an operand that its fingerprint covers, spread over all of it."""


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
    """The trials of a unit in one step, without kinds that give the same operands as an earlier kind.

    No trial is "large" where no large operands have a finite result. `again` is part of the seed of all values.
    """
    seed = [*(n for chunk in chunks for n in chunk), unit.graph.order.index(unit.node.name), again]
    facts = ragged_step(chunks, unit.bundle.manifest.model.vocab_size, np.random.default_rng(seed))
    weights: dict[Place, Array] = {}
    seen: set[bytes] = set()
    for kind in kinds:
        for factor in _factors(unit, kind):
            rng = np.random.default_rng([*seed, 1])
            operands = OperandSource(unit, facts, kind, factor, weights, rng).operands()
            fingerprint = _fingerprint(operands)
            if fingerprint in seen:
                break
            expected = _finite_meaning(unit, operands) if kind == "large" else meaning(unit.node, operands)
            if expected is not None:
                seen.add(fingerprint)
                yield Trial(facts, kind, operands, expected)
                break


def _factors(unit: Unit, kind: Kind) -> Sequence[float]:
    floats = [place.type.dtype for place in unit.program.operands if place.type.dtype.is_float]
    if kind != "large" or not floats:
        return (1.0,)
    narrowest = min(floats, key=lambda dtype: LARGE[dtype.name][0])
    return tuple(2.0**exponent for exponent in LARGE[narrowest.name])


def _fingerprint(operands: Sequence[Array]) -> bytes:
    """A hash of the operands' bits, so that −0 differs from 0. Two kinds differ in many elements of an operand."""
    digest = hashlib.blake2b()
    for array in operands:
        digest.update(array.reshape(-1)[:: max(1, array.size // _COMPARED)].tobytes())
    return digest.digest()


def _finite_meaning(unit: Unit, operands: Sequence[Array]) -> list[Array] | None:
    """The expected results of a unit; None where a value within overflows, or a result is close to that."""
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
    """The expected results of a node. The operands are not changed."""
    op = node.op
    assert isinstance(op, Op | Fused)
    overwritten = set(op.in_place.values())
    arrays = [array.copy() if slot in overwritten else array for slot, array in enumerate(operands)]
    return op.evaluate(arrays, node.attrs, node.types, batched=True)
