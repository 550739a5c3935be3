"""The engine under random scripts: whoever comes, goes or is preempted, each gets the tokens it would get alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import GREEDY, VOCAB, alone, make
from toy_executor import ToyExecutor

from infernum.engine.engine import Engine
from infernum.engine.page_pool import Content, PagePool
from infernum.errors import DeviceError
from infernum.sampling_params import SamplingParams

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.7]),
    logit_bias=st.sampled_from([{}, {}, {1: 2.5, 3: -100}]),
    min_tokens=st.sampled_from([0, 0, 1]),
    stop_token_ids=st.sampled_from([(), (5, 9)]),
    seed=st.integers(0, 5),
)
PROMPT = st.lists(st.integers(0, 3), min_size=1, max_size=14)  # few tokens, so that prefixes are shared
ACTION = st.one_of(
    st.tuples(st.just("add"), PROMPT, PARAMS, st.integers(0, 2)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("steps"), st.integers(1, 6)),
    st.tuples(st.just("fail"), st.sampled_from(["run", "advance"]), st.booleans()),
)


def check_pages(engine: Engine) -> None:
    """Every page is empty, idle, or owned by as many running sequences as the pool has counted."""
    pool, running = engine._pool, engine._scheduler.running
    owners = np.zeros(pool.num_pages, int)
    for sequence in running:
        assert len(set(sequence.pages)) == len(sequence.pages)
        np.add.at(owners, sequence.pages, 1)
        slots, slot = engine._scheduler.slots, sequence.slot
        assert slots.pages[slot, : len(sequence.pages)].tolist() == sequence.pages
        assert slots.held[slot] == len(sequence.pages) * pool.page_size >= slots.computed[slot]
    assert owners.tolist() == pool._owners
    growth = sum(pool.pages_for(sequence.limit) - len(sequence.pages) for sequence in running)
    assert engine._scheduler._growth == growth
    free = [*pool._empty, *pool._idle]
    assert sorted(free) == np.flatnonzero(owners == 0).tolist()
    assert all(content.parent in pool._contents for content in pool._kept if isinstance(content.parent, int))


SCRIPT = given(
    actions=st.lists(ACTION, min_size=1, max_size=14),
    pages=st.integers(7, 24),
    max_batch_tokens=st.integers(3, 24),
    max_rows=st.integers(1, 6),
)


@settings(max_examples=300)
@SCRIPT
def test_whatever_happens_each_sequence_gets_its_own_tokens_and_no_page_is_lost(
    actions, pages, max_batch_tokens, max_rows
):
    engine, toy = make(pages=pages, max_batch_tokens=max_batch_tokens, max_rows=max_rows)
    asked, tokens, cancelled, failing = {}, {}, set(), []
    for name in ("run", "advance"):
        method = getattr(toy, name)

        def call(*arguments, method=method, name=name):
            fails = dict(failing).get(name)
            pending = None if fails == "at once" else method(*arguments)
            if fails is not None:
                failing.clear()
                raise DeviceError("the GPU is out of memory")
            return pending

        setattr(toy, name, call)

    def step() -> None:
        try:
            for event in engine.step():
                tokens[event.sequence].extend(event.tokens)
        except DeviceError:
            pass
        check_pages(engine)

    for action in actions:
        match action:
            case ("add", prompt, params, priority):
                number = engine.add(prompt, params, priority=priority)
                asked[number], tokens[number] = (prompt, params), []
            case ("cancel", which) if asked:
                number = list(asked)[which % len(asked)]
                engine.cancel(number)
                cancelled.add(number)
            case ("steps", count):
                for _ in range(count):
                    step()
            case ("fail", name, at_once):
                failing[:] = [(name, "at once" if at_once else "when it has run")]
            case _:
                pass
    bound = 40 + 4 * sum(len(prompt) + params.max_tokens for prompt, params in asked.values())
    for _ in range(bound):
        if not engine.busy:
            break
        step()
    assert not engine.busy, "everything ends"
    for number, (prompt, params) in asked.items():
        expected = alone(prompt, params)
        stops = [place for place, token in enumerate(expected) if token in params.stop_token_ids]
        expected = expected[: stops[0] + 1] if stops else expected
        if number in cancelled:
            assert tuple(tokens[number]) == expected[: len(tokens[number])]
        else:
            assert tuple(tokens[number]) == expected
    assert engine._pool.free_pages == pages


def test_every_step_is_launched_before_the_tokens_of_the_last_are_read_while_sequences_come_and_go():
    engine, toy = make(pages=200, max_rows=8)
    rng = np.random.default_rng(0)
    for step in range(200):
        if step < 150 and step % 2 == 0:
            params = SamplingParams(max_tokens=int(rng.integers(2, 12)), temperature=0, frequency_penalty=0.5)
            engine.add(rng.integers(0, VOCAB, 5).tolist(), params)
        engine.step()
    launches = [i for i, line in enumerate(toy.log) if not line.startswith("read")]
    late = sum(toy.log[i + 1].startswith("read") or i + 1 == len(toy.log) for i in launches[:-1])
    waited = sum(toy.log[i - 1] == f"read {int(toy.log[i].split()[1]) - 1}" for i in launches[1:] if i > 0)
    assert len(launches) > 150 and late >= len(launches) - 2
    assert waited <= 2, (
        f"{waited} of {len(launches)} steps were launched after the tokens of the last were read"
    )


def test_the_second_of_two_equal_prompts_computes_no_more_than_a_page():
    engine, toy = make(context=400, pages=120, max_batch_tokens=400)
    prompt = list(range(97)) * 3
    first = engine.generate([prompt], GREEDY)[0]
    computed = [batch.tokens for batch in toy.batches]
    toy.batches.clear()
    assert engine.generate([prompt], GREEDY)[0] == first
    assert computed[0] == len(prompt) and toy.batches[0].tokens <= toy.page_size
    toy.batches.clear()
    engine.add(prompt, GREEDY, salt="another")
    engine.step()
    assert toy.batches[0].tokens == len(prompt), "sequences of another salt share nothing"


def test_sequences_that_run_side_by_side_share_the_pages_of_their_common_beginning():
    engine, _ = make(context=64, pages=64, max_rows=4)
    prompt = list(range(40))
    engine.add(prompt, GREEDY)
    for _ in range(4):
        engine.step()
    engine.add([*prompt, 50], GREEDY)
    engine.step()
    first, second = engine._scheduler.running
    assert first.pages[:10] == second.pages[:10] and second.shared == 10
    while engine.busy:
        engine.step()
        check_pages(engine)


def test_a_page_is_found_by_what_it_holds_and_never_by_a_hash_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Content, "__hash__", lambda content: 1)
    pool = PagePool(8, 4)
    (page,) = pool.allocate(1)
    pool.keep(page, Content("", np.arange(4, dtype=np.int32).tobytes()))
    pool.release([page])
    assert pool.find([0, 1, 2, 3, 9]) == [page]
    assert pool.find([0, 1, 2, 4, 9]) == [] == pool.find([0, 1, 2, 3, 9], salt="other")
    assert pool.find([0, 1, 2, 3]) == [], "one token at least is computed"


def test_of_pages_that_nobody_owns_the_one_unused_longest_is_given_out_and_children_before_parents():
    pool = PagePool(3, 2)
    first, second, third = pages = pool.allocate(3)
    pool.keep(first, Content("", b"a"))
    pool.keep(second, Content(first, b"b"))
    pool.keep(third, Content(second, b"c"))
    pool.release(pages)
    assert [pool.allocate(1) for _ in range(3)] == [[third], [second], [first]]


def test_a_sequence_of_a_higher_priority_is_admitted_first_and_preempted_last():
    engine, _ = make(pages=4)
    low = engine.add([1, 2, 3], GREEDY)
    high = engine.add([4, 5, 6], GREEDY, priority=1)
    ended = []
    while engine.busy:
        ended += [event.sequence for event in engine.step() if event.finish_reason]
    assert ended == [high, low] and engine._scheduler.preempted > 0


def test_most_of_many_short_prompts_that_may_grow_long_run_at_once():
    toy = ToyExecutor(
        lambda context: np.eye(VOCAB, dtype=np.float32)[1], VOCAB, pages=1000, page_size=64, max_rows=256
    )
    toy.max_batch_tokens = 4096
    from test_engine import model_info

    engine = Engine(toy, model_info(8192))
    for number in range(100):
        engine.add([number % VOCAB] * 100, SamplingParams(max_tokens=4000, temperature=0))
    for _ in range(6):
        engine.step()
    assert len(engine._scheduler.running) >= 90
