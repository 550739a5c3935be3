"""The memory of a program before it runs: its operands, and poison everywhere else, also behind each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from infernum import dims, dtypes
from infernum.codegen.places import Place
from infernum.lab.verify.facts import Facts
from infernum.lab.verify.units import UnitProgram
from infernum.lab.verify.values import Array, bits_of, to_bits

POISON = 0xFF
"""NaN in every float type, −1 in every integer type."""

ALIGNMENT = 256
GUARD = 4096
"""Poisoned bytes after each tensor, in which nothing may be written."""


class Image:
    """The bytes of a program's tensors, one behind the other, and the span of each, for one step."""

    def __init__(self, program: UnitProgram, facts: Facts, operands: Sequence[Array]) -> None:
        self.program = program
        self.facts = facts
        self.spans: dict[str, tuple[int, int]] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        end = 0
        for name in program.tensors:
            spec = program.spec(name)
            first, *rest = [dims.evaluate(dim, facts.symbols) for dim in spec.shape]
            self._shapes[name] = (first, math.prod(rest))
            nbytes = first * math.prod(rest) * dtypes.dtype(spec.dtype).bytes
            self.spans[name] = (end, end + nbytes)
            end = dims.ceildiv(end + nbytes + GUARD, ALIGNMENT) * ALIGNMENT
        self.bytes: Array = np.full(end, POISON, np.uint8)
        for place, values in zip(program.operands, operands, strict=True):
            self._write(place, values)

    def value(self, place: Place, image: Array) -> Array:
        """The bits at a place as [first dim, elements of a row], a view into the bytes of an image like this one."""
        begin, end = self.spans[place.tensor]
        dtype = dtypes.dtype(self.program.spec(place.tensor).dtype)
        rows = image[begin:end].view(bits_of(dtype)).reshape(self._shapes[place.tensor])
        return rows[:, place.offset : place.offset + math.prod(self.facts.sizes(place.type)[1:])]

    def _write(self, place: Place, values: Array) -> None:
        """Store the values of a place; elements that are NaN keep the poison."""
        dtype, view = place.type.dtype, self.value(place, self.bytes)
        flat = values.reshape(view.shape)
        if dtype.is_float and np.isnan(flat.max()):
            written = ~np.isnan(flat)
            view[written] = to_bits(flat[written], dtype)
        else:
            view[:] = to_bits(flat, dtype)

    def guards(self) -> Iterator[tuple[str, slice]]:
        """The bytes behind each tensor, by its name."""
        names = list(self.spans)
        starts = [self.spans[name][0] for name in names[1:]] + [len(self.bytes)]
        for name, start in zip(names, starts, strict=True):
            yield name, slice(self.spans[name][1], start)
