"""/v1/responses: items and events, as agents send and read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import write_chat_model
from serving import Reply, RunningServer, running, start

from infernum import LLM

CANTO: dict[str, Any] = {
    "type": "function",
    "name": "canto",
    "description": "Get a canto.",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    "strict": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def respond(server: RunningServer, content: Any, **fields: Any) -> Reply:
    return server.ask("/v1/responses", {"input": content, "temperature": 0, **fields})


def events_of(reply: Reply) -> list[dict[str, Any]]:
    """The events of a stream: each names its type twice, and all are numbered from 0."""
    assert reply.headers["content-type"].startswith("text/event-stream"), reply.body
    events: list[dict[str, Any]] = []
    for part in reply.body.decode().removesuffix("\n\n").split("\n\n"):
        if part[0] == ":":  # a comment, where the server is slow
            continue
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what differs from answer to answer."""
    ids = {"id", "created_at", "call_id", "input_tokens_details"}
    match body:
        case dict():
            return {name: plain(value) for name, value in body.items() if name not in ids}
        case list():
            return [plain(value) for value in body]
        case _:
            return body


FIELDS: list[dict[str, Any]] = [
    {"input": "Who guides Dante?"},
    {"input": "Read canto 5.", "tools": [CANTO]},
    {"input": "Read canto 5.", "tools": [CANTO], "max_output_tokens": 8},
    {"input": "Read canto 5.", "tools": [CANTO, {"type": "web_search"}], "tool_choice": "none"},
    {"input": [{"role": "user", "content": "Who guides Dante?"}], "instructions": "You are Virgil."},
]


@pytest.mark.parametrize("fields", FIELDS, ids=range(len(FIELDS)))
def test_a_stream_is_the_answer_in_events(fields: dict[str, Any], server: RunningServer) -> None:
    whole = server.ask("/v1/responses", {"temperature": 0, **fields}).json
    events = events_of(server.ask("/v1/responses", {"temperature": 0, "stream": True, **fields}))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert plain(events[-1]["response"]) == plain(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"] != []
    for place, item in enumerate(done):
        of_item = [event for event in events if event.get("output_index") == place]
        deltas = "".join(event["delta"] for event in of_item if event["type"].endswith(".delta"))
        assert deltas == (
            item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        )
        assert of_item[0]["type"] == "response.output_item.added"
        assert of_item[0]["item"]["id"] == item["id"] and of_item[0]["item"]["status"] == "in_progress"
        assert {event.get("item_id", item["id"]) for event in of_item} == {item["id"]}


def test_text_and_calls_are_those_of_chats(server: RunningServer) -> None:
    body = respond(server, "Who guides Dante?").json
    [message] = body["output"]
    chat = server.chat("Who guides Dante?").json
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert (
        message["type"] == "message" and message["role"] == "assistant" and message["status"] == "completed"
    )
    assert body["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert body["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    [call] = respond(server, "Read canto 5.", tools=[CANTO]).json["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "canto", '{"number": 5}')


def test_an_answer_that_is_cut_is_incomplete(server: RunningServer) -> None:
    body = respond(server, "Who are you?", max_output_tokens=3).json
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_items_become_the_messages_of_a_chat(server: RunningServer) -> None:
    """Instructions and what a developer says first are one message; so are the parts of one answer."""
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Read"}, {"type": "input_text", "text": "canto 5."}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"role": "assistant", "content": [{"type": "output_text", "text": "So:", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "canto", "arguments": '{"number": 5}'},
        {"type": "function_call", "call_id": "b", "name": "canto", "arguments": '{"number": 6}'},
        {"type": "function_call_output", "call_id": "a", "output": "five"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "six"}]},
    ]
    calls = [
        {"id": name, "type": "function", "function": {"name": "canto", "arguments": {"number": number}}}
        for name, number in (("a", 5), ("b", 6))
    ]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You read.\n\nBe brief."},
        {"role": "user", "content": "Read\ncanto 5."},
        {"role": "assistant", "content": "So:", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "five"},
        {"role": "tool", "tool_call_id": "b", "content": "six"},
    ]
    tool = {
        "type": "function",
        "function": {name: CANTO[name] for name in ("name", "description", "parameters")},
    }
    with LLM("dante-chat", device="cpu") as llm:
        prompt = llm.encode_chat(messages, tools=[tool])
    body = respond(server, items, instructions="You read.", tools=[CANTO], max_output_tokens=4).json
    assert body["usage"]["input_tokens"] == len(prompt)
    expected = server.complete(prompt, max_tokens=4).json["choices"][0]["text"]
    assert body["output"][0]["content"][0]["text"] == expected.strip()


def test_reasoning_is_an_item_and_comes_back_to_the_template(tmp_path: Path) -> None:
    folder = write_chat_model(
        tmp_path / "model", ["<think>", *"He ask", "</think>", *"INFRO"], template="thinking"
    )
    thinking = start(model=str(folder))
    body = respond(thinking, "Hello").json
    thought, message = body["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "He ask")
    assert message["content"][0]["text"] == "INFRO"
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len("He ask")
    events = events_of(respond(thinking, "Hello", stream=True))
    assert plain(events[-1]["response"]) == plain(body)
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "He ask"
    again = [{"role": "user", "content": "Hello"}, thought, message]
    messages: list[dict[str, Any]] = [
        again[0],
        {"role": "assistant", "content": "INFRO", "reasoning_content": "He ask"},
    ]
    with LLM(str(folder), device="cpu") as llm:
        prompt = llm.encode_chat(messages)
    assert respond(thinking, again).json["usage"]["input_tokens"] == len(prompt)
    assert thinking.stop() == 0


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "leave background out"),
        ({"truncation": "auto"}, "truncation", "shortened"),
        ({"input": []}, "input", "user"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "input[0]"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "function"),
        ({"tool_choice": "required"}, "tool_choice", "give tools"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"model": "other"}, "model", "not served"),
    ],
)
def test_a_wrong_field_is_named(
    fields: dict[str, Any], param: str, words: str, server: RunningServer
) -> None:
    for stream in (False, True):
        reply = server.ask("/v1/responses", {"input": "Hello", "stream": stream, **fields})
        assert reply.status in (400, 404)
        assert reply.error["param"] == param and words in reply.error["message"], reply.error
