"""Compares the memory after a program has run with the meaning of its node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from infernum.dtypes import DType
from infernum.lab.verify.image import Image
from infernum.lab.verify.units import Unit
from infernum.lab.verify.values import Array, bits_of, from_bits, smallest_normal, to_bits

WRONG = math.inf
"""The error of a result that is NaN or infinite, of an integer that differs, of a copy that differs in a bit."""


def differences(unit: Unit, image: Image, after: Array, expected: Sequence[Array]) -> tuple[float, list[str]]:
    """The largest error of any result, and a sentence for everything that is wrong with the memory `after`.

    Where results are copies, every bit counts, also the sign of zero. The library may flush denormal numbers to zero,
    which NVIDIA does not exclude.
    """
    errors: list[float] = [0.0]
    wrong: list[str] = []
    tolerance, bitwise = unit.tolerance, unit.copies
    may_change = np.zeros(len(image.bytes), np.uint8)
    inputs = {place.tensor for place in image.program.operands}
    for place, reference in zip(image.program.results, expected, strict=True):
        dtype = place.type.dtype
        bits, bits_before = image.value(place, after), image.value(place, image.bytes)
        result, before = (from_bits(each, dtype).reshape(reference.shape) for each in (bits, bits_before))
        written = np.ones(reference.shape, bool)
        if place.tensor in inputs:  # in place: elements that the node does not change must stay, NaN too
            written = (before != reference) & ((before == before) | (reference == reference))
            if bitwise:
                written |= (reference == reference) & (to_bits(before, dtype) != to_bits(reference, dtype))
        image.value(place, may_change)[written.reshape(bits.shape)] = np.iinfo(bits_of(dtype)).max
        poisoned = (bits == np.iinfo(bits_of(dtype)).max).reshape(reference.shape)
        least = smallest_normal(dtype) / (tolerance if unit.uses_library and tolerance else 1.0)
        error, what = compare(
            result, reference, written, dtype, tolerance, poisoned=poisoned, bitwise=bitwise, least=least
        )
        errors.append(error)
        if what is not None:
            wrong.append(f"{place.tensor}: {what}")
    return max(errors), [*wrong, *_changed_elsewhere(image, after, may_change)]


def results_of(image: Image, after: Array) -> list[Array]:
    """A program's results in the memory `after`, [first dim, elements of a row] each."""
    return [from_bits(image.value(place, after), place.type.dtype) for place in image.program.results]


def _changed_elsewhere(image: Image, after: Array, may_change: Array) -> Iterator[str]:
    for name, (begin, end) in image.spans.items():
        before, now = image.bytes[begin:end], after[begin:end]
        if name in image.program.scratch or np.array_equal(before, now):
            continue
        if count := int(np.count_nonzero((before != now) & (may_change[begin:end] == 0))):
            yield f"{count} bytes of {name} changed that should not have"
    for name, guard in image.guards():
        places = np.flatnonzero(after[guard] != image.bytes[guard])
        if len(places):
            yield f"{len(places)} bytes behind {name} were written, the first {places[0]} past its end"


def compare(
    result: Array,
    reference: Array,
    written: Array,
    dtype: DType,
    tolerance: float,
    *,
    poisoned: Array | None = None,
    bitwise: bool = False,
    least: float | None = None,
) -> tuple[float, str | None]:
    """The error of a result where it should have been `written`, and a sentence on what is wrong, or None.

    Integers and copies must be equal. Of floats, the relative error of every row (of a head, of a token) must be
    within `tolerance`, so that one wrong element among many shows. A row counts as no smaller than one full of `least`,
    by default the smallest normal number: below that a type has fewer digits, and a last bit would be a large error.
    Where the reference is NaN or infinite, the result must be the same, and not be `poisoned`: never written.
    """
    if not written.any():
        return 0.0, None
    if not dtype.is_float:
        return _compare_exactly(result, reference, (result != reference) & written, written)
    width = reference.shape[-1]
    rows = written.reshape(-1, width).any(axis=1)
    values, expected = result.reshape(-1, width)[rows], reference.reshape(-1, width)[rows]
    numbers = np.flatnonzero(rows)
    same = (values == expected) | ((values != values) & (expected != expected))
    if poisoned is not None:
        same &= ~poisoned.reshape(-1, width)[rows]
    finite = np.isfinite(values) & np.isfinite(expected)
    bad = ~finite & ~same & written.reshape(-1, width)[rows]
    if bad.any():
        row, column = np.argwhere(bad)[0]
        lines = int(bad.any(axis=1).sum())
        return WRONG, (
            f"{bad.sum()} elements in {lines} of {len(values)} rows are NaN or infinite,"
            f" the first in row {numbers[row]}, column {column}: {values[row, column]:.6g},"
            f" not {expected[row, column]:.6g}"
        )
    if bitwise:
        unlike = (to_bits(result, dtype) != to_bits(reference, dtype)) & written & (reference == reference)
        return _compare_exactly(result, reference, unlike, written)
    if not finite.all():
        values, expected = np.where(finite, values, 0), np.where(finite, expected, 0)
    errors = row_errors(values, expected, smallest_normal(dtype) if least is None else least)
    worst = int(errors.argmax())
    if errors[worst] <= tolerance:
        return float(errors[worst]), None
    column = int(np.abs(values[worst] - expected[worst]).argmax())
    return float(errors[worst]), (
        f"in {int((errors > tolerance).sum())} of {len(values)} rows the relative error is more than {tolerance:g};"
        f" the worst is {errors[worst]:.2g} in row {numbers[worst]}, where column {column} is"
        f" {values[worst, column]:.6g}, not {expected[worst, column]:.6g}"
    )


def row_errors(rows: Array, expected: Array, least: float) -> Array:
    """The relative error of each row [rows, width], in float64; a row counts as no smaller than one full of `least`."""
    floor = least * math.sqrt(expected.shape[-1])
    expected64 = expected.astype(np.float64)
    return np.linalg.norm(rows - expected64, axis=1) / np.maximum(np.linalg.norm(expected64, axis=1), floor)


def _compare_exactly(
    result: Array, reference: Array, unlike: Array, written: Array
) -> tuple[float, str | None]:
    places = np.argwhere(unlike)
    if len(places) == 0:
        return 0.0, None
    first = tuple(int(i) for i in places[0])
    return WRONG, (
        f"{len(places)} of {written.sum()} differ, the first at {first}: {result[first]}, not {reference[first]}"
    )
