"""/v1/messages: blocks and events, as Claude Code and Anthropic's clients read them."""

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
    "name": "canto",
    "description": "Get a canto.",
    "input_schema": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def say(server: RunningServer, content: Any, **fields: Any) -> Reply:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return server.ask("/v1/messages", {"messages": messages, "max_tokens": 60, "temperature": 0, **fields})


def put_together(reply: Reply) -> dict[str, Any]:
    """The answer of a stream, as a client puts it together."""
    body: dict[str, Any] = {}
    arguments = ""
    for part in reply.body.decode().removesuffix("\n\n").split("\n\n"):
        if part[0] == ":":  # a comment, where the server is slow
            continue
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        match event:
            case {"type": "message_start", "message": message}:
                body = message
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(body["content"])
                body["content"].append(block)
                arguments = ""
            case {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}:
                assert index == len(body["content"]) - 1
                if kind == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    [(field, text)] = delta.items()
                    body["content"][-1][field] += text
            case {"type": "content_block_stop"}:
                if body["content"][-1]["type"] == "tool_use":
                    body["content"][-1]["input"] = json.loads(arguments)
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                body |= {**delta, "usage": usage}
            case _:
                assert event == {"type": "message_stop"}
    assert event == {"type": "message_stop"}
    return body


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what differs from answer to answer."""
    content = [{name: value for name, value in block.items() if name != "id"} for block in body["content"]]
    return {**body, "id": "", "content": content, "usage": body["usage"]["output_tokens"]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content": "Who guides Dante?"}, "end_turn"),
        ({"content": "Read canto 5.", "tools": [CANTO]}, "tool_use"),
        ({"content": "Read canto 5.", "tools": [CANTO], "tool_choice": {"type": "none"}}, "end_turn"),
        ({"content": "Who are you?", "max_tokens": 3}, "max_tokens"),
        ({"content": "Who are you?", "max_tokens": 100_000}, "end_turn"),
        ({"content": "Who are you?", "stop_sequences": ["small"]}, "stop_sequence"),
    ],
)
def test_a_stream_is_the_answer_in_events(fields: dict[str, Any], reason: str, server: RunningServer) -> None:
    whole = say(server, **fields).json
    assert whole["stop_reason"] == reason
    assert whole["stop_sequence"] == ("small" if reason == "stop_sequence" else None)
    assert plain(put_together(say(server, **fields, stream=True))) == plain(whole)


def test_text_and_calls_are_those_of_chats(server: RunningServer) -> None:
    body = say(server, "Who guides Dante?").json
    chat = server.chat("Who guides Dante?").json
    assert body["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == chat["usage"]["completion_tokens"]
    [call] = say(server, "Read canto 5.", tools=[CANTO]).json["content"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "canto", {"number": 5})


def test_blocks_become_the_messages_of_a_chat(server: RunningServer) -> None:
    blocks: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Read canto 5.", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "So:"},
                {"type": "tool_use", "id": "a", "name": "canto", "input": {"number": 5}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "five"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    call = {"id": "a", "type": "function", "function": {"name": "canto", "arguments": {"number": 5}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You read.\nBe brief."},
        {"role": "user", "content": "Read canto 5."},
        {"role": "assistant", "content": "So:", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "five"},
        {"role": "user", "content": "And?"},
    ]
    function = {"name": "canto", "description": "Get a canto.", "parameters": CANTO["input_schema"]}
    with LLM("dante-chat", device="cpu") as llm:
        prompt = llm.encode_chat(messages, tools=[{"type": "function", "function": function}])
    system = [{"type": "text", "text": "You read."}, {"type": "text", "text": "Be brief."}]
    fields: dict[str, Any] = {
        "system": system,
        "tools": [CANTO, {"type": "web_search_20250305", "name": "web_search"}],
    }
    count = server.ask("/v1/messages/count_tokens", {"messages": blocks, **fields}).json
    assert count == {"input_tokens": len(prompt)}
    body = say(server, blocks, **fields, max_tokens=4).json
    expected = server.complete(prompt, max_tokens=4).json["choices"][0]["text"]
    assert body["content"][0]["text"] == expected.strip()


def test_thinking_is_a_block_and_comes_back_to_the_template(tmp_path: Path) -> None:
    folder = write_chat_model(
        tmp_path / "model", ["<think>", *"He ask", "</think>", *"INFRO"], template="thinking"
    )
    server = start(model=str(folder))
    body = say(server, "Hello").json
    assert body["content"] == [
        {"type": "thinking", "thinking": "He ask", "signature": ""},
        {"type": "text", "text": "INFRO"},
    ]
    assert plain(put_together(say(server, "Hello", stream=True))) == plain(body)
    again = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": body["content"]}]
    with LLM(str(folder), device="cpu") as llm:
        prompt = llm.encode_chat(
            [again[0], {"role": "assistant", "content": "INFRO", "reasoning_content": "He ask"}]
        )
    count = server.ask("/v1/messages/count_tokens", {"messages": again}).json
    assert count == {"input_tokens": len(prompt)}
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": None}, "max_tokens", "missing"),
        ({"messages": []}, "messages", ">= 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages", "image"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "messages[0]"),
        ({"tools": [CANTO], "tool_choice": {"type": "tool"}}, "tool_choice", "name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "give tools"),
        ({"temperature": 1.5}, "temperature", "<= 1"),
    ],
)
def test_a_wrong_field_is_named(
    fields: dict[str, Any], param: str, words: str, server: RunningServer
) -> None:
    reply = say(server, "Hello", **fields)
    assert reply.status == 400
    assert reply.error["param"] == param and words in reply.error["message"], reply.error
