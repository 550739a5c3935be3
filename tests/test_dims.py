"""Formulas over symbols: what they mean, and that they cannot do anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernum.dims import ceildiv, evaluate, round_pages, size
from infernum.errors import InfernumError

SYMBOLS = {"tokens": 5, "seqs": 3, "context_pages": 128}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        (7, 7),
        ("ceildiv(tokens, 2) + seqs * 2 - 1", 8),
        ("max(1, min(16, 12 // (4 * tokens)))", 1),
        ("4 if context_pages > 64 else 8", 4),
        ("4 if context_pages <= 64 else 8", 8),
        ("4 if tokens <= 5 else unknown", 4),
        ("(2 if tokens > 5 else 3) * seqs", 9),
    ],
)
def test_a_formula_is_arithmetic_with_choices(formula: str | int, value: int) -> None:
    assert evaluate(formula, SYMBOLS) == value


@pytest.mark.parametrize(
    "formula",
    [
        "unknown",
        "tokens / 2",
        "tokens ** 99999",
        "tokens if tokens else 1",
        "1 if tokens == 5 else 2",
        "1 if 1 <= tokens <= 9 else 2",
        "__import__('os').getpid()",
        "tokens.real",
        "'text'",
        "tokens if",
        "pow(2, 3)",
        "max(tokens, key=min)",
        "tokens // (tokens - 5)",
    ],
)
def test_anything_else_is_refused_with_the_formula(formula: str) -> None:
    with pytest.raises(InfernumError) as error:
        evaluate(formula, SYMBOLS)
    assert repr(formula) in str(error.value) and "cannot be evaluated" in str(error.value)


@given(pages=st.integers(1, 1 << 20))
def test_pages_are_rounded_up_to_a_power_of_two_from_64_on(pages: int) -> None:
    rounded = round_pages(pages)
    assert rounded >= max(pages, 64) and rounded & (rounded - 1) == 0
    assert rounded == 64 or rounded // 2 < pages


@given(a=st.integers(0, 1 << 30), b=st.integers(1, 1 << 20))
def test_ceildiv_is_the_smallest_integer_not_below(a: int, b: int) -> None:
    assert (ceildiv(a, b) - 1) * b < a <= ceildiv(a, b) * b or a == 0


def test_a_dim_of_a_shape_may_be_a_formula() -> None:
    assert size(("ceildiv(tokens, 2)", 4, "seqs + 1"), SYMBOLS) == 3 * 4 * (SYMBOLS["seqs"] + 1)
