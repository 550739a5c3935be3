"""Outputs of a form: grammars of `LLM.generate`, `stream` and `chat`, and of `infernum run`."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

from infernum import LLM, Grammar, SamplingParams
from infernum.errors import RequestError

PROMPT = "In the middle of the journey"
SCHEMA = {
    "type": "object",
    "properties": {"canto": {"type": "integer", "minimum": 1, "maximum": 34}, "hell": {"type": "boolean"}},
    "required": ["canto", "hell"],
    "additionalProperties": False,
}
PARAMS = SamplingParams(temperature=1.0, seed=4, max_tokens=80)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("dante-chat", "cpu", "float32", max_model_len=400) as opened:
        yield opened


def is_canto(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"canto", "hell"} and 1 <= value["canto"] <= 34 and isinstance(value["hell"], bool)


def test_an_output_has_the_form_of_its_grammar_and_then_ends(llm: LLM) -> None:
    forms: list[tuple[Grammar, Callable[[str], Any]]] = [
        (Grammar.json(SCHEMA), is_canto),
        (Grammar.json(json.dumps(SCHEMA), whitespace=""), lambda text: " " not in text and is_canto(text)),
        (Grammar.regex(r"[A-Z][a-z]{2,6}, [0-9]{4}"), re.compile(r"[A-Z][a-z]{2,6}, [0-9]{4}").fullmatch),
        (Grammar.choice(["Virgil", "Beatrice"]), {"Virgil", "Beatrice"}.__contains__),
        (Grammar.lark('start: "x" DIGIT+\nDIGIT: /[0-3]/'), re.compile("x[0-3]+").fullmatch),
        (Grammar.lark('root ::= "(" [a-c] ")"'), re.compile(r"\([a-c]\)").fullmatch),
    ]
    for grammar, fits in forms:
        (found,) = llm.generate(PROMPT, PARAMS, grammar=grammar)
        assert fits(found.text), (grammar, found.text)
        assert found.finish_reason == "stop"
        streamed = "".join(event.text for event in llm.stream(PROMPT, PARAMS, grammar=grammar))
        assert streamed == found.text


def test_each_prompt_has_its_own_form_or_none_and_each_completion_a_mask_of_its_own(llm: LLM) -> None:
    free = llm.generate([PROMPT], [PARAMS])[0]
    two = SamplingParams(temperature=1.0, seed=4, max_tokens=80, n=2)
    grammars = [None, Grammar.json(SCHEMA), Grammar.choice(["yes", "no"])]
    texts = [each.text for each in llm.generate([PROMPT] * 3, [PARAMS, two, PARAMS], grammar=grammars)]
    assert texts[0] == free.text and all(map(is_canto, texts[1:3])) and texts[3] in ("yes", "no")


def test_an_answer_of_a_conversation_has_a_form_too(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Who guides Dante?"}]
    grammar = Grammar.choice(["Virgil does.", "Nobody does."])
    assert llm.chat(messages, grammar=grammar).text in ("Virgil does.", "Nobody does.")
    streamed = "".join(event.text for event in llm.stream_chat(messages, grammar=grammar))
    assert streamed in ("Virgil does.", "Nobody does.")


BAD: dict[str, tuple[Any, str]] = {
    "a schema that is none": (Grammar.json({"type": "sequence"}), "^the grammar cannot be used: .*"),
    "text that is no JSON": (Grammar.json("{"), "^the grammar cannot be used: "),
    "a regular expression that does not end": (Grammar.regex("("), "^the grammar cannot be used: .*unclosed"),
    "a grammar without a start": (Grammar.lark("a: b"), "^the grammar cannot be used: "),
    "no grammar": ("[0-9]", "^grammar is '.*'; give a Grammar, or a list with one for each prompt"),
    "too many": ([None, None], "^2 grammars are given for 1 prompts"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_grammar_that_cannot_be_used_is_refused_before_anything_runs(what: str, llm: LLM) -> None:
    grammar, message = BAD[what]
    with pytest.raises(RequestError, match=message) as refused:
        llm.generate(PROMPT, PARAMS, grammar=grammar)
    assert "\n" not in str(refused.value) and not llm.engine.busy
    assert llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=2))[0].tokens


def test_what_a_grammar_is_made_of_is_checked_at_once() -> None:
    with pytest.raises(RequestError, match="the schema is no JSON"):
        Grammar.json({"const": {1, 2}})
    for texts in ([], "yes", [1]):
        with pytest.raises(RequestError, match=r"the choice is .*; give a list of at least one text"):
            Grammar.choice(texts)  # pyright: ignore[reportArgumentType]


def test_without_llguidance_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "infernum.engine.grammars":
            raise ModuleNotFoundError("No module named 'llguidance'", name="llguidance")
        return load(name, *arguments)

    with LLM("dante", "cpu", "float32", max_model_len=64) as plain:
        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(RequestError, match=r"needs llguidance, .* run `pip install infernum\[serve\]`"):
            plain.generate(PROMPT, PARAMS, grammar=Grammar.regex("a"))


def test_a_model_without_a_tokenizer_has_no_grammars(tmp_path: Path) -> None:
    tiny = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    tiny |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    with (
        LLM(tmp_path, "cpu", "float32", load_format="dummy") as plain,
        pytest.raises(RequestError, match=r"^a grammar needs a tokenizer: .*tokenizer\.json"),
    ):
        plain.generate([[1, 2]], PARAMS, grammar=Grammar.regex("a"))


def test_the_command_generates_what_a_schema_or_a_pattern_allows(
    tmp_path: Path, infernum: Callable[..., Outcome]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    command = ("run", PROMPT, "--device", "cpu", "--seed", "3")
    assert is_canto(infernum(*command, "--json-schema", schema).out)
    assert re.fullmatch("[0-9]{4}\n", infernum(*command, "--regex", "[0-9]{4}").out)
    both = infernum(*command, "--regex", "a", "--json-schema", schema)
    assert both.code == 2 and "--json-schema and --regex exclude each other" in both.err
    missing = infernum(*command, "--json-schema", tmp_path / "none.json")
    assert (
        missing.code == 2 and missing.err.startswith("error: --json-schema") and missing.err.count("\n") == 1
    )
    schema.write_text("{")
    assert "the grammar cannot be used" in infernum(*command, "--json-schema", schema).err
