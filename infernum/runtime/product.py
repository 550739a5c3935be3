"""A matrix product whose operands have addresses."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 256
"""Largest alignment in bytes that is distinguished: no algorithm needs more."""


@dataclass(frozen=True)
class MatrixProduct:
    """A matrix product of operands at known addresses; an address of 0 means that the operand is absent.

    out[m, n] = x[m, k] · weight[n, k]ᵀ (+ bias[n]) (+ residual[m, n]), where m is an argument of the launch.
    Strides count elements from row to row.
    """

    name: str
    x: int
    weight: int
    out: int
    n: int
    k: int
    x_stride: int
    out_stride: int
    dtype: str
    out_dtype: str
    bias: int = 0
    bias_dtype: str = ""
    residual: int = 0
    residual_stride: int = 0

    @property
    def alignments(self) -> tuple[int, int, int, int]:
        """Alignments in bytes, at most 256, of the addresses of weight, x, residual (or else out) and out."""
        addresses = (self.weight, self.x, self.residual or self.out, self.out)
        weight, x, residual, out = (min(ALIGNMENT, address & -address) for address in addresses)
        return weight, x, residual, out

    def shape_key(self, m: int) -> tuple[object, ...]:
        """The key under which an algorithm is chosen: sizes, strides, types, and the alignment of the addresses."""
        strides = (self.x_stride, self.out_stride, self.residual_stride)
        return (
            m,
            self.n,
            self.k,
            strides,
            self.dtype,
            self.out_dtype,
            self.bias_dtype,
            bool(self.residual),
            self.alignments,
        )

    def describe(self, m: int) -> str:
        """The product in words, for messages."""
        extras = (f" + {self.bias_dtype} bias" if self.bias else "") + (
            " + residual" if self.residual else ""
        )
        types = f"{self.dtype} -> {self.out_dtype}"
        return f"[{m}, {self.k}] by [{self.n}, {self.k}] transposed{extras}, {types}"
