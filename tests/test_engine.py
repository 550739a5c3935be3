"""The engine over a toy model that checks every batch: who is served when, and what comes out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_executor import ToyExecutor, ToyPending, hashed_logits, scripted

from infernum.engine.engine import Engine
from infernum.engine.page_pool import PagePool
from infernum.engine.scheduler import Scheduler
from infernum.engine.sequence import Sequence
from infernum.engine.step_inputs import sampling_of
from infernum.engine.table_rows import bits_of
from infernum.errors import DeviceError, LogitsError, RequestError
from infernum.manifest import ModelInfo
from infernum.ops import sampling
from infernum.sampling_params import SamplingParams, derived_seed
from infernum.step import NO_TOKEN

VOCAB = 97
GREEDY = SamplingParams(max_tokens=10, temperature=0)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def model_info(context=64, vocab=VOCAB, short_context=None):
    return ModelInfo(
        family="toy",
        name="toy",
        config={},
        config_hash="",
        vocab_size=vocab,
        context=context,
        num_layers=1,
        short_context=short_context,
    )


def make(model=None, *, context=64, end_tokens=(), max_model_len=None, tokenizer=None, **executor):
    toy = ToyExecutor(model or hashed_logits(VOCAB), VOCAB, **executor)
    engine = Engine(toy, model_info(context), end_tokens, tokenizer, max_model_len)
    return engine, toy


def alone(prompt, params, index=0, model=None, end=()):
    """What a sequence must come to: the model applied to the whole context, token by token."""
    model, context = model or hashed_logits(VOCAB), list(prompt)
    seed = np.array([derived_seed(params.seed or 0, index)], np.uint32).view(np.int32)
    one = lambda value, dtype: np.array([value], dtype)  # noqa: E731
    bias = np.array([params.logit_bias.get(token, 0) for token in range(VOCAB)], np.float32)
    for place in range(params.max_tokens):
        forbidden = {*end, *params.stop_token_ids} if place < params.min_tokens else set()
        counts = np.bincount(prompt, minlength=VOCAB).clip(max=1)
        counts += 2 * np.bincount(context[len(prompt) :], minlength=VOCAB)
        token = sampling.sample.meaning(
            model(context)[None],
            counts[None],
            bias[None],
            bits_of(np.array([token not in forbidden for token in range(VOCAB)]))[None],
            one(0, np.int32),
            one(0, np.int32),
            one(0, np.int32),
            one(params.temperature, np.float32),
            one(params.top_k, np.int32),
            one(params.top_p, np.float32),
            one(params.min_p, np.float32),
            one(params.repetition_penalty, np.float32),
            one(params.presence_penalty, np.float32),
            one(params.frequency_penalty, np.float32),
            seed,
            one(len(context) - 1, np.int32),
            one(0, np.int32),
        )
        context.append(int(token[0]))
    return tuple(context[len(prompt) :])


@pytest.mark.parametrize("max_rows", [1, 2, 8])
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 32])
@pytest.mark.parametrize("pages", [5, 9, 40])
def test_every_prompt_gets_the_text_it_would_get_alone(max_rows, max_batch_tokens, pages):
    engine, _ = make(max_rows=max_rows, max_batch_tokens=max_batch_tokens, pages=pages)
    found = engine.generate(PROMPTS, GREEDY)
    assert [c.tokens for c in found] == [alone(p, GREEDY) for p in PROMPTS]
    assert {c.finish_reason for c in found} == {"length"}
    assert engine._pool.free_pages == pages


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20), min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 15), min_size=6, max_size=6),
    max_rows=st.integers(1, 5),
    max_batch_tokens=st.integers(1, 12),
    pages=st.integers(9, 30),
    end=st.sets(st.integers(0, VOCAB - 1), max_size=20),
)
def test_any_mixture_of_requests_is_served_as_if_each_were_alone(
    prompts, lengths, max_rows, max_batch_tokens, pages, end
):
    params = [
        SamplingParams(
            max_tokens=n,
            temperature=0.9,
            seed=5,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=0.7,
        )
        for n in lengths
    ]
    engine, _ = make(max_rows=max_rows, max_batch_tokens=max_batch_tokens, pages=pages, end_tokens=end)
    found = engine.generate(prompts, params[: len(prompts)])
    for index, (prompt, one, completion) in enumerate(zip(prompts, params, found, strict=False)):
        whole = alone(prompt, one, index)
        stop = next((i for i, token in enumerate(whole) if token in end), None)
        expected = whole if stop is None else whole[: stop + 1]
        assert completion.tokens == expected
        assert completion.finish_reason == ("length" if stop is None else "stop")
    assert engine._pool.free_pages == pages
    assert not engine.busy


def test_several_prompts_go_into_one_ragged_step():
    engine, toy = make(pages=40)
    engine.generate(PROMPTS, GREEDY)
    assert np.diff(toy.batches[0].query_start).tolist() == [1, 3, 7, 2]
    assert toy.batches[0].output_rows.tolist() == [0, 3, 10, 12]


def test_a_long_prompt_goes_in_chunks_and_one_row_is_asked_for_in_each():
    engine, toy = make(max_batch_tokens=4)
    prompt = list(range(10))
    assert engine.generate([prompt], GREEDY)[0].tokens == alone(prompt, GREEDY)
    assert [b.tokens for b in toy.batches[:4]] == [4, 4, 2, 1]
    assert [b.rows for b in toy.batches[:3]] == [1, 1, 1]
    assert toy.batches[1].positions.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("max_batch_tokens", [3, 32])
@pytest.mark.parametrize("short_context", [2, 3, 7, 8, 11])
def test_a_sequence_that_becomes_long_is_computed_anew_from_its_start(
    short_context: int, max_batch_tokens: int
) -> None:
    toy = ToyExecutor(
        hashed_logits(VOCAB), VOCAB, max_batch_tokens=max_batch_tokens, short_context=short_context
    )
    engine = Engine(toy, model_info(short_context=short_context))
    completions = engine.generate(PROMPTS, GREEDY)
    assert [each.tokens for each in completions] == [alone(prompt, GREEDY) for prompt in PROMPTS]
    assert not toy.is_long.all() and toy.is_long.any()


def test_the_logits_of_a_prompt_in_chunks_are_those_of_its_whole_length() -> None:
    toy = ToyExecutor(hashed_logits(VOCAB), VOCAB, max_batch_tokens=3, short_context=4)
    engine = Engine(toy, model_info(short_context=4))
    engine.logits([1, 2, 3, 4, 5, 6, 7])
    assert all(set(batch.lengths.tolist()) == {7} for batch in toy.batches) and toy.is_long.any()


def test_decoding_goes_on_beside_a_prompt_in_chunks():
    engine, toy = make(max_batch_tokens=4, pages=40)
    engine.generate([[1], list(range(12))], GREEDY)
    assert [np.diff(b.query_start).tolist() for b in toy.batches[:4]] == [[1, 3], [1, 3], [1, 3], [1, 3]]
    assert toy.batches[1].output_rows.tolist() == [0]


def test_tokens_are_read_one_step_late_and_decoding_feeds_itself():
    engine, toy = make()
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=5, temperature=0))
    assert toy.log == [
        "run 0", "run 1", "read 0", "run 2", "read 1", "advance 3", "read 2", "advance 4", "read 3", "read 4",
    ]  # fmt: skip


def test_the_extra_token_of_a_sequence_that_had_ended_is_dropped():
    engine, toy = make(scripted(VOCAB, 1, [10, 11, 12, 13, 14]), end_tokens=[12])
    found = engine.generate([[1]], GREEDY)[0]
    assert found.tokens == (10, 11, 12)
    assert found.finish_reason == "stop"
    assert toy.steps == 4 and toy.log[-1] == "read 2"
    assert not engine.busy


def test_an_end_by_length_is_foreseen_and_wastes_no_step():
    engine, toy = make()
    engine.generate([[1, 2]], SamplingParams(max_tokens=1, temperature=0))
    assert toy.steps == 1


def test_any_of_the_end_tokens_ends_a_sequence_unless_they_are_ignored():
    model = scripted(VOCAB, 1, [10, 11, 12, 13])
    assert make(model, end_tokens=[90, 11])[0].generate([[1]], GREEDY)[0].tokens == (10, 11)
    ignoring = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    found = make(model, end_tokens=[90, 11])[0].generate([[1]], ignoring)[0]
    assert found.tokens == (10, 11, 12, 13)
    assert found.finish_reason == "length"


def test_any_of_the_stop_tokens_of_a_request_ends_its_sequence_even_where_end_tokens_are_ignored():
    model = scripted(VOCAB, 1, [10, 11, 12, 13])
    stopping = SamplingParams(max_tokens=4, temperature=0, stop_token_ids=(90, 12), ignore_eos=True)
    completion = make(model, end_tokens=[11])[0].generate([[1]], stopping)[0]
    assert (completion.tokens, completion.finish_reason) == ((10, 11, 12), "stop")
    both = SamplingParams(max_tokens=4, temperature=0, stop_token_ids=(12,))
    assert make(model, end_tokens=[11])[0].generate([[1]], both)[0].tokens == (10, 11)


def test_a_stop_token_beyond_the_vocabulary_is_refused_with_numbers():
    for token in (VOCAB, 2**31 - 1):
        params = SamplingParams(stop_token_ids=(3, token))
        with pytest.raises(
            RequestError, match=f"stop_token_ids holds {token}; the model's tokens are 0 to 96"
        ):
            make()[0].generate([[1]], params)


def test_sequences_get_pages_as_they_need_them_and_the_newest_is_preempted_when_none_is_left():
    engine, toy = make(pages=4)  # 16 positions: one sequence of 3 + 10 tokens
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [c.tokens for c in engine.generate(prompts, GREEDY)] == [alone(p, GREEDY) for p in prompts]
    assert max(b.seqs for b in toy.batches) == 2
    assert engine._scheduler.preempted > 0 and engine._pool.free_pages == 4


def test_sequences_that_need_one_page_more_are_not_preempted_for_lack_of_it():
    engine, toy = make(pages=12)
    params = SamplingParams(max_tokens=5, temperature=0)
    prompts = [[1, 2, 3, n] for n in range(60)]  # a whole page each, and a second one for the output
    assert [c.tokens for c in engine.generate(prompts, params)] == [alone(p, params) for p in prompts]
    assert max(b.seqs for b in toy.batches) == 6 and engine._scheduler.preempted == 0


def test_no_chunk_of_a_prompt_is_a_single_token():
    engine, toy = make(max_batch_tokens=8)
    params = SamplingParams(max_tokens=1, temperature=0)
    prompts = [list(range(9)), list(range(20, 36)), list(range(40, 49))]
    assert [c.tokens for c in engine.generate(prompts, params)] == [alone(p, params) for p in prompts]
    lengths = [np.diff(batch.query_start).tolist() for batch in toy.batches]
    assert lengths == [[7], [2, 6], [8], [2, 6], [3]]


def test_a_thousand_tokens_come_out_as_they_should():
    params = SamplingParams(max_tokens=1000, temperature=0.8, seed=3)
    engine, toy = make(context=2000, pages=300)
    assert engine.generate([[1, 2, 3]], params)[0].tokens == alone([1, 2, 3], params)
    assert sum(line.startswith("run") for line in toy.log) <= 2 + 1003 // toy.page_size
    assert toy.log.index("run 1") < toy.log.index("read 0"), "no step waits for the tokens of the last"


def test_max_tokens_is_cut_to_the_context():
    engine, _ = make(context=8)
    found = engine.generate([[1, 2, 3]], GREEDY)[0]
    assert len(found.tokens) == 5
    assert found.finish_reason == "length"


def test_max_tokens_is_cut_to_the_cache_and_to_max_model_len():
    assert len(make(pages=2, page_size=4)[0].generate([[1, 2, 3]], GREEDY)[0].tokens) == 5
    assert len(make(max_model_len=6)[0].generate([[1, 2, 3]], GREEDY)[0].tokens) == 3


@pytest.mark.parametrize(
    ("options", "prompt", "message"),
    [
        ({"context": 8}, list(range(8)), "the prompt has 8 tokens, .* model's context of 8 tokens"),
        ({"pages": 2}, list(range(9)), "the prompt has 9 tokens, .* KV cache of 8 tokens"),
        ({"max_model_len": 4}, list(range(5)), "the prompt has 5 tokens, .* --max-model-len of 4 tokens"),
        ({}, [], "the prompt is empty"),
        ({}, [1, VOCAB], "token 1 of the prompt is 97; the model's tokens are 0 to 96"),
        ({}, [-1], "token 0 of the prompt is -1"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_numbers(options, prompt, message):
    engine, toy = make(**options)
    with pytest.raises(RequestError, match=message):
        engine.stream([[1], prompt], GREEDY)
    assert toy.steps == 0
    assert not engine.busy


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(RequestError, match="tokenizer"):
        make()[0].generate([[1]], SamplingParams(stop=("a",)))


def test_parameters_must_match_the_prompts():
    with pytest.raises(RequestError, match="2 sampling parameters are given for 1 prompts"):
        make()[0].generate([[1]], [GREEDY, GREEDY])


def test_an_engine_takes_ids_from_any_sequence_and_refuses_anything_else():
    engine, _ = make(pages=40)
    number = engine.add(np.array([1, 2, 3]), GREEDY)
    tokens = [token for _ in range(20) for event in engine.step() for token in event.tokens]
    assert tuple(tokens) == alone([1, 2, 3], GREEDY) and number == 0
    for prompt in ([1.5], [True], ["1"], "text", None, 3):
        with pytest.raises(RequestError, match="token ids"):
            engine.add(prompt, GREEDY)
    with pytest.raises(RequestError, match="params is None; give SamplingParams"):
        engine.add([1], None)


def test_a_closed_engine_takes_and_gives_nothing_more():
    engine, toy = make()
    engine.add([1], GREEDY)
    engine.close()
    engine.close()
    for call in (engine.step, lambda: engine.add([1], GREEDY), lambda: engine.stream([[1]], GREEDY)):
        with pytest.raises(RequestError, match="the model is closed"):
            call()
    assert toy.log == []


def test_the_same_seed_gives_the_same_text_and_each_prompt_its_own():
    params = SamplingParams(max_tokens=20, temperature=1.5, seed=11)
    first = make(pages=40)[0].generate([[1], [1]], params)
    again = make(pages=40, max_rows=1)[0].generate([[1], [1]], params)
    assert first == again
    assert first[0].tokens != first[1].tokens
    assert first[0] == make()[0].generate([[1]], params)[0]


def test_without_a_seed_every_text_is_another():
    params = SamplingParams(max_tokens=20, temperature=1.5)
    engine, _ = make(pages=40)
    assert len({c.tokens for c in engine.generate([[1]] * 3, params) + engine.generate([[1]], params)}) == 4


def test_prompts_with_and_without_randomness_share_a_step():
    params = [GREEDY, SamplingParams(max_tokens=10, temperature=1.2, seed=4, repetition_penalty=1.5)]
    engine, toy = make(pages=40)
    found = engine.generate([[1, 2], [3]], params)
    assert [c.tokens for c in found] == [alone([1, 2], params[0]), alone([3], params[1], index=1)]
    assert {b.seqs for b in toy.batches} == {2}


def test_a_sequence_waits_for_a_row_of_counts_and_those_behind_it_wait_too():
    engine, toy = make(pages=200, max_rows=4, max_batch_tokens=8)
    engine._scheduler.slots.tables._free["counts"] = [1]
    penalised = SamplingParams(max_tokens=6, temperature=0, presence_penalty=2)
    found = engine.generate([[1], [2], [3]], [penalised, penalised, GREEDY])
    assert [c.tokens for c in found] == [alone([1], penalised), alone([2], penalised), alone([3], GREEDY)]
    assert max(batch.seqs for batch in toy.batches) == 2
    assert {write.row for sampled in toy.samplings for write in sampled.writes} == {1}
    assert engine._scheduler.slots.tables._free["counts"] == [1]


def expected_logprobs(prompt, tokens, count, model=None):
    """What a plain softmax of the model's logits gives: of each token, and of the most likely ones."""
    model, context, found = model or hashed_logits(VOCAB), list(prompt), []
    for token in tokens:
        logits = model(context)
        exact = logits - logits.max() - np.log(np.exp(logits.astype(np.float64) - logits.max()).sum())
        top = sorted(range(VOCAB), key=lambda t: (-logits[t], t))[:count]
        found.append((token, exact[token], [(t, exact[t]) for t in top]))
        context.append(token)
    return found


def assert_logprobs(found, prompt, tokens, count, model=None):
    expected = expected_logprobs(prompt, tokens, count, model)
    assert [each.token for each in found] == list(tokens)
    np.testing.assert_allclose(
        [each.logprob for each in found], [value for _, value, _ in expected], rtol=1e-5
    )
    for each, (_, _, top) in zip(found, expected, strict=True):
        assert [token for token, _ in each.top] == [token for token, _ in top]
        np.testing.assert_allclose([value for _, value in each.top], [value for _, value in top], rtol=1e-5)


@pytest.mark.parametrize("pages", [6, 40])
@pytest.mark.parametrize("max_batch_tokens", [3, 32])
def test_logprobs_are_of_raw_logits_and_only_of_those_who_ask(pages, max_batch_tokens):
    params = [
        GREEDY,
        SamplingParams(max_tokens=7, temperature=0, logprobs=3),
        SamplingParams(max_tokens=9, temperature=1.2, top_k=5, frequency_penalty=0.7, seed=3, logprobs=0),
        SamplingParams(max_tokens=4, temperature=0, logit_bias={5: 100}, min_tokens=2, logprobs=20),
    ]
    engine, toy = make(pages=pages, max_batch_tokens=max_batch_tokens)
    found = engine.generate(PROMPTS, params)
    assert found[0].logprobs is None
    for index in range(1, 4):
        tokens, count = found[index].tokens, params[index].logprobs
        assert tokens == alone(PROMPTS[index], params[index], index)
        assert_logprobs(found[index].logprobs, PROMPTS[index], tokens, count)
    assert not toy.samplings[-1].logprobs or toy.log[-1].startswith("read")
    events = list(make(pages=40)[0].stream([[1, 2]], params[1]))
    assert_logprobs(
        [each for event in events for each in event.logprobs], [1, 2], alone([1, 2], params[1]), 3
    )


def assert_prompt_logprobs(found, prompt, count):
    assert len(found) == len(prompt) and found[0] is None and found[:1] == [None]
    assert_logprobs(found[1:], prompt[:1], prompt[1:], count)
    if len(prompt) > 1:
        assert found[-1] == found[len(prompt) - 1]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=6),
    lengths=st.lists(st.integers(0, 15), min_size=6, max_size=6),
    max_rows=st.integers(1, 7),
    max_batch_tokens=st.integers(1, 30),
    pages=st.integers(9, 16),
)
def test_logprobs_of_prompts_are_of_raw_logits_whoever_else_runs(
    prompts, lengths, max_rows, max_batch_tokens, pages
):
    plain = {"temperature": 0.9, "seed": 5, "frequency_penalty": 0.7, "min_tokens": 0}
    params = [
        SamplingParams(max_tokens=length or 1, **plain)
        if index % 3 == 2
        else SamplingParams(max_tokens=length, prompt_logprobs=2 * index, logprobs=index or None, **plain)
        for index, length in enumerate(lengths[: len(prompts)])
    ]
    engine, _ = make(max_rows=max_rows, max_batch_tokens=max_batch_tokens, pages=pages)
    found = engine.generate(prompts, params)
    for index, (prompt, own, completion) in enumerate(zip(prompts, params, found, strict=True)):
        assert completion.tokens == alone(prompt, own, index) and completion.finish_reason == "length"
        if own.prompt_logprobs is None:
            assert completion.prompt_logprobs is None
        else:
            assert_prompt_logprobs(completion.prompt_logprobs, prompt, own.prompt_logprobs)
        if own.logprobs is not None:
            assert_logprobs(completion.logprobs, prompt, completion.tokens, own.logprobs)
    assert engine._pool.free_pages == pages and not engine._loop._unscored
    assert engine.statistics.output_tokens == sum(map(len, (each.tokens for each in found)))


def test_a_scored_prompt_that_is_preempted_is_not_scored_twice():
    engine, toy = make(pages=6, max_rows=4, max_batch_tokens=2)
    scoring = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=1)
    prompt = list(range(12))
    first = engine.add([1, 2, 3], SamplingParams(max_tokens=14, temperature=0), priority=1)
    second = engine.add(prompt, scoring)
    events = []
    while engine.busy:
        events += engine.step()
    of_prompt = [event.prompt_logprobs for event in events if event.prompt_logprobs is not None]
    assert engine._scheduler.preempted > 0 and len(of_prompt) == 1
    assert_prompt_logprobs(of_prompt[0], prompt, 1)
    rows = sum(sampled.scored is not None and int((sampled.scored >= 0).sum()) for sampled in toy.samplings)
    assert rows == len(prompt) - 1
    computed = sum(int((batch.positions == 2).sum()) for batch in toy.batches)
    assert computed == 3, "that of the second sequence twice"
    assert tuple(t for e in events if e.sequence == second for t in e.tokens) == alone(prompt, scoring)
    assert next(e.sequence for e in events if e.finish_reason) == first


def test_a_scored_prompt_takes_nothing_from_the_cache_and_its_rows_are_no_more_than_a_step_has():
    engine, toy = make(pages=40, max_rows=3)
    prompt = list(range(20))
    engine.generate([prompt], GREEDY)
    toy.batches.clear()
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (found,) = engine.generate([prompt], scoring)
    assert found.tokens == () and found.finish_reason == "length" and found.text == ""
    assert_prompt_logprobs(found.prompt_logprobs, prompt, 0)
    assert sum(batch.tokens for batch in toy.batches) == len(prompt)
    assert max(batch.rows for batch in toy.batches) == 3
    (event,) = engine.stream([prompt], scoring)
    assert (event.tokens, event.prompt_logprobs) == ((), found.prompt_logprobs)
    number = engine.add(prompt, scoring)
    (step,) = [step for step in (engine.step_events() for _ in range(20)) if len(step)]
    assert list(step) == [(number, NO_TOKEN, "length")]
    assert step.prompt_logprobs == {number: found.prompt_logprobs}
    with pytest.raises(RequestError, match="max_tokens is 0; it must be an integer of at least 1"):
        SamplingParams(max_tokens=0)


def test_n_completions_of_a_prompt_follow_each_other_and_have_seeds_of_their_own():
    several = SamplingParams(max_tokens=8, temperature=1.2, seed=5, n=3)
    engine, _ = make(pages=40)
    found = engine.generate([[1, 2], [3]], [several, GREEDY])
    assert [c.tokens for c in found] == [*(alone([1, 2], several, i) for i in range(3)), alone([3], GREEDY)]
    assert len({c.tokens for c in found}) == 4
    assert {event.sequence for event in engine.stream([[1, 2], [3]], [several, GREEDY])} == {0, 1, 2, 3}
    with pytest.raises(
        RequestError, match="n is 3; a sequence is added for one completion, so add it 3 times"
    ):
        engine.add([1], several)


def test_steps_of_sequences_that_ask_for_no_logprobs_compute_none():
    engine, toy = make(pages=40)
    engine.generate([[1], [2]], [GREEDY, SamplingParams(max_tokens=2, temperature=0, logprobs=1)])
    asked = [sampled.logprobs for sampled in toy.samplings]
    assert asked[0] and not asked[-1]


def test_a_bias_holds_for_its_own_sequence_and_counts_as_a_change_of_the_logits():
    biased = SamplingParams(max_tokens=8, temperature=0, logit_bias={5: 100, 6: 99.5, 7: -100})
    engine, toy = make(pages=40)
    found = engine.generate(PROMPTS[:3], [GREEDY, biased, biased])
    assert [c.tokens for c in found] == [
        alone(prompt, params) for prompt, params in zip(PROMPTS[:3], [GREEDY, biased, biased], strict=True)
    ]
    assert set(found[1].tokens) <= {5, 6} and not biased.greedy
    assert [write.table for sampled in toy.samplings for write in sampled.writes] == ["logit_bias"] * 2
    with pytest.raises(RequestError, match="logit_bias holds 97; the model's tokens are 0 to 96"):
        engine.generate([[1]], SamplingParams(logit_bias={97: 1}))


@pytest.mark.parametrize("least", [0, 1, 5, 9, 12])
def test_no_end_token_and_no_stop_token_comes_before_min_tokens(least):
    end, model = (3, 4, 5), scripted(VOCAB, 2, [9, 4, 7, 8, 3] * 4)
    params = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(7,), min_tokens=least)
    engine, toy = make(model, end_tokens=end, pages=40)
    found = engine.generate([[1, 2], [1, 2]], [params, GREEDY])
    whole = alone([1, 2], params, model=model, end=end)
    last = next((i for i, token in enumerate(whole) if token in (*end, 7)), 11)
    assert last + 1 > least or least == 12
    assert found[0].tokens == whole[: last + 1] and found[1].tokens == (9, 4)
    late = toy.log.index("run 1" if "run 1" in toy.log else "advance 1") < toy.log.index("read 0")
    assert late, "no step waits for the tokens of the last"


def alternating(output):
    """Even tokens, then odd ones, and so on; the fifth token is any."""
    if len(output) == 4:
        return None
    last = output[-1] if len(output) else 1
    return bits_of(np.arange(VOCAB) % 2 != last % 2)


def masked_model(prompt_length):
    def model(context):
        bits, logits = alternating(np.array(context[prompt_length:], np.int32)), hashed_logits(VOCAB)(context)
        tokens = np.arange(VOCAB)
        allowed = np.ones(VOCAB, bool) if bits is None else bits[tokens // 32] >> tokens % 32 & 1 > 0
        return np.where(allowed, logits, np.float32(-np.inf))

    return model


@pytest.mark.parametrize(("pages", "max_batch_tokens"), [(5, 3), (40, 32), (7, 32)])
def test_a_mask_holds_for_its_own_sequence_and_the_model_does_not_wait_for_it(pages, max_batch_tokens):
    params = [
        SamplingParams(max_tokens=10, temperature=0),
        SamplingParams(max_tokens=9, temperature=0.9, frequency_penalty=0.8, logit_bias={3: 4}, seed=3),
        SamplingParams(max_tokens=9, temperature=0.9, seed=3, stop_token_ids=(2, 4, 5), min_tokens=9),
        SamplingParams(max_tokens=9, temperature=0.9, presence_penalty=0.8, seed=3, logprobs=0),
    ]
    engine, _ = make(pages=pages, max_batch_tokens=max_batch_tokens, max_rows=6)
    records = []
    engine.on_step = records.append
    for place in range(6):  # the last two have no mask
        mask = alternating if place < 4 else None
        engine.add(PROMPTS[place % 4], params[place % 4], allowed=mask)
    outputs = [()] * 6
    while engine.busy:
        for event in engine.step():
            outputs[event.sequence] += event.tokens
    for place, output in enumerate(outputs):
        prompt = PROMPTS[place % 4]
        model = masked_model(len(prompt)) if place < 4 else None
        assert output == alone(prompt, params[place % 4], model=model)
    if pages == 40:
        assert all(record.ahead for record in records)
    assert any(record.masked for record in records) and engine._pool.free_pages == pages
    assert not engine._scheduler.slots.tables.in_use


def fails_at_the_third(output):
    assert len(output) < 2, "it fails"


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (fails_at_the_third, AssertionError),
        (lambda output: np.zeros(3, np.int32), RequestError),
        (lambda output: np.zeros(4, np.int32), LogitsError),
    ],
)
def test_a_mask_that_fails_ends_its_sequence_and_no_other(mask, error):
    engine, _ = make(pages=40)
    other, failing = engine.add([1, 2], GREEDY), engine.add([3], GREEDY, allowed=mask)
    tokens, errors = {other: (), failing: ()}, []
    while engine.busy:
        try:
            for event in engine.step():
                tokens[event.sequence] += event.tokens
        except (AssertionError, RequestError, LogitsError) as raised:
            errors.append(type(raised))
    assert errors == [error] and tokens[other] == alone([1, 2], GREEDY)
    assert len(tokens[failing]) <= 2 and engine._pool.free_pages == 40


def test_min_tokens_with_ignore_eos_forbids_stop_tokens_alone():
    model = scripted(VOCAB, 1, [4, 7, 4, 4])
    params = SamplingParams(max_tokens=4, temperature=0, stop_token_ids=(7,), min_tokens=3, ignore_eos=True)
    assert make(model, end_tokens=(4,))[0].generate([[1]], params)[0].tokens == (4, 0, 4, 4)


def test_counts_hold_prompt_and_output_and_only_where_there_is_a_penalty():
    scheduler = Scheduler(PagePool(8, 4), max_tokens=32, max_rows=4, max_length=16)

    def planned(**params):
        sequence = Sequence(
            len(scheduler.running),
            np.array([0, 33, 33, 64], np.int32),
            SamplingParams(**params),
            max_tokens=4,
            seed=2**32 - 1,
        )
        scheduler.add(sequence)
        return sampling_of(scheduler.plan(unread=False), scheduler.slots, np.zeros(VOCAB, bool))

    plain = planned()
    assert not plain.writes and not plain.table_rows
    both = planned(frequency_penalty=1.1)
    (write,) = both.writes
    assert both.table_rows["counts_row"].tolist() == [-1, write.row]
    assert {token: count for token, count in enumerate(write.values.tolist()) if count} == {
        0: 1,
        33: 1,
        64: 1,
    }
    assert both.parameters["seed"].tolist() == [-1, -1]


def test_logits_are_those_of_every_position_whatever_the_chunks():
    tokens, model = list(range(20)), hashed_logits(VOCAB)
    expected = np.stack([model(tokens[: i + 1]) for i in range(20)])
    for max_rows, max_batch_tokens in ((8, 32), (3, 2), (32, 32)):
        engine, _ = make(max_rows=max_rows, max_batch_tokens=max_batch_tokens)
        np.testing.assert_array_equal(engine.logits(tokens), expected)
        assert engine._pool.free_pages == 16
    with pytest.raises(RequestError, match="20 tokens are more than the model's context of 19 tokens"):
        make(context=19)[0].logits(tokens)


def test_closing_a_stream_frees_its_pages_and_the_engine_goes_on():
    engine, _ = make()
    events = engine.stream([[1, 2], [3]], GREEDY)
    next(events)
    with pytest.raises(RequestError, match="the engine is generating"):
        engine.logits([1])
    events.close()
    assert not engine.busy
    assert engine._pool.free_pages == 16
    assert engine.generate([[1, 2]], GREEDY)[0].tokens == alone([1, 2], GREEDY)


def test_a_server_may_add_and_cancel_sequences_between_steps():
    engine, _ = make(pages=40)
    first = engine.add([1, 2], GREEDY)
    got = {first: []}
    late = cancelled = None
    for step in range(100):
        if step == 3:
            late, cancelled = engine.add([3], GREEDY), engine.add([4], GREEDY)
            got |= {late: [], cancelled: []}
        if step == 6:
            engine.cancel(cancelled)
        for event in engine.step():
            got[event.sequence].extend(event.tokens)
        if not engine.busy:
            break
    assert tuple(got[first]) == alone([1, 2], GREEDY)
    assert tuple(got[late]) == alone([3], GREEDY)
    assert 0 < len(got[cancelled]) < 10
    assert engine._pool.free_pages == 40


def test_a_launch_that_fails_loses_no_token_and_repeats_none(monkeypatch):
    engine, toy = make()
    engine.add([1, 2, 3], GREEDY)
    engine.step()
    run = toy.run

    def out_of_memory(batch, sampling_):
        monkeypatch.setattr(toy, "run", run)
        raise MemoryError

    monkeypatch.setattr(toy, "run", out_of_memory)
    with pytest.raises(MemoryError):
        engine.step()
    found = []
    while engine.busy:
        found += [token for event in engine.step() for token in event.tokens]
    assert tuple(found) == alone([1, 2, 3], GREEDY)


def failing_once(monkeypatch, toy, name, nth, *, after=False):
    """Makes the nth call of a method of the toy fail, before it has done anything or after all of its work."""
    method, calls = getattr(toy, name), iter(range(10**6))

    def call(*arguments):
        fails = next(calls) == nth
        if fails and not after:
            raise DeviceError("the GPU is out of memory")
        result = method(*arguments)
        if fails:
            raise DeviceError("the GPU is out of memory")
        return result

    monkeypatch.setattr(toy, name, call)


def served(engine, prompts, params):
    """The tokens of each prompt from `add` and `step`, and how many steps have raised DeviceError."""
    tokens, errors = {engine.add(prompt, params): [] for prompt in prompts}, 0
    for _ in range(1000):
        if not engine.busy:
            break
        try:
            for event in engine.step():
                tokens[event.sequence].extend(event.tokens)
        except DeviceError:
            errors += 1
    return [tuple(each) for each in tokens.values()], errors


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "nth"), [*(("run", n) for n in range(5)), *(("advance", n) for n in range(3))]
)
def test_a_step_that_fails_is_one_error_and_its_tokens_come_once_it_is_run_again(
    monkeypatch, name, nth, after
):
    engine, toy = make(max_batch_tokens=4, pages=40)
    failing_once(monkeypatch, toy, name, nth, after=after)
    params = SamplingParams(max_tokens=10, temperature=0.9, seed=5, repetition_penalty=1.2)
    found, errors = served(engine, PROMPTS, params)
    assert (found, errors) == ([alone(p, params) for p in PROMPTS], 1)
    assert engine._pool.free_pages == 40


@pytest.mark.parametrize("nth", range(8))
def test_tokens_that_cannot_be_read_are_computed_again(monkeypatch, nth):
    engine, _ = make(max_batch_tokens=4, pages=40)
    read, calls = ToyPending.tokens, iter(range(10**6))

    def tokens(pending):
        if next(calls) == nth:
            raise DeviceError("the GPU is lost")
        return read(pending)

    monkeypatch.setattr(ToyPending, "tokens", tokens)
    found, errors = served(engine, PROMPTS, GREEDY)
    assert (found, errors) == ([alone(p, GREEDY) for p in PROMPTS], 1)


def test_a_gpu_that_is_lost_is_an_error_at_every_step_and_the_first_error_is_the_one_reported(monkeypatch):
    engine, toy = make()
    number = engine.add([1, 2, 3], GREEDY)
    engine.step()
    engine.step()

    def lost(what):
        def call(*_):
            raise DeviceError(f"{what} failed")

        return call

    monkeypatch.setattr(toy, "advance", lost("launching"))
    monkeypatch.setattr(toy, "run", lost("uploading"))
    monkeypatch.setattr(ToyPending, "tokens", lost("waiting"))
    for _ in range(3):
        with pytest.raises(DeviceError, match="uploading"):
            engine.step()
    engine.cancel(number)
    assert not engine.busy and engine._pool.free_pages == 16


def test_a_sequence_that_is_cancelled_after_such_a_launch_is_not_heard_of_again(monkeypatch):
    engine, toy = make()
    number = engine.add([1, 2, 3], GREEDY)
    engine.step()
    monkeypatch.setattr(toy, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    engine.cancel(number)
    assert not engine.busy and engine.step() == []


def overflowing(token, *, bad=np.nan):
    """The hashed model, whose logits are not finite after a context that holds `token`."""
    model = hashed_logits(VOCAB)
    return lambda context: np.full(VOCAB, bad, np.float32) if token in context else model(context)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_tokens=10, seed=5, repetition_penalty=1.2)])
def test_a_sequence_whose_logits_are_not_finite_ends_with_an_error_and_the_others_go_on(bad, params):
    first = alone([1, 2, 3], params)
    engine, _ = make(overflowing(first[4], bad=bad), pages=40)
    assert first[4] not in (*first[:4], *alone([4], params))
    tokens, errors = {engine.add(prompt, params): [] for prompt in ([1, 2, 3], [4])}, []
    while engine.busy:
        try:
            for event in engine.step():
                tokens[event.sequence].extend(event.tokens)
        except LogitsError as error:
            errors.append(error)
    assert [tuple(each) for each in tokens.values()] == [first[:5], alone([4], params)]
    assert [error.sequences for error in errors] == [(0,)]
    assert str(errors[0]) == (
        "sequence 0: no token can be drawn, since its logits are not finite; float16 holds no number above 65504,"
        " so use bfloat16 or float32 (--dtype)"
    )
    assert engine._pool.free_pages == 40


def test_generate_ends_with_one_error_for_all_and_the_engine_is_free_again():
    engine, _ = make(overflowing(4), pages=40)
    engine.generate([[1, 2]], GREEDY)
    with pytest.raises(LogitsError, match=r"^sequences 1 and 2: no token can be drawn, .* float16"):
        engine.generate([[1, 2], [4], [4, 4]], GREEDY)
    assert not engine.busy and engine._pool.free_pages == 40


@pytest.mark.parametrize(("dtype", "hint"), [("bf16", "bfloat16: use float32"), ("f32", "the checkpoint")])
def test_what_to_do_about_logits_that_are_not_finite_depends_on_the_dtype(dtype, hint):
    engine, toy = make(overflowing(4))
    toy.dtype = dtype
    with pytest.raises(LogitsError, match=hint):
        engine.generate([[4]], GREEDY)


def test_a_sequence_that_ends_so_while_the_next_step_fails_to_launch_is_heard_of(monkeypatch):
    first = alone([1, 2, 3], GREEDY)
    engine, toy = make(overflowing(first[1]))
    engine.add([1, 2, 3], GREEDY)
    failing_once(monkeypatch, toy, "run", 2)
    tokens, errors = [], []
    while engine.busy:
        try:
            tokens += [token for event in engine.step() for token in event.tokens]
        except (DeviceError, LogitsError) as error:
            errors.append(type(error))
    assert (tuple(tokens), errors) == (first[:2], [DeviceError, LogitsError])


def test_logits_that_are_not_finite_are_handed_back_as_they_are():
    engine, _ = make(overflowing(4))
    assert np.isnan(engine.logits([1, 4])).all(axis=-1).tolist() == [False, True]


def test_streams_and_sequences_of_add_are_served_side_by_side():
    engine, toy = make(pages=40)
    streams = [engine.stream([prompt], GREEDY) for prompt in PROMPTS[:3]]
    added = engine.add(PROMPTS[3], GREEDY)
    tokens = [[] for _ in PROMPTS]
    for _ in range(10):
        for own, events in zip(tokens, streams, strict=False):
            own.extend(next(events).tokens)
    while engine.busy:
        tokens[3] += [token for event in engine.step() if event.sequence == added for token in event.tokens]
    assert [tuple(own) for own in tokens] == [alone(p, GREEDY) for p in PROMPTS]
    assert max(b.seqs for b in toy.batches) == 4 and engine._pool.free_pages == 40


def test_streams_of_many_threads_give_each_its_own():
    engine, _ = make(pages=40)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda p: engine.generate([p], GREEDY)[0].tokens, PROMPTS * 8))
    assert texts == [alone(p, GREEDY) for p in PROMPTS] * 8
    assert not engine.busy and engine._pool.free_pages == 40


def test_each_launched_step_is_recorded_with_where_prompts_were_cut():
    engine, toy = make(max_batch_tokens=4, pages=40)
    records = []
    engine.on_step = records.append
    engine.generate([[1], list(range(12))], GREEDY)
    assert [record.number for record in records] == list(range(toy.steps))
    assert [(r.sequences.tolist(), r.starts.tolist(), r.lengths.tolist()) for r in records[:4]] == [
        ([0, 1], [0, 0], [1, 3]),
        ([0, 1], [1, 3], [1, 3]),
        ([0, 1], [2, 6], [1, 3]),
        ([0, 1], [3, 9], [1, 3]),
    ]
    assert [record.sampled.tolist() for record in records[2:5]] == [[0], [0, 1], [0, 1]]
    assert sum(record.prompt_tokens for record in records) == 13
    assert all(record.ahead and record.host_seconds > 0 for record in records)
    assert records[0].running == 2 and records[0].free_pages == 36 and records[0].waiting == 0


def test_a_record_counts_preemptions_cached_tokens_and_steps_that_waited_for_the_last():
    engine, _ = make(pages=4)
    records = []
    engine.on_step = records.append
    engine.generate([[1, 2, 3], [4, 5, 6], [7, 8, 9]], GREEDY)
    assert records[-1].preemptions == engine._scheduler.preempted > 0
    assert not all(record.ahead for record in records), (
        "the unread token of a preempted sequence is read first"
    )


def test_a_record_counts_the_prompt_tokens_that_were_found_in_the_cache():
    engine, _ = make(pages=40)
    records = []
    engine.on_step = records.append
    for _ in range(2):
        engine.generate([list(range(9))], GREEDY)
    assert records[0].cached_tokens == 0 and records[-1].cached_tokens == 8
    assert sum(record.prompt_tokens for record in records) == 9 + 1


def test_statistics_count_prompt_and_output_tokens():
    engine, _ = make(max_batch_tokens=4, pages=40)
    engine.generate(PROMPTS, GREEDY)
    counted = engine.statistics
    assert counted.prompt_tokens == sum(map(len, PROMPTS))
    assert counted.output_tokens == 40
    assert 0 < counted.decoded_tokens < 40
    assert counted.prompt_seconds > 0
    assert counted.decode_seconds > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-30),
        ("temperature", False),
        ("temperature", np.ones(2)),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("n", 0),
        ("logprobs", True),
        ("min_tokens", 129),
        ("logit_bias", {1: 101}),
        ("logit_bias", {-1: 0}),
        ("logit_bias", {"1": 0}),
        ("logit_bias", [(1, 0)]),
        ("min_p", "0.1"),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop_token_ids", 3),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (True,)),
        ("stop_token_ids", (1.0,)),
        ("stop_token_ids", ("3",)),
        ("ignore_eos", "no"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name_value_and_what_is_allowed(name, value):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**{name: value})
    assert str(raised.value).startswith(f"{name} is {value!r}; it must be ")


def test_pages_are_handed_out_once_and_come_back():
    pool = PagePool(5, 4)
    first, second = pool.allocate(3), pool.allocate(2)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert pool.allocate(1) is None
    pool.release(first)
    assert pool.free_pages == 3
    with pytest.raises(AssertionError, match="has no owner"):
        pool.release(first)
