"""Sampling in NumPy against plain references that sort, and sum in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infernum.dtypes import BF16
from infernum.models import sampler
from infernum.ops import sampling
from infernum.step import NO_TOKEN

VOCAB = 50


def rows_of_logits():
    finite = st.floats(-30, 30, width=32)
    tied = st.integers(-4, 4).map(float)
    return st.integers(1, 80).flatmap(
        lambda n: arrays.arrays(np.float32, n, elements=st.one_of(finite, tied))
    )


def fractions(least, most):
    return st.floats(least, most).map(np.float32)


def words_of(tokens, vocab):
    words = np.zeros(-(-vocab // 32), np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words.view(np.int32)


def counts_of(prompt, output, vocab):
    return np.array([2 * list(output).count(t) + (t in prompt) for t in range(vocab)], np.int32)


def draw(
    logits,
    seeds,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    penalty=1.0,
    presence=0.0,
    frequency=0.0,
    prompt=None,
    output=(),
    bias=None,
    allowed=None,
    positions=None,
):
    """`sample` for the same row of logits with many seeds. The last row of each table holds, where there is one."""
    n, vocab = len(seeds), len(logits)
    last = lambda values: np.full(n, -1 if values is None else 1, np.int32)  # noqa: E731
    ones = np.ones(vocab, np.int32)
    return sampling.sample.meaning(
        np.tile(logits.astype(np.float32), (n, 1)),
        np.stack([ones, ones if prompt is None else counts_of(prompt, output, vocab)]),
        np.stack([np.full(vocab, np.nan, np.float32), np.zeros(vocab, np.float32) if bias is None else bias]),
        np.stack([0 * words_of([], vocab), words_of(range(vocab) if allowed is None else allowed, vocab)]),
        last(prompt),
        last(bias),
        last(allowed),
        np.full(n, temperature, np.float32),
        np.full(n, top_k, np.int32),
        np.full(n, top_p, np.float32),
        np.full(n, min_p, np.float32),
        np.full(n, penalty, np.float32),
        np.full(n, presence, np.float32),
        np.full(n, frequency, np.float32),
        np.asarray(seeds, np.int64).astype(np.int32),
        np.zeros(n, np.int32) if positions is None else np.asarray(positions, np.int32),
        np.arange(n, dtype=np.int32),
    )


def kept(logits, top_k=0, top_p=1.0, min_p=0.0):
    return sampling.kept_weights(logits, top_k, np.float32(top_p), np.float32(min_p)) > 0


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def chi_square(counts, probabilities):
    """Deviations from the expected counts, as multiples of what chance makes usual; above 5 is no chance."""
    expected = probabilities * counts.sum()
    used = expected >= 5
    degrees = max(1, used.sum() - 1)
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    return (statistic - degrees) / np.sqrt(2 * degrees)


@given(rows_of_logits())
def test_weights_are_probabilities_in_fixed_point(logits):
    weights = sampling.weights_of(logits)
    exact = np.exp(logits.astype(np.float64) - logits.max()) * 2.0**32
    assert weights.max() == sampling.ONE
    np.testing.assert_allclose(weights, exact, rtol=5e-6, atol=1)


@given(rows_of_logits(), st.integers(1, 90))
def test_top_k_keeps_what_is_not_below_the_kth_largest(logits, k):
    logits = np.maximum(logits, logits.max() - 20)  # nothing so unlikely that it weighs nothing
    threshold = np.sort(logits)[::-1][min(k, len(logits)) - 1]
    np.testing.assert_array_equal(kept(logits, top_k=k), logits >= threshold)


@given(rows_of_logits(), fractions(0.01, 0.999), st.integers(0, 90))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p, k):
    logits = np.maximum(logits, logits.max() - 20)
    after_top_k = np.where(kept(logits, top_k=k), sampling.weights_of(logits), 0).astype(object)
    stays = kept(logits, top_k=k, top_p=p) | (after_top_k == 0)
    wanted = np.float64(p) * float(after_top_k.sum())
    mass = after_top_k[stays].sum()
    least_likely = logits[stays & (after_top_k > 0)].min()
    assert mass >= wanted
    assert mass - after_top_k[stays & (logits == least_likely)].sum() < wanted
    assert not np.any((logits >= least_likely) & ~stays)


@given(rows_of_logits(), fractions(0, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_most_likely(logits, min_p):
    ratio = np.exp(logits.astype(np.float64) - logits.max())
    stays = kept(logits, min_p=min_p)
    assert not np.any(stays & (ratio < float(min_p) * (1 - 1e-5)))
    assert not np.any(~stays & (ratio > float(min_p) * (1 + 1e-5)) & (ratio > 1e-9))


@given(rows_of_logits(), st.integers(0, 90), fractions(0.01, 1), fractions(0, 1), st.integers(0, 2**31 - 1))
def test_a_draw_is_always_among_the_tokens_kept(logits, k, p, min_p, seed):
    tokens = draw(logits, [seed], top_k=k, top_p=p, min_p=min_p)
    assert kept(logits, k, p, min_p)[tokens[0]]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_draws_follow_the_softmax(temperature):
    logits = np.random.default_rng(1).normal(0, 2, VOCAB).astype(np.float32)
    counts = np.bincount(draw(logits, range(20000), temperature=temperature), minlength=VOCAB)
    assert chi_square(counts, softmax(logits / np.float32(temperature))) < 5


def test_draws_at_successive_positions_of_one_seed_follow_the_softmax():
    logits = np.random.default_rng(2).normal(0, 2, VOCAB).astype(np.float32)
    counts = np.bincount(draw(logits, [7] * 20000, positions=range(20000)), minlength=VOCAB)
    assert chi_square(counts, softmax(logits)) < 5


def test_draws_after_top_k_and_top_p_follow_what_is_left():
    logits = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
    left = np.where(kept(logits, 10, 0.8), softmax(logits), 0)
    counts = np.bincount(draw(logits, range(20000), top_k=10, top_p=0.8), minlength=VOCAB)
    assert chi_square(counts, left / left.sum()) < 5
    assert not counts[left == 0].any()


def test_random_bits_are_even_and_repeatable():
    seeds, positions = np.meshgrid(np.arange(-50, 50), np.arange(200))
    bits = sampling.random_bits(seeds.ravel(), positions.ravel())
    ones = [(bits >> np.uint64(b) & np.uint64(1)).mean() for b in range(64)]
    assert np.abs(np.array(ones) - 0.5).max() < 0.02
    assert len(np.unique(bits)) == bits.size
    np.testing.assert_array_equal(bits, sampling.random_bits(seeds.ravel(), positions.ravel()))
    assert sampling.random_bits(np.array([0]), np.array([0]))[0] == 0xE220A8397B1DCDAF  # SplitMix64's first


def test_a_row_draws_the_same_token_whatever_else_is_in_the_batch():
    logits = np.random.default_rng(4).normal(0, 3, VOCAB).astype(np.float32)
    together = draw(logits, [5, 6, 7], positions=[11, 12, 13])
    alone = [draw(logits, [s], positions=[p])[0] for s, p in ((5, 11), (6, 12), (7, 13))]
    assert together.tolist() == alone


@given(rows_of_logits(), fractions(0.1, 10), st.data())
def test_the_penalty_is_that_of_transformers(logits, penalty, data):
    tokens = data.draw(st.sets(st.integers(0, len(logits) - 1)))
    expected = logits.copy()
    for token in tokens:  # RepetitionPenaltyLogitsProcessor
        expected[token] = expected[token] * penalty if expected[token] < 0 else expected[token] / penalty
    some = data.draw(st.sets(st.sampled_from(sorted(tokens)))) if tokens else set()
    counts = counts_of(some, tokens - some, len(logits))
    penalised = sampling.adjusted(logits, counts=counts, repetition_penalty=penalty)
    np.testing.assert_array_equal(penalised, expected)
    greedy = draw(logits, [0], temperature=0, penalty=penalty, prompt=some, output=tokens - some)
    assert greedy[0] == np.argmax(expected)


@given(rows_of_logits(), fractions(-2, 2), fractions(-2, 2), fractions(0.5, 2), st.data())
def test_scores_are_adjusted_as_a_plain_loop_over_the_tokens_does(
    logits, presence, frequency, repetition, data
):
    tokens = st.integers(0, len(logits) - 1)
    prompt, output = data.draw(st.lists(tokens, max_size=9)), data.draw(st.lists(tokens, max_size=9))
    bias = np.array(
        data.draw(st.lists(st.floats(-100, 100, width=32), min_size=len(logits), max_size=len(logits)))
    )
    allowed = data.draw(st.sets(tokens))
    heat = data.draw(fractions(0.1, 3))
    expected = []
    for token, score in enumerate(logits):
        score = score + np.float32(bias[token])
        if token in prompt or token in output:
            score = score / repetition if score > 0 else score * repetition
        score = score - frequency * np.float32(output.count(token))
        if token in output:
            score = score - presence
        expected.append(score / heat if token in allowed else -np.inf)
    adjusted = sampling.adjusted(
        logits,
        counts=counts_of(prompt, output, len(logits)),
        bias=bias.astype(np.float32),
        allowed=words_of(allowed, len(logits)),
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        temperature=heat,
    )
    np.testing.assert_array_equal(adjusted, np.array(expected, np.float32))


def test_only_allowed_tokens_are_drawn_even_where_the_others_are_not_numbers():
    logits = np.array([np.nan, 1.0, np.inf, 2.0, 50.0], np.float32)
    assert set(draw(logits, range(200), allowed=[1, 3]).tolist()) == {1, 3}
    assert draw(logits, [1], allowed=[1, 3], temperature=0)[0] == 3
    assert draw(logits, [1], allowed=[])[0] == NO_TOKEN


def test_a_bias_shifts_the_draw_and_minus_a_hundred_ends_it():
    logits = np.zeros(4, np.float32)
    bias = np.array([0, -100, 100, -100], np.float32)
    assert set(draw(logits, range(200), bias=bias).tolist()) == {2}
    assert set(draw(logits, range(400), bias=-bias / 100).tolist()) == {0, 1, 2, 3}


@given(rows_of_logits())
def test_temperature_zero_and_argmax_take_the_first_of_the_largest(logits):
    assert (
        draw(logits, [3], temperature=0)[0] == sampling.argmax.meaning(logits[None])[0] == np.argmax(logits)
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_a_row_with_a_logit_that_is_nan_or_infinite_has_no_token(bad, place, temperature):
    logits = np.array([0.5, 1.0, -np.inf, 2.0], np.float32)
    logits[place] = bad
    assert draw(logits, [1, 2], temperature=temperature).tolist() == [NO_TOKEN] * 2
    assert (
        draw(logits, [1], temperature=temperature, top_k=2, top_p=0.5, penalty=1.3, prompt=[place])
        == NO_TOKEN
    )
    both = np.stack([logits, np.array([0.5, 1.0, -np.inf, 2.0], np.float32)])
    assert sampling.argmax.meaning(both).tolist() == [NO_TOKEN, 3]


def test_a_row_of_minus_infinity_has_no_token_and_a_single_one_is_never_drawn():
    none, some = np.full(4, -np.inf, np.float32), np.array([1.0, -np.inf, 2.0], np.float32)
    assert draw(none, [1]) == draw(none, [1], temperature=0) == NO_TOKEN
    assert sampling.argmax.meaning(none[None])[0] == NO_TOKEN
    assert set(draw(some, range(200)).tolist()) == {0, 2}


def test_what_follows_a_row_without_a_token_goes_on_with_token_zero_and_counts_none():
    token_ids, positions = np.array([1, 2], np.int32), np.array([4, 5], np.int32)
    sampling.advance.meaning(np.array([NO_TOKEN, 8], np.int32), token_ids, positions)
    assert (token_ids.tolist(), positions.tolist()) == ([0, 8], [5, 6])
    counts = np.zeros((2, 40), np.int32)
    sampling.count_tokens.meaning(counts, np.array([0, 1], np.int32), np.array([NO_TOKEN, 33], np.int32))
    assert np.argwhere(counts).tolist() == [[1, 33]]


def test_advance_feeds_the_next_step_in_place():
    token_ids, positions = np.array([1, 2, 3], np.int32), np.array([4, 5, 6], np.int32)
    sampling.advance.meaning(np.array([7, 8], np.int32), token_ids, positions)
    assert token_ids.tolist() == [7, 8, 3]
    assert positions.tolist() == [5, 6, 6]


def test_count_tokens_counts_in_place_the_tokens_of_rows_that_have_counts():
    counts = np.array([[0, 1, 4], [0, 0, 1], [7, 7, 7]], np.int32)
    sampling.count_tokens.meaning(counts, np.array([1, -1, 0], np.int32), np.array([2, 0, 1], np.int32))
    assert counts.tolist() == [[0, 3, 4], [0, 0, 3], [7, 7, 7]]


@given(st.lists(rows_of_logits(), min_size=1, max_size=1), st.data())
def test_logprobs_are_those_of_a_plain_softmax_in_the_order_of_the_logits(rows, data):
    (logits,) = rows
    token = data.draw(st.integers(0, len(logits) - 1))
    scored = data.draw(st.booleans())
    sampled, asked = (0, token) if scored else (token, -1)
    tokens, values = sampling.logprobs.meaning(
        logits[None], np.array([sampled], np.int32), np.array([asked], np.int32)
    )
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:20]
    assert tokens[0].tolist() == [token, *order, *[NO_TOKEN] * (20 - len(order))]
    exact = np.log(softmax(logits))[[token, *order]]
    np.testing.assert_allclose(values[0, : 1 + len(order)], exact, rtol=1e-6, atol=2e-6)
    assert np.isnan(values[0, 1 + len(order) :]).all()


def test_logprobs_of_impossible_tokens_and_of_rows_without_a_token():
    logits = np.array([[1.0, -np.inf, 1.0], [np.nan, 1, 2], [-np.inf] * 3], np.float32)
    tokens, values = sampling.logprobs.meaning(
        logits, np.array([1, 2, NO_TOKEN], np.int32), np.full(3, -1, np.int32)
    )
    assert tokens[:, :5].tolist() == [[1, 0, 2, 1, NO_TOKEN], [2, *[NO_TOKEN] * 4], [NO_TOKEN] * 5]
    assert values[0, 0] == values[0, 3] == -np.inf and np.isnan(values[0, 4:]).all()
    np.testing.assert_allclose(values[0, 1:3], np.log(0.5), rtol=1e-6)
    assert np.isnan(values[1:]).all()


@given(st.integers(1, 2**53 - 1))
def test_the_logarithm_of_a_weight_is_right_to_the_last_digits_of_float64(weight):
    exact = np.log(np.longdouble(weight)) - 32 * np.log(np.longdouble(2))
    assert abs(sampling.log_of(np.uint64(weight)) - exact) < 4e-15 * max(1, abs(exact))


@pytest.mark.parametrize("block", [sampler.greedy, sampler.sample])
def test_a_sampler_gives_the_tokens_and_the_inputs_of_the_next_step(block):
    graph = block.trace(SimpleNamespace(vocab_size=VOCAB), BF16)
    shapes = [graph.type(value).shape for value in graph.outputs]
    assert shapes[:3] == [("rows",), ("tokens",), ("tokens",)]
    assert shapes[3:] == ([("min(table_rows, 256)", VOCAB)] if block is sampler.sample else [])
