"""OpenAI's own client, with strict validation of every response and event, against the server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from serving import ROOT, RunningServer, running

openai = pytest.importorskip("openai")

MESSAGES: Any = [{"role": "user", "content": "Who guides Dante through Hell?"}]
MODEL = "dante-chat"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.2, "top_p": 0.9, "seed": 5},
    {"max_tokens": 3},
    {"n": 2, "seed": -9, "temperature": 1.0},
    {"stop": ["gil"], "temperature": 0},
    {"stop": "gil", "temperature": 0},
    {"user": "me"},
    {
        "extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
        "max_tokens": 5,
    },
    {"extra_body": {"stop_token_ids": [10], "priority": 1, "cache_salt": "mine"}, "max_tokens": 5},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(fields) or "none")
def test_chats_are_valid_and_streams_say_the_same(fields: dict[str, Any], client: Any) -> None:
    fields = {"temperature": 0, "max_tokens": 12, **fields}
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **fields
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    if fields["temperature"] == 0 or "seed" in fields:
        assert texts == {choice.index: choice.message.content for choice in whole.choices}
        assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
        assert usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(fields) or "none")
def test_completions_are_valid_and_streams_say_the_same(
    fields: dict[str, Any], server: RunningServer, client: Any
) -> None:
    fields = {"temperature": 0, "max_tokens": 12, "echo": True, **fields}
    whole = client.completions.create(model=MODEL, prompt=["In the", "Then"], **fields)
    texts = [""] * len(whole.choices)
    # OpenAI's type of an event has no null as its reason, which their own server sends: it is not validated.
    events = server.ask(
        "/v1/completions",
        {"prompt": ["In the", "Then"], "stream": True, **fields.pop("extra_body", {}), **fields},
    ).events
    for chunk in [openai.types.Completion.construct(**event) for event in events]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    if fields["temperature"] == 0 or "seed" in fields:
        assert texts == [choice.text for choice in whole.choices]


CANTO: Any = {
    "type": "function",
    "function": {
        "name": "canto",
        "description": "Get a canto.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
        },
    },
}

SCHEMA: Any = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2]}},
    "required": ["x"],
    "additionalProperties": False,
}

TOOL_FIELDS: list[dict[str, Any]] = [
    {},
    {"n": 2},
    {"tool_choice": "auto"},
    {"tool_choice": "none"},
    {"parallel_tool_calls": False},
    {"logprobs": True, "top_logprobs": 2},
    {"max_tokens": 9},
    {"stop": ["arguments"]},
    {"stop": "}"},
    {"temperature": 1.0, "seed": 4},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "canto"}}, "temperature": 1.0, "seed": 4},
]


@pytest.mark.parametrize("fields", TOOL_FIELDS, ids=lambda fields: ",".join(fields) or "none")
@pytest.mark.parametrize("question", ["Read canto 5.", "Who guides Dante?", "What does canto 7 say?"])
def test_calls_are_valid_and_streams_say_the_same(question: str, fields: dict[str, Any], client: Any) -> None:
    messages: Any = [{"role": "user", "content": question}]
    fields = {"temperature": 0, "max_tokens": 40, "tools": [CANTO], **fields}
    whole = client.chat.completions.create(model=MODEL, messages=messages, **fields)
    texts: dict[int, str] = {}
    calls: dict[tuple[int, int], tuple[str, str]] = {}
    reasons: dict[int, str] = {}
    for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get((choice.index, call.index), ("", ""))
                function = call.function
                calls[choice.index, call.index] = (
                    name + (function.name or ""),
                    arguments + function.arguments,
                )
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    choices = whole.choices
    assert texts == {choice.index: choice.message.content or "" for choice in choices}
    assert reasons == {choice.index: choice.finish_reason for choice in choices}
    assert calls == {
        (choice.index, index): (call.function.name, call.function.arguments)
        for choice in choices
        for index, call in enumerate(choice.message.tool_calls or ())
    }


RESPONSES: list[dict[str, Any]] = [
    {},
    {"instructions": "You are Virgil."},
    {"max_output_tokens": 4},
    {"tools": [{"type": "function", "strict": True, **CANTO["function"]}]},
    {"tools": [{"type": "function", "strict": None, **CANTO["function"]}], "parallel_tool_calls": False},
    {"tools": [{"type": "function", "strict": None, **CANTO["function"]}], "tool_choice": "none"},
    {"temperature": 1.0, "top_p": 0.9, "extra_body": {"seed": 3}},
    {
        "tools": [{"type": "function", "strict": True, **CANTO["function"]}],
        "tool_choice": {"type": "function", "name": "canto"},
    },
    {"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": SCHEMA}}},
    {"metadata": {"a": "b"}, "store": False, "include": ["reasoning.encrypted_content"]},
]


@pytest.mark.parametrize("fields", RESPONSES, ids=lambda fields: ",".join(fields) or "none")
def test_responses_are_valid_and_streams_say_the_same(fields: dict[str, Any], client: Any) -> None:
    fields = {"temperature": 0, "model": MODEL, "input": "Read canto 5.", **fields}
    whole = client.responses.create(**fields)
    events = list(client.responses.create(stream=True, **fields))
    final = events[-1].response
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    calls = [
        [item.arguments for item in body.output if item.type == "function_call"] for body in (final, whole)
    ]
    assert calls[0] == calls[1] and final.usage.output_tokens == whole.usage.output_tokens
    assert final.status == whole.status
    if "text" in fields:
        assert whole.output_text in ('{"x": 1}', '{"x": 2}', '{"x":1}', '{"x":2}')


def test_models_are_valid(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, "NotFoundError"),
        ({"temperature": 1e9}, "BadRequestError"),
        ({"max_tokens": 10**6}, "BadRequestError"),
        ({"tools": [{"type": "function", "function": {}}]}, "BadRequestError"),
        ({"response_format": {"type": "json_schema"}}, "BadRequestError"),
        ({"messages": []}, "BadRequestError"),
        ({"messages": [{"role": "nobody"}]}, "BadRequestError"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_errors_have_their_classes(fields: dict[str, Any], error: str, client: Any) -> None:
    with pytest.raises(getattr(openai, error)) as raised:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES} | fields)
    assert raised.value.body["message"] and raised.value.request_id


def test_many_at_once_get_what_each_gets_alone(server: RunningServer, client: Any) -> None:
    prompts = [f"Canto {number}" for number in range(24)]
    fields: dict[str, Any] = {"max_tokens": 16, "temperature": 1.0, "seed": 3}
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, **fields).choices[0].text for prompt in prompts
    ]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as clients:
            work = (clients.completions.create(model=MODEL, prompt=prompt, **fields) for prompt in prompts)
            return [answer.choices[0].text for answer in await asyncio.gather(*work)]

    assert asyncio.run(together()) == alone


def test_the_example_streams_the_answer(server: RunningServer) -> None:
    expected = server.chat(MESSAGES[0]["content"]).json["choices"][0]["message"]["content"]
    example = subprocess.run(
        [sys.executable, ROOT / "examples/clients/openai_python.py"],
        env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert example.stdout == f"{expected}\n"
