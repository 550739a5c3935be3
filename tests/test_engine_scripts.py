"""The engine under random scripts: whoever comes, goes or is preempted, each gets the tokens it would get alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import (
    GREEDY,
    VOCAB,
    alone,
    alternating,
    assert_logprobs,
    assert_prompt_logprobs,
    make,
    masked_model,
)
from toy_executor import ToyExecutor

from infernum.engine.engine import Engine
from infernum.engine.events import Event
from infernum.engine.page_pool import PagePool
from infernum.engine.sequence import Mask
from infernum.engine.slots import Slots
from infernum.engine.windowed_pages import WindowedPages
from infernum.errors import DeviceError
from infernum.sampling_params import SamplingParams


class MaskError(Exception):
    """What a mask raises that fails."""


def fails_at_the_third(output: np.ndarray) -> None:
    """Any token may follow, until there are two."""
    if len(output) >= 2:
        raise MaskError


def params_of(max_tokens: int, min_tokens: int, prompt_logprobs: int | None, **others: Any) -> SamplingParams:
    """Only a prompt that is scored may have no output, and no output is shorter than `min_tokens`."""
    longest = max_tokens if prompt_logprobs is not None else max(1, max_tokens)
    return SamplingParams(
        max_tokens=longest, min_tokens=min(min_tokens, longest), prompt_logprobs=prompt_logprobs, **others
    )


PARAMS = st.builds(
    params_of,
    max_tokens=st.integers(0, 14),
    min_tokens=st.sampled_from([0, 0, 1]),
    prompt_logprobs=st.sampled_from([None, None, None, 0, 2]),
    logprobs=st.sampled_from([None, None, None, 1]),
    temperature=st.sampled_from([0.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.7]),
    logit_bias=st.sampled_from([{}, {}, {1: 2.5, 3: -100}]),
    stop_token_ids=st.sampled_from([(), (), tuple(range(0, VOCAB, 4))]),
    seed=st.integers(0, 5),
)
PROMPT = st.builds(
    lambda shared, own: [0, 1, 2, 3, 1, 0, 2, 1, 3][:shared] + own,
    st.integers(0, 9),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
MASK = st.sampled_from([None, None, None, alternating, fails_at_the_third])
REQUEST = st.tuples(PROMPT, PARAMS, st.integers(0, 2), MASK)
ACTION = st.one_of(
    st.tuples(st.just("add"), st.lists(REQUEST, min_size=1, max_size=5)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("steps"), st.integers(1, 6)),
    st.tuples(
        st.just("fail"), st.sampled_from(["run", "advance"]), st.sampled_from(["at once", "then", "read"])
    ),
)


def wrap_soon(engine: Engine) -> None:
    """Let each slot have its turn as often as there are slots, as in a run of thousands of steps."""
    slots = engine._scheduler.slots
    slots.recent = slots.recent[: len(slots.number)]


def check_pages(engine: Engine) -> None:
    """Every page is empty, idle, or owned by as many running sequences as the pool has counted."""
    pool, running = engine._pool, engine._scheduler.running
    owners, further = np.zeros(pool.num_pages, int), 0
    for sequence in running:
        slots, slot = engine._scheduler.slots, sequence.slot
        pages = slots.pages_of(slot)
        assert len(set(pages)) == len(pages)
        np.add.at(owners, pages, 1)
        assert np.flatnonzero(slots.pages[slot] >= 0).tolist() == list(range(len(pages)))
        assert slots.held[slot] == len(pages) * pool.page_size >= slots.computed[slot]
        further += pool.pages_for(sequence.limit) - len(pages)
    assert owners.tolist() == pool._owners
    assert engine._scheduler._growth == further
    free = [*pool._empty, *pool._idle]
    assert sorted(free) == np.flatnonzero(owners == 0).tolist()
    parents = [parent for parent, _ in pool._kept if isinstance(parent, int)]
    assert all(pool._contents[parent] is not None for parent in parents)
    for group in engine._scheduler.slots.windowed:
        check_windowed_pages(group, [sequence.slot for sequence in running])
    check_groups(engine._scheduler.slots)


def check_groups(slots: Slots) -> None:
    """Slots decode, compute prompts, or have come to their limits, as follows from what is computed of each."""
    decoding, prompting = slots.decoding, slots.prompting
    slots.regroup()
    assert sorted(slots.decoding.tolist()) == sorted(decoding.tolist())
    assert sorted(slots.prompting) == sorted(prompting)
    slots.decoding, slots.prompting = decoding, prompting  # an equal array would be another step's


def check_windowed_pages(group: WindowedPages, slots: list[int]) -> None:
    """Every page of a group with a window is free, or owned by one running sequence, at a column of its range."""
    owned = [
        page for slot in slots for page in group.table[slot, group.first[slot] : group.end[slot]].tolist()
    ]
    assert sorted([*owned, *group.pool._empty]) == list(range(group.pool.num_pages))
    assert np.count_nonzero(group.table >= 0) == len(owned)


SCRIPT = given(
    actions=st.lists(ACTION, min_size=1, max_size=14),
    pages=st.sampled_from([8, 9, 10, 12, 24]),
    max_batch_tokens=st.integers(3, 24),
    max_rows=st.integers(1, 6),
    window=st.sampled_from([None, None, 1, 3, 6, 9, 20]),
    spare=st.integers(0, 6),
    reserves=st.booleans(),
)


@settings(max_examples=300)
@SCRIPT
def test_whatever_happens_each_sequence_gets_its_own_tokens_and_no_page_is_lost(
    actions, pages, max_batch_tokens, max_rows, window, spare, reserves
):
    windowed = {} if window is None else {window: -(-window // 4) + 2 + spare}
    engine, toy = make(pages=pages, max_batch_tokens=max_batch_tokens, max_rows=max_rows, windowed=windowed)
    wrap_soon(engine)
    if not reserves:  # so that many are preempted
        engine._scheduler._reserved = lambda own, growing: 0
    requests: dict[int, Requested] = {}
    failing = []
    for name in ("run", "advance"):
        method = getattr(toy, name)

        def call(*arguments, method=method, name=name):
            when = dict(failing).get(name)
            pending = None if when == "at once" else method(*arguments)
            if when is None:
                return pending
            failing.clear()
            if when == "read":
                return LostTokens()
            raise DeviceError("the GPU is out of memory")

        setattr(toy, name, call)

    def step() -> None:
        try:
            for event in engine.step():
                requests[event.sequence].events.append(event)
        except (DeviceError, MaskError):
            pass
        check_pages(engine)

    for action in actions:
        match action:
            case ("add", several):
                for prompt, params, priority, mask in several:
                    number = engine.add(prompt, params, priority=priority, allowed=mask)
                    requests[number] = Requested(prompt, params, mask)
            case ("cancel", which) if requests:
                number = list(requests)[which % len(requests)]
                engine.cancel(number)
                requests[number].cancelled = True
            case ("steps", count):
                for _ in range(count):
                    step()
            case ("fail", name, when):
                failing[:] = [(name, when)]
            case _:
                pass
    bound = 40 + 4 * sum(len(each.prompt) + each.params.max_tokens for each in requests.values())
    for _ in range(bound):
        if not engine.busy:
            break
        step()
    assert not engine.busy, "everything ends"
    for each in requests.values():
        each.check()
    assert engine._pool.free_pages == pages
    assert not engine._scheduler.slots.tables.in_use and not engine._loop._unscored


class LostTokens:
    """A step that was launched, and whose tokens cannot be read."""

    def tokens(self) -> np.ndarray:
        raise DeviceError("the GPU is lost")


@dataclass
class Requested:
    """A sequence of a script, and the events that it has had."""

    prompt: list[int]
    params: SamplingParams
    mask: Mask | None
    cancelled: bool = False
    events: list[Event] = field(default_factory=list)

    def check(self) -> None:
        """The sequence has the tokens and log-probabilities that it would have alone, up to where it was ended."""
        tokens = tuple(token for event in self.events for token in event.tokens)
        whole = self.expected()
        complete = not self.cancelled and (self.mask is not fails_at_the_third or len(whole) <= 2)
        if complete:
            assert tokens == whole
        else:
            assert tokens == whole[: len(tokens)]
            assert self.mask is not fails_at_the_third or len(tokens) <= 2
        logprobs = [each for event in self.events for each in event.logprobs or ()]
        if self.params.logprobs is None:
            assert not logprobs
        else:
            assert_logprobs(logprobs, self.prompt, tokens, self.params.logprobs)
        scores = [event.prompt_logprobs for event in self.events if event.prompt_logprobs is not None]
        assert len(scores) == (self.params.prompt_logprobs is not None and (complete or bool(self.events)))
        for each in scores:
            assert_prompt_logprobs(each, self.prompt, self.params.prompt_logprobs)

    def expected(self) -> tuple[int, ...]:
        model = masked_model(len(self.prompt)) if self.mask is alternating else None
        whole = alone(self.prompt, self.params, model=model)
        stops = [place for place, token in enumerate(whole) if token in self.params.stop_token_ids]
        return whole[: stops[0] + 1] if stops else whole


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
    slots = engine._scheduler.slots
    assert slots.pages_of(first.slot)[:10] == slots.pages_of(second.slot)[:10]
    assert engine._scheduler.cached_tokens == 40
    while engine.busy:
        engine.step()
        check_pages(engine)


@pytest.mark.parametrize("has_ended", [True, False])
def test_an_answer_is_found_again_as_the_beginning_of_the_next_prompt(has_ended: bool):
    engine, toy = make(context=64, pages=64, max_rows=4)
    wrap_soon(engine)
    params = SamplingParams(max_tokens=30, temperature=0)
    answer = alone([1, 2, 3], params)
    engine.add([1, 2, 3], params)
    for _ in range(40 if has_ended else 20):
        engine.step()
    assert engine.busy != has_ended
    toy.batches.clear()
    read = 29 if has_ended else 12  # a slot has its turn every four steps
    engine.add([1, 2, 3, *answer[:read], 7], GREEDY)
    engine.step()
    assert toy.batches[0].tokens - (not has_ended) <= toy.page_size


def test_a_page_is_found_by_what_it_holds_and_never_by_a_hash_alone(monkeypatch: pytest.MonkeyPatch):
    class Tokens(bytes):
        def __hash__(self) -> int:
            return 1

    class Salt(str):
        def __hash__(self) -> int:
            return 1

    by_page = PagePool._by_page
    monkeypatch.setattr(PagePool, "_by_page", lambda pool, tokens: list(map(Tokens, by_page(pool, tokens))))
    pool = PagePool(8, 4)
    (page,) = pool.allocate(1)
    pool.keep(Salt(), [page], np.arange(4, dtype=np.int32))
    pool.release([page])
    assert pool.find([0, 1, 2, 3, 9], Salt()) == [page]
    assert pool.find([0, 1, 2, 4, 9], Salt()) == [] == pool.find([0, 1, 2, 3, 9], Salt("other"))
    assert pool.find([0, 1, 2, 3]) == [], "one token at least is computed"


def test_of_pages_that_nobody_owns_the_one_unused_longest_is_given_out_and_children_before_parents():
    pool = PagePool(3, 2)
    first, second, third = pages = pool.allocate(3)
    assert pool.keep("", pages, np.arange(6, dtype=np.int32)) == pages
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
