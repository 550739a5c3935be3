"""Grammars of answers that must call: whatever a model draws within one, its family's scanner reads as calls."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from test_chat_calls import merged, read

from infernum import resources
from infernum.chat.calls.families import FAMILIES
from infernum.chat.calls.grammar import CalledSchema, answer_grammar
from infernum.chat.reader import AnswerForm, Thought
from infernum.engine.tokenizer import Tokenizer

llguidance = pytest.importorskip("llguidance")
import tokenizers  # noqa: E402
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask  # noqa: E402

NUMBER = {"$ref": "#/$defs/n"}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "canto": {
        "type": "object",
        "properties": {"number": NUMBER, "part": {"enum": ["first", "läst"]}},
        "required": ["number", "part"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 34}},
    },
    "no_arguments": {"properties": {}, "additionalProperties": False},
    "names": {
        "properties": {"x": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2}},
        "required": ["x"],
        "additionalProperties": False,
    },
}


def tokenizer_with(special: tuple[str, ...]) -> tokenizers.Tokenizer:
    folder = resources.demo_folder("dante_chat")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in special])
    return backend


def drawn(backend: tokenizers.Tokenizer, grammar: str, draw: random.Random, opening: str = "") -> str:
    """The text of tokens that are drawn from those that a grammar allows, all alike, but the end where it may be."""
    table = llguidance.LLTokenizer(backend.to_str(), eos_token=4097)
    matcher = llguidance.LLMatcher(table, grammar)
    assert not matcher.get_error(), matcher.get_error()
    tokens: list[int] = []
    mask = allocate_token_bitmask(1, table.vocab_size)
    while not matcher.is_stopped() and not (matcher.is_accepting() and draw.random() < 0.5):
        fill_next_token_bitmask(matcher, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: table.vocab_size]
        allowed = np.flatnonzero(bits)
        closing = [token for token in allowed if backend.id_to_token(int(token)) == "</think>"]
        pick = closing[0] if closing and draw.random() < 0.2 else draw.choice(list(allowed))
        if pick == 4097:
            break
        tokens.append(int(pick))
        assert matcher.consume_token(int(pick)), matcher.get_error()
        assert len(tokens) < 600
    return Tokenizer(backend).decode(tokens, special=True)


def accepts(backend: tokenizers.Tokenizer, grammar: str, text: str) -> bool:
    """Whether a text is a whole answer."""
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(backend.to_str()), grammar)
    assert not matcher.get_error(), matcher.get_error()
    tokens = backend.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def is_valid(name: str, arguments: dict[str, Any]) -> bool:
    match name, arguments:
        case "canto", {"number": int(number), "part": part}:
            return 1 <= number <= 34 and part in ("first", "läst") and len(arguments) == 2
        case "no_arguments", {}:
            return not arguments
        case "names", {"x": list(words)}:
            return len(words) <= 2 and all(isinstance(word, str) and len(word) <= 3 for word in words)
        case _:
            return False


@pytest.mark.parametrize("one_call", [False, True])
@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_drawn_is_calls_of_the_functions(
    family: str, marks_are_tokens: bool, one_call: bool
) -> None:
    form = AnswerForm(FAMILIES[family], one_call=one_call)
    backend = tokenizer_with(FAMILIES[family].special if marks_are_tokens else ())
    functions = [CalledSchema(name, schema) for name, schema in FUNCTIONS.items()]
    grammar = answer_grammar(form, backend.token_to_id, functions)
    draw = random.Random(family)
    counts: set[int] = set()
    names: set[str] = set()
    for _ in range(25):
        text = drawn(backend, grammar, draw)
        calls = merged(read(form, text))
        assert calls and all(isinstance(call, tuple) and is_valid(*call) for call in calls), text
        counts.add(len(calls))
        names |= {call[0] for call in calls}
    assert names == set(FUNCTIONS)
    assert counts == {1} if one_call else len(counts) > 1


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("marks_are_tokens", [False, True])
def test_a_model_may_think_before_it_must_call(marks_are_tokens: bool, opened: bool) -> None:
    form = AnswerForm(FAMILIES["hermes"], reasons=True, opened=opened, one_call=True)
    backend = tokenizer_with(form.special if marks_are_tokens else ())
    grammar = answer_grammar(form, backend.token_to_id, [CalledSchema("no_arguments", {})])
    call = '<tool_call>\n{"name": "no_arguments", "arguments": {}}\n</tool_call>'
    thought = ("" if opened else "<think>") + "\nSo < it is.\n</think>\n\n"
    for text, complete in (
        (thought + call, True),
        (call, not opened),
        (thought + "no", False),
        (thought, False),
    ):
        assert accepts(backend, grammar, text) == complete, text
    segments = read(form, thought + call)
    assert isinstance(segments[0], Thought) and merged(segments)[-1] == ("no_arguments", {})
    assert json.loads(segments[-1].arguments) == {}


@pytest.mark.parametrize(
    "answer",
    [
        llguidance.LLMatcher.grammar_from_json_schema('{"type": "object", "properties": {}}'),
        'start: "{}" | "{" " " "}"',
    ],
)
def test_an_answer_has_the_form_that_is_asked_for_or_calls(answer: str) -> None:
    """With tools and response_format, and a model that thinks: after that, nothing but calls or the form."""
    form = AnswerForm(FAMILIES["hermes"], reasons=True)
    backend = tokenizer_with(form.special)
    both = answer_grammar(form, backend.token_to_id, [CalledSchema("now", {})], answer)
    alone = answer_grammar(form, backend.token_to_id, (), answer)
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for thought in ("", "<think>So {} it is</think>\n"):
        assert accepts(backend, both, thought + "{}") and accepts(backend, both, thought + call)
        assert accepts(backend, alone, thought + "{}") and not accepts(backend, alone, thought + call)
        assert not accepts(backend, both, thought + "no") and not accepts(backend, both, call + "{}")


def test_what_a_schema_asks_for_in_vain_is_left_out_unless_it_is_strict() -> None:
    backend = tokenizer_with(())
    schema = {"properties": {"x": {"type": "string", "format": "no such format"}}}
    for lenient in (False, True):
        function = CalledSchema("f", schema, lenient)
        grammar = answer_grammar(AnswerForm(FAMILIES["hermes"]), backend.token_to_id, [function])
        table = llguidance.LLTokenizer(backend.to_str())
        failed, _ = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, table)
        assert failed != lenient
