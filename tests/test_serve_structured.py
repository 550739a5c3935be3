"""The form of answers over HTTP: schemas, regular expressions, choices and grammars, at any temperature."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from schemas import REFUSED, SCHEMAS, check_answer
from serving import Reply, RunningServer, running

WILD: dict[str, Any] = {"temperature": 1.5, "max_tokens": 40}
CALM: dict[str, Any] = {"temperature": 0.8, "max_tokens": 150}
AGES = {
    "type": "object",
    "properties": {"name": {"enum": ["Dante", "Virgil"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def named(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def text_of(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"]["content"]


def ended(reply: Reply) -> list[str]:
    """The texts of the choices, all of which have come to their end."""
    assert reply.status == 200, reply.body
    choices = reply.json["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}, choices
    return [text_of(choice) for choice in choices]


def test_every_answer_that_ends_is_valid(server: RunningServer) -> None:
    """All schemas at once, at a temperature that draws nearly any token."""
    replies: dict[str, Reply] = {}

    def ask(name: str) -> None:
        form = named(SCHEMAS[name])
        replies[name] = server.complete("Then", n=2, seed=3, response_format=form, **WILD)

    threads = [threading.Thread(target=ask, args=(name,)) for name in SCHEMAS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, reply in replies.items():
        assert reply.status == 200, (name, reply.body)
        for choice in reply.json["choices"]:
            if choice["finish_reason"] == "stop":
                check_answer(choice["text"], SCHEMAS[name])
    ends = [choice["finish_reason"] for reply in replies.values() for choice in reply.json["choices"]]
    assert ends.count("stop") > len(SCHEMAS)


def test_a_chat_and_a_completion_have_the_form_that_each_field_asks_for(server: RunningServer) -> None:
    forms: list[tuple[dict[str, Any], Any]] = [
        ({"response_format": named(AGES)}, AGES),
        ({"response_format": {"type": "json_object", "schema": AGES}}, AGES),
        ({"structured_outputs": {"json": AGES}}, AGES),
        ({"structured_outputs": {"json": json.dumps(AGES)}}, AGES),
    ]
    for fields, schema in forms:
        for reply in (server.complete("Then", **CALM, **fields), server.chat("Who?", **CALM, **fields)):
            check_answer(*ended(reply), schema)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-f]{3,5}-[0-9]{2}"}, r"[a-f]{3,5}-[0-9]{2}"),
        ({"choice": ["Hell", "Heaven", 'a "gate"\n']}, '(Hell|Heaven|a "gate"\n)'),
        ({"grammar": 'start: "a" b+\nb: "b" | "c"'}, "a[bc]+"),
        ({"grammar": 'root ::= "a" b+\nb ::= "b" | "c"'}, "a[bc]+"),
        ({"json": {"enum": [[1, 2], {"a": None}]}, "disable_any_whitespace": True}, r'\[1,2\]|\{"a":null\}'),
    ],
    ids=["regex", "choice", "lark", "gbnf", "json without spaces"],
)
def test_structured_outputs(form: dict[str, Any], pattern: str, server: RunningServer) -> None:
    for seed in range(3):
        reply = server.complete("Then", seed=seed, structured_outputs=form, **WILD)
        (choice,) = reply.json["choices"]
        cut = choice["finish_reason"] == "length"
        assert cut or re.fullmatch(pattern, choice["text"]), choice


def test_a_stream_is_the_whole_answer_and_all_choices_keep_the_form(server: RunningServer) -> None:
    fields: dict[str, Any] = {**CALM, "n": 5, "seed": 8, "response_format": named(AGES), "logprobs": 2}
    whole = server.complete("Then", **fields)
    texts = ended(whole)
    assert len(set(texts)) > 1
    for text in texts:
        check_answer(text, AGES)
    streamed = [""] * 5
    for event in server.complete("Then", stream=True, **fields).events:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_log_probabilities_are_those_without_the_grammar(server: RunningServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 1, "logprobs": 5}
    free = server.complete("Then", **fields).json["choices"][0]["logprobs"]
    bound = server.complete("Then", structured_outputs={"regex": "[0-9]"}, **fields).json["choices"][0][
        "logprobs"
    ]
    likely = free["top_logprobs"][0]
    assert bound["tokens"][0] in "0123456789"
    assert likely.items() <= bound["top_logprobs"][0].items()
    assert bound["token_logprobs"][0] < min(likely.values())


def test_a_stop_string_cuts_an_answer_of_a_form(server: RunningServer) -> None:
    reply = server.complete("Then", response_format=named(AGES), stop='"age"', **CALM)
    (choice,) = reply.json["choices"]
    assert choice["stop_reason"] == '"age"' and choice["text"].lstrip().startswith("{")


def test_strict_false_leaves_out_what_cannot_be_enforced(server: RunningServer) -> None:
    schema = {"type": "array", "items": {"enum": [1]}, "maxItems": 3, "uniqueItems": True}
    refused = server.complete("Then", response_format=named(schema))
    assert refused.status == 400 and "uniqueItems" in refused.error["message"]
    (text,) = ended(server.complete("Then", response_format=named(schema, strict=False), **CALM))
    check_answer(text, {**schema, "uniqueItems": False})


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_grammar_is_refused_before_it_is_queued(name: str, server: RunningServer) -> None:
    form, message = REFUSED[name]
    steps = server.metric("request_params_n_count")
    reply = server.complete("Then", structured_outputs=form)
    assert reply.status == 400 and reply.error["param"] == "structured_outputs"
    assert message in reply.error["message"]
    assert server.metric("request_params_n_count") == steps


def test_neighbours_without_a_form_have_the_tokens_that_they_have_alone(server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "max_tokens": 20, "ignore_eos": True}
    prompts = ["In the middle of", "Then", "The gate"]
    alone = [server.complete(prompt, seed=7, **fields).json["choices"][0]["text"] for prompt in prompts]
    texts: dict[int, str] = {}

    def free(place: int) -> None:
        reply = server.complete(prompts[place % 3], seed=7, **fields)
        texts[place] = reply.json["choices"][0]["text"]

    def bound(place: int) -> None:
        server.complete("Then", seed=place, response_format=named(AGES), **WILD)

    threads = [threading.Thread(target=(free, bound)[n % 2], args=(n // 2,)) for n in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {place: alone[place % 3] for place in range(9)}


def test_grammars_that_take_long_hold_up_no_other_request(server: RunningServer) -> None:
    """A hundred come at once: those that find no place are told to try again, and texts are tokenized meanwhile."""
    statuses: list[int] = []

    def ask(number: int) -> None:
        form = {"json": {"type": "integer", "multipleOf": 1_000_003 + number}}
        statuses.append(server.complete("Then", structured_outputs=form).status)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    assert server.ask("/tokenize", {"prompt": "the gate of Hell " * 1000}).status == 200
    assert any(thread.is_alive() for thread in threads), "the text waits for no grammar"
    for thread in threads:
        thread.join()
    assert set(statuses) == {400, 429}


def test_a_client_that_goes_while_its_grammar_is_compiled_leaves_nothing(server: RunningServer) -> None:
    for number in range(20):
        form = {"regex": f"a{{9,}}{number}"}
        body = {"prompt": "Then", "max_tokens": 500, "structured_outputs": form}
        with pytest.raises(TimeoutError):
            server.ask("/v1/completions", body, timeout=0.01)
    server.wait_until_idle()
