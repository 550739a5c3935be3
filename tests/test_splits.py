"""What the splits of a context tell each other, compiled for the host: averages in words, and how they are joined."""

from __future__ import annotations

import ctypes
import math
import struct

import numpy as np
import pytest
from host_bench import COMPILER, VISIBLE, compile_for_host
from hypothesis import example, given
from hypothesis import strategies as st

from infernum.codegen.templates import include_text

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

NO_SCORE = -1e30
"""The highest score of a split without positions, as in `softmax.cuh`."""

AROUND = """\
inline float __log2f(float x) {{ return log2f(x); }}
inline float exp2_approximate(float x) {{ return exp2f(x); }}
static int looks_before_words_come = 0;
inline unsigned long long look_at(const unsigned long long* word) {{
    return looks_before_words_come-- > 0 ? 0 : *word;
}}
inline void leave(unsigned long long* word, unsigned long long value) {{ *word = value; }}
{average}
{visible} unsigned long long word(float sum, float highest, float total) {{
    return Average(sum, highest, total).word();
}}
{visible} unsigned long long again(unsigned long long word) {{ return Average(word).word(); }}
{visible} float join(
    float sum, float highest, float total, unsigned long long* words, size_t stride, int count, int looks) {{
    looks_before_words_come = looks;
    Average average(sum, highest, total);
    average.join(words, stride, count);
    return average.value;
}}
"""

Splits = list[list[tuple[float, float]]]
"""Of each split its positions: score to base two, and value."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    text = include_text("splits.cuh")
    # Ahead of it are the loads and stores, in PTX.
    average = text[text.index("// A softmax-weighted average") :]
    folder = tmp_path_factory.mktemp("splits")
    library = compile_for_host(AROUND.format(average=average, visible=VISIBLE), folder)
    library.word.argtypes = [ctypes.c_float] * 3
    library.join.argtypes = [*[ctypes.c_float] * 3, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 2]
    library.again.argtypes = [ctypes.c_uint64]
    library.word.restype = library.again.restype = ctypes.c_uint64
    library.join.restype = ctypes.c_float
    return library


def found(split: list[tuple[float, float]]) -> tuple[float, float, float]:
    """What a cluster knows of its positions: the weighted sum, the highest score, and the total of weights."""
    highest = max((score for score, _ in split), default=NO_SCORE)
    weights = [2.0 ** (score - highest) for score, _ in split]
    return sum(w * value for w, (_, value) in zip(weights, split, strict=True)), highest, sum(weights)


positions = st.lists(st.tuples(st.floats(-300, 300, width=32), st.floats(-8, 8, width=32)), max_size=5)


@given(others=st.lists(positions, max_size=15), last=positions.filter(bool), looks=st.integers(0, 40))
@example(others=[[(0.0, 0.0)], []], last=[(0.0, 0.0)], looks=0)
def test_joined_averages_are_the_average_over_all_positions(
    compiled: ctypes.CDLL, others: Splits, last: list[tuple[float, float]], looks: int
) -> None:
    stride = 3
    words = np.zeros(stride * len(others) + 1, np.uint64)
    words[: stride * len(others) : stride] = [compiled.word(*found(split)) for split in others]
    assert all(words[: stride * len(others) : stride]), "a word that is 0 would be waited for for ever"
    joined = compiled.join(*found(last), words.ctypes.data, stride, len(others), looks)
    total_sum, _, total = found([position for split in (*others, last) for position in split])
    assert joined == pytest.approx(total_sum / total, rel=1e-4, abs=1e-4)
    assert not words.any(), "the next launch would take them for its own"


@given(high=st.integers(0, 2**32 - 1), low=st.integers(0, 2**32 - 1))
def test_every_pair_of_numbers_survives_and_only_the_nan_of_all_ones_is_no_word(
    compiled: ctypes.CDLL, high: int, low: int
) -> None:
    word = high << 32 | low
    assert compiled.again(word) == word
    value, log_total = (struct.unpack("<f", struct.pack("<I", half ^ 0xFFFFFFFF))[0] for half in (low, high))
    assert word or (math.isnan(value) and math.isnan(log_total))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, 0x7F800000])
def test_what_is_no_number_reaches_the_result(compiled: ctypes.CDLL, bits: int) -> None:
    value = struct.unpack("<f", struct.pack("<I", bits))[0]
    words = np.array([compiled.word(value, 1.0, 1.0)], np.uint64)
    assert words[0]
    assert not math.isfinite(compiled.join(1.0, 1.0, 1.0, words.ctypes.data, 1, 1, 0))


def test_when_words_come_makes_no_difference(compiled: ctypes.CDLL) -> None:
    splits: Splits = [[(float(n), 1.0 / (n + 1))] for n in range(7)]

    def join(looks: int) -> float:
        words = np.array([compiled.word(*found(split)) for split in splits[:-1]], np.uint64)
        return float(compiled.join(*found(splits[-1]), words.ctypes.data, 1, len(words), looks))

    assert len({join(looks) for looks in range(12)}) == 1
