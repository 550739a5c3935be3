"""Tests of grammars over tokens: which tokens may follow, in which order whatever is asked, and what ends an output."""

import re
from pathlib import Path

import numpy as np
import pytest
from toy_executor import ToyExecutor, hashed_logits

from infernum import SamplingParams
from infernum.engine.engine import Engine
from infernum.engine.events import StepRecord
from infernum.engine.grammars import Grammars
from infernum.engine.sequence import Mask
from infernum.engine.tokenizer import load_tokenizer
from infernum.errors import RequestError
from infernum.manifest import ModelInfo

DANTE = Path(__file__).parents[1] / "examples" / "dante"
VOCAB, END = 4160, 4095  # more tokens than the tokenizer has
DIGITS = r"start: /[0-9]{2,4}/"


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(DANTE / "tokenizer.json", VOCAB, [END])


def ids(text: str) -> np.ndarray:
    tokenizer = load_tokenizer(DANTE)
    assert tokenizer is not None
    return np.array(tokenizer.encode_plain(text), np.int32)


def texts(bits: np.ndarray) -> set[str]:
    """The tokens of a mask, spelled."""
    tokenizer = load_tokenizer(DANTE)
    assert tokenizer is not None
    tokens = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
    return {"END" if token == END else tokenizer.spelled(int(token)) for token in tokens}


def test_the_end_is_allowed_exactly_when_the_grammar_accepts(grammars: Grammars) -> None:
    mask = grammars.mask('start: "ab" "c"?')
    assert "END" not in texts(mask(ids("a")))
    assert texts(mask(ids("ab"))) == {"c", "END"}
    assert texts(mask(ids("abc"))) == {"END"}


def test_stop_tokens_of_a_request_end_it_as_the_model_s_do(grammars: Grammars) -> None:
    own = int(ids("Z")[0])
    mask = grammars.mask('start: "ab"', stops=[own])
    assert "Z" not in texts(mask(ids("a"))) and texts(mask(ids("ab"))) == {"Z", "END"}


def test_a_mask_depends_on_the_output_alone(grammars: Grammars) -> None:
    asked = ["", "1", "12", "1", "34", "3456", "12", ""]
    mask = grammars.mask(DIGITS)
    for text in asked:
        assert np.array_equal(mask(ids(text)), grammars.mask(DIGITS)(ids(text))), text


def test_masks_of_a_step_at_once_are_those_one_by_one(grammars: Grammars) -> None:
    outputs = ["", "1", "12", "1234"] * 8
    masks = [grammars.mask(DIGITS) for _ in outputs]
    grammars.prepare([(mask, ids(output)) for mask, output in zip(masks, outputs, strict=True)])
    for mask, output in zip(masks, outputs, strict=True):
        alone = grammars.mask(DIGITS)
        assert np.array_equal(mask(ids(output)), alone(ids(output))), output


def test_an_output_that_the_grammar_refuses_has_no_tokens_and_a_reason(grammars: Grammars) -> None:
    mask = grammars.mask(DIGITS)
    assert mask.error is None
    assert texts(mask(ids("x"))) == set() and mask.error


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: (", "Expected"),
        ("start: start start", "no text follows"),
        ("", "Empty grammar"),
        ('begin: "a"', "no start"),
    ],
)
def test_what_is_no_grammar_is_refused(grammar: str, message: str, grammars: Grammars) -> None:
    with pytest.raises(RequestError, match=message):
        grammars.check(grammar)


def test_a_model_without_end_tokens_has_no_grammars() -> None:
    with pytest.raises(RequestError, match="stop_token_ids"):
        Grammars(DANTE / "tokenizer.json", VOCAB).mask(DIGITS)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(RequestError, match="vocab size too small"):
        Grammars(DANTE / "tokenizer.json", 100, [END]).mask(DIGITS)


def run(grammar: Mask | None, place: int, engine: Engine) -> int:
    params = SamplingParams(temperature=1.5, seed=place, max_tokens=12)
    return engine.add([place + 1, 2], params, allowed=grammar)


def outputs(engine: Engine) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while engine.busy:
        for event in engine.step():
            tokens.setdefault(event.sequence, []).extend(event.tokens)
    return tokens


@pytest.mark.parametrize("pages", [64, 9])
def test_preempted_sequences_follow_their_grammars_and_others_are_as_if_alone(
    pages: int, grammars: Grammars
) -> None:
    """Of eight sequences, four are constrained; with few pages, some are preempted, and computed again."""
    info = ModelInfo("toy", "toy", {}, "", VOCAB, 64, 1)

    def engine() -> Engine:
        executor = ToyExecutor(hashed_logits(VOCAB), VOCAB, pages=pages)
        return Engine(executor, info, [END], prepare_masks=grammars.prepare)

    together, records = engine(), list[StepRecord]()
    together.on_step = records.append
    pattern = "start: /[a-f]{5,9}/"
    numbers = [run(grammars.mask(pattern) if place % 2 else None, place, together) for place in range(8)]
    company = outputs(together)
    tokenizer = load_tokenizer(DANTE)
    assert tokenizer is not None and (pages > 9) == (records[-1].preemptions == 0)
    for place, number in enumerate(numbers):
        lonely = engine()
        first = run(grammars.mask(pattern) if place % 2 else None, place, lonely)
        alone = outputs(lonely)[first]
        assert company[number] == alone
        if place % 2:
            assert alone[-1] == END and re.fullmatch("[a-f]{5,9}", tokenizer.decode(alone[:-1]))
