"""Bytes, FLOPs and times as people read them."""

from __future__ import annotations

_POWERS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, unit: str) -> str:
    """A count in a decimal unit that keeps it short: "67.13 MB"."""
    size = abs(value)
    factor, prefix = next(((f, p) for f, p in _POWERS if size >= f), (1.0, ""))
    scaled = value / factor
    return f"{scaled:.0f} {unit}" if factor == 1.0 else f"{scaled:.{_digits(scaled)}f} {prefix}{unit}"


def nbytes(value: float) -> str:
    """Bytes."""
    return number(value, "B")


def flops(value: float) -> str:
    """Floating-point operations."""
    return number(value, "FLOP")


def microseconds(value: float) -> str:
    """A time; one that would be rounded to 0 is printed as <0.01 µs."""
    return f"{value:.2f} µs" if value >= 0.005 or value == 0 else "<0.01 µs"


def change(before: float, after: float, unit: str) -> str:
    """A difference with its sign: "−110.6 kB"; "±0" for none."""
    difference = after - before
    if difference == 0:
        return "±0"
    return f"{'+' if difference > 0 else '−'}{number(abs(difference), unit)}"


def counted(count: int, noun: str) -> str:
    """A count and its noun, in the plural unless the count is 1."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def times(size: tuple[int, ...] | list[int]) -> str:
    """A grid or block without the dimensions that are 1."""
    return " × ".join(str(n) for n in size if n > 1) or "1"


def _digits(scaled: float) -> int:
    return 2 if abs(scaled) < 100 else 1
