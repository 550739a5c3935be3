"""`infernum serve` as clients see it: endpoints, fields, forms of answers and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import ROOT, RunningServer, running, start

from infernum import LLM, SamplingParams

QUESTION = "Who guides Dante through Hell?"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def test_a_model_of_a_plugin_is_served_within_a_limit_of_time() -> None:
    family = ROOT / "examples" / "new_family"
    options = ("--plugin", str(family / "olmo2.py"), "--max-itl-ms", "200", "--load-format", "dummy")
    server = start(*options, model=str(family / "model"))
    assert server.complete([5, 6, 7], max_tokens=4, ignore_eos=True).json["usage"]["completion_tokens"] == 4
    assert server.stop() == 0


@pytest.fixture(scope="module")
def model() -> Iterator[LLM]:
    with LLM("dante-chat", device="cpu") as llm:
        yield llm


def test_a_chat_is_answered_as_in_python(server: RunningServer, model: LLM) -> None:
    expected = model.chat([{"role": "user", "content": QUESTION}], SamplingParams(temperature=0))
    reply = server.chat(QUESTION)
    assert reply.status == 200
    choice = reply.json["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] is None
    usage = reply.json["usage"]
    assert usage["completion_tokens"] == len(expected.tokens)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_is_the_answer_in_pieces(server: RunningServer) -> None:
    whole = server.chat(QUESTION).json
    events = server.chat(QUESTION, stream=True, stream_options={"include_usage": True}).events
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({event["id"] for event in events}) == len({event["created"] for event in events}) == 1
    texts = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    assert [reason for reason in reasons if reason] == ["stop"] and reasons[-1] == "stop"
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists"])
def test_a_prompt_may_have_any_of_four_forms(form: str, server: RunningServer, model: LLM) -> None:
    texts = ["In the middle of", "The gate of Hell"]
    ids = model.encode(texts)
    prompts: dict[str, Any] = {"text": texts[0], "texts": texts, "ids": ids[0], "lists": ids}
    count = 2 if form in ("texts", "lists") else 1
    expected = model.generate(ids[:count], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    reply = server.complete(prompts[form], max_tokens=8, ignore_eos=True).json
    assert [choice["text"] for choice in reply["choices"]] == [completion.text for completion in expected]
    assert [choice["index"] for choice in reply["choices"]] == list(range(count))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, ids[:count]))


def test_a_seed_and_n_give_choices_that_differ_and_repeat(server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "seed": -7, "n": 3, "max_tokens": 12, "ignore_eos": True}
    first, again = (server.complete("Then I", **fields).json["choices"] for _ in range(2))
    texts = [choice["text"] for choice in first]
    assert len(set(texts)) > 1 and texts == [choice["text"] for choice in again]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_an_answer_and_is_named(stream: bool, server: RunningServer) -> None:
    text = server.complete("In the middle of", max_tokens=40, ignore_eos=True).json["choices"][0]["text"]
    stop = text[20:24]
    for includes in (False, True):
        fields = {"max_tokens": 40, "ignore_eos": True, "stop": stop, "include_stop_str_in_output": includes}
        reply = server.complete("In the middle of", stream=stream, **fields)
        choices = [event["choices"][0] for event in (reply.events if stream else [reply.json])]
        cut = text[: text.index(stop) + (len(stop) if includes else 0)]
        assert "".join(choice["text"] for choice in choices) == cut
        assert choices[-1]["finish_reason"] == "stop" and choices[-1]["stop_reason"] == stop


def test_log_probabilities_are_those_of_the_logits(server: RunningServer, model: LLM) -> None:
    prompt = model.encode("In the middle of")[0]
    choice = server.complete(prompt, max_tokens=6, ignore_eos=True, logprobs=3).json["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:place])) for place in range(6)]
    tokens = model.encode("In the middle of" + choice["text"])[0][: len(prompt) + 6]
    logits = model.logits(tokens)[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert logprobs["token_logprobs"] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-4)
    for own, top, row in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], expected, strict=True):
        assert own == max(top.values()) and len(top) == 3
        assert sorted(top.values()) == pytest.approx(np.sort(row)[-3:].tolist(), abs=1e-4)


def test_log_probabilities_of_a_token_that_is_not_among_the_most_likely_ones(server: RunningServer) -> None:
    fields = {"max_tokens": 8, "ignore_eos": True, "temperature": 5, "seed": 3}
    for count in (0, 1):
        logprobs = server.complete("Then I", logprobs=count, **fields).json["choices"][0]["logprobs"]
        for token, own, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert top[token] == own and len(top) <= count + 1


def test_a_chat_has_log_probabilities_with_the_bytes_of_its_tokens(server: RunningServer) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    choice = server.chat(QUESTION, **fields).json["choices"][0]
    content = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(place["bytes"]) for place in content).decode().startswith(choice["message"]["content"])
    )
    assert all(place["top_logprobs"][0]["logprob"] == place["logprob"] for place in content)
    assert all(len(place["top_logprobs"]) == 2 for place in content)
    events = server.chat(QUESTION, stream=True, **fields).events
    streamed = [event["choices"][0]["logprobs"] for event in events]
    assert [place for logprobs in streamed if logprobs for place in logprobs["content"]] == content
    assert server.chat(QUESTION, top_logprobs=2).error["param"] == "top_logprobs"


def test_a_stop_string_cuts_log_probabilities_too_and_a_stream_has_the_same(server: RunningServer) -> None:
    text = server.complete("In the middle of", max_tokens=40, ignore_eos=True).json["choices"][0]["text"]
    fields: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "stop": text[20:24], "logprobs": 1}
    body = server.complete("In the middle of", **fields).json
    whole = body["choices"][0]["logprobs"]
    assert len(whole["tokens"]) == body["usage"]["completion_tokens"] < 40
    events = server.complete("In the middle of", stream=True, **fields).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    for name in ("text_offset", "token_logprobs", "tokens", "top_logprobs"):
        assert [item for part in parts if part for item in part[name]] == whole[name]


def test_an_echoed_prompt_has_the_log_probabilities_of_the_logits(server: RunningServer, model: LLM) -> None:
    text = "Midway upon the journey of our life I found myself within a forest dark"
    ids = model.encode(text)[0]
    logits = model.logits(ids)[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = expected[np.arange(len(ids) - 1), ids[1:]]
    for max_tokens in (0, 1):
        fields: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": 1, "echo": True}
        body = server.complete([ids, ids[:9]], **fields).json
        first, second = (choice["logprobs"] for choice in body["choices"])
        count = len(ids) + max_tokens
        assert [len(first[name]) for name in first] == [count] * 4 and len(second["tokens"]) == 9 + max_tokens
        assert first["token_logprobs"][0] is first["top_logprobs"][0] is None
        assert first["token_logprobs"][1 : len(ids)] == pytest.approx(own.tolist(), abs=1e-4)
        best = [max(top.values()) for top in first["top_logprobs"][1 : len(ids)]]
        assert best == pytest.approx(expected.max(axis=1).tolist(), abs=1e-4)
        whole = body["choices"][0]["text"]
        assert whole.startswith(text) and body["usage"]["completion_tokens"] == 2 * max_tokens
        for offset, token in list(zip(first["text_offset"], first["tokens"], strict=True))[1:]:
            assert whole[offset : offset + len(token)] == token
        events = server.complete([ids, ids[:9]], stream=True, **fields).events
        for index, choice in enumerate(body["choices"]):
            parts = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [value for part in parts for value in (part["logprobs"] or {}).get(name, ())] == values


def test_prompt_logprobs_are_given_by_token_and_rank(server: RunningServer, model: LLM) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    ids = model.encode_chat(messages)
    places = server.chat(QUESTION, max_tokens=1, prompt_logprobs=2).json["prompt_logprobs"]
    assert len(places) == len(ids) and places[0] is None
    for token, place in zip(ids[1:], places[1:], strict=True):
        assert place[str(token)]["logprob"] <= 0 and len(place) in (2, 3)
        assert [entry["rank"] for entry in place.values() if entry["rank"]] in ([1, 2], [2, 1])
    choice = server.complete("In the middle", max_tokens=1, prompt_logprobs=0).json["choices"][0]
    assert choice["logprobs"] is None and all(len(place) == 1 for place in choice["prompt_logprobs"][1:])
    reply = server.complete("a", stream=True, prompt_logprobs=1)
    assert reply.error["param"] == "prompt_logprobs"


def test_special_tokens_are_shown_on_request(server: RunningServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
    shown = server.chat(QUESTION, skip_special_tokens=False, **fields).json["choices"][0]["message"][
        "content"
    ]
    assert "<|im_end|>" in shown
    assert "<|im_end|>" not in server.chat(QUESTION, **fields).json["choices"][0]["message"]["content"]


def test_models_are_listed_and_found_by_name(server: RunningServer) -> None:
    listed = server.ask("/v1/models").json
    assert [entry["id"] for entry in listed["data"]] == ["dante-chat"] and listed["object"] == "list"
    assert server.ask("/v1/models/dante-chat").json == listed["data"][0]
    assert server.ask("/v1/models/other").error["code"] == "model_not_found"


def test_text_becomes_tokens_and_tokens_become_text(server: RunningServer, model: LLM) -> None:
    text = "Midway upon the journey"
    tokens = server.ask("/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert tokens["tokens"] == model.encode(text)[0] and tokens["count"] == len(tokens["tokens"])
    assert len(tokens["token_strs"]) == tokens["count"] and tokens["max_model_len"] == 2048
    assert text in server.ask("/detokenize", {"tokens": tokens["tokens"]}).json["prompt"]
    messages = [{"role": "user", "content": QUESTION}]
    assert server.ask("/tokenize", {"messages": messages}).json["tokens"] == model.encode_chat(messages)
    text = "naïve 🜚"
    pieces = server.ask("/tokenize", {"content": text, "with_pieces": True}).json["tokens"]
    assert any(isinstance(piece["piece"], list) for piece in pieces), "half a character is given as bytes"
    spelled = [piece["piece"] for piece in pieces]
    assert b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in spelled).decode() == text
    info = server.ask("/tokenizer_info").json
    assert info["eos_token"] and "<|im_start|>" in info["chat_template"]


def test_what_the_server_counts_agrees_with_what_a_client_counts(server: RunningServer) -> None:
    before = server.metric("generation_tokens_total"), server.metric("prompt_tokens_total")
    usages = [server.complete("Canto", max_tokens=5, ignore_eos=True).json["usage"] for _ in range(4)]
    server.wait_until_idle()
    after = server.metric("generation_tokens_total"), server.metric("prompt_tokens_total")
    assert after[0] - before[0] == sum(usage["completion_tokens"] for usage in usages)
    assert after[1] - before[1] == sum(usage["prompt_tokens"] for usage in usages)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "missing"),
        ({"prompt": [1, "a"]}, "prompt", "mixes"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [99999]}, "prompt", "99999"),
        ({"prompt": [-1]}, "prompt", ">= 0"),
        ({"prompt": "a", "max_tokens": 100_000}, "prompt", "2048"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", ">= 0"),
        ({"prompt": "a", "temperature": -1}, "temperature", ">= 0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "str"),
        ({"prompt": "a", "n": 129}, "n", "<= 128"),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of", "equal n"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "16"),
        ({"prompt": "a", "stop": ""}, "stop", "length >= 1"),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias", "99999"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "stream"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "<= 20"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "end"),
        (
            {"prompt": "a", "structured_outputs": {"structural_tag": {}}},
            "structured_outputs",
            "not supported",
        ),
        (
            {"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "give one",
        ),
        ({"prompt": "a", "response_format": {"type": "structural_tag"}}, "response_format", "not supported"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format", "is missing"),
        (
            {"prompt": "a", "response_format": {"type": "json_object"}, "ignore_eos": True},
            "ignore_eos",
            "exclude",
        ),
        ({"prompt": "a", "chat_template": "{{ 1 }}"}, "chat_template", "template"),
    ],
)
def test_a_wrong_field_is_named(
    fields: dict[str, Any], param: str, words: str, server: RunningServer
) -> None:
    reply = server.ask("/v1/completions", fields)
    assert reply.status == 400
    assert reply.error["param"] == param and words in reply.error["message"], reply.error


def test_a_prompt_that_is_too_long_is_answered_with_both_numbers(server: RunningServer) -> None:
    error = server.complete("Canto " * 3000).error
    assert error["code"] == "context_length_exceeded" and error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > 3000 and error["n_ctx"] == 2048


def test_an_answer_names_what_made_it(server: RunningServer) -> None:
    answers = [server.complete("a", max_tokens=1).json, server.chat("a", max_tokens=1).json]
    answers += server.chat("a", max_tokens=2, stream=True).events
    prints = {answer["system_fingerprint"] for answer in answers}
    assert len(prints) == 1 and prints.pop().startswith("bundle-")


def test_openapi_describes_what_is_served(server: RunningServer) -> None:
    document = server.ask("/openapi.json").json
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize"} <= set(document["paths"])
    assert document["components"]["schemas"]["CompletionRequest"]["properties"]["temperature"]
