"""Requests of clients, and what each client reads of the answers: what it would break on fails here.

`tests/clients` has the requests; each file says where they are from. A reader does what its client does with a stream,
and no more: what it does not look at may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Reply, RunningServer, running

CLIENTS = Path(__file__).parent / "clients"
CALL = ("canto", {"number": 5})

Heard = tuple[str, list[tuple[str, Any]]]
"""The text of an answer, and its calls with the values of their arguments."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


def lines_of(reply: Reply) -> Iterator[Any]:
    """The data of the events of a stream, up to [DONE] where there is one."""
    assert reply.status == 200, reply.body
    for line in reply.body.decode().splitlines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def cline(reply: Reply) -> Heard:
    """Reads delta.tool_calls of every chunk without a guard: a chunk without choices must be the last one."""
    text, calls, usage = "", dict[int, list[str]](), None
    chunks = list(lines_of(reply))
    for place, chunk in enumerate(chunks):
        if not chunk["choices"]:
            assert place == len(chunks) - 1
        else:
            delta = chunk["choices"][0]["delta"]
            text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                name, arguments = calls.setdefault(call["index"], ["", ""])
                calls[call["index"]] = [
                    name + call["function"].get("name", ""),
                    arguments + call["function"]["arguments"],
                ]
        usage = chunk.get("usage") or usage
    assert usage and usage["prompt_tokens"] and usage["prompt_tokens_details"]["cached_tokens"] >= 0
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


def langchain(reply: Reply) -> Heard:
    """Merges calls by `index`: one without it is dropped without a word. An id and a name come once."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        message = reply.json["choices"][0]["message"]
        functions = [call["function"] for call in message.get("tool_calls") or () if call["id"]]
        return message["content"] or "", [(f["name"], json.loads(f["arguments"])) for f in functions]
    text, calls = "", dict[int, dict[str, str]]()
    for chunk in lines_of(reply):
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                call |= call.pop("function")
                merged = calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                for name in merged:
                    merged[name] += call.get(name) or ""
    assert all(len(call["id"]) == 9 for call in calls.values())
    return text, [(call["name"], json.loads(call["arguments"])) for call in calls.values()]


def codex(reply: Reply) -> Heard:
    """Takes items when they are done, and an answer once it is completed; else it asks five times again."""
    kinds, text, calls, completed = list[str](), "", list[tuple[str, Any]](), None
    for event in lines_of(reply):
        kinds.append(event["type"])
        match event:
            case {"type": "response.output_item.done", "item": {"type": "message", "content": content}}:
                text += "".join(part["text"] for part in content if part["type"] == "output_text")
            case {"type": "response.output_item.done", "item": {"type": "function_call", **call}}:
                assert call["call_id"]
                calls.append((call["name"], json.loads(call["arguments"])))
            case {"type": "response.completed", "response": {"id": str(), "usage": usage}}:
                completed = usage
            case _:
                pass
    assert kinds[0] == "response.created" and completed
    for count in (
        completed["input_tokens_details"]["cached_tokens"],
        completed["output_tokens_details"]["reasoning_tokens"],
    ):
        assert isinstance(count, int)
    assert completed["total_tokens"] == completed["input_tokens"] + completed["output_tokens"]
    return text, calls


def open_webui(reply: Reply) -> Heard:
    """Takes a message whose stream is off; else content and reasoning of each chunk, whatever else it has."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json["choices"][0]["message"]["content"], []
    deltas = [choice["delta"] for chunk in lines_of(reply) for choice in chunk.get("choices", [])]
    assert not any("reasoning_content" in delta and delta["reasoning_content"] is None for delta in deltas)
    return "".join(delta.get("content") or "" for delta in deltas), []


def aider(reply: Reply) -> Heard:
    """Ends where finish_reason is "length", and reads reasoning_content, or else reasoning, where there is one."""
    text = ""
    for chunk in lines_of(reply):
        if not chunk["choices"]:
            continue
        choice = chunk["choices"][0]
        assert choice["finish_reason"] != "length"
        delta = choice["delta"]
        text += delta.get("reasoning_content") or delta.get("reasoning") or ""
        text += delta.get("content") or ""
    return text, []


READERS: dict[str, tuple[Callable[[Reply], Heard], list[Heard]]] = {
    "cline": (cline, [("", [CALL]), ("Canto 5 begins: Thus I descended out of the first circle", [])]),
    "langchain": (
        langchain,
        [("", [CALL])] * 2 + [("Canto 5 begins: Thus I descended out of the first circle", [])],
    ),
    "codex": (codex, [("", [CALL]), ("Canto 5 begins: Thus I descended out of the first circle", [])]),
    "open_webui": (open_webui, [("Virgil.", []), ("Virgil.", [])]),
    "aider": (aider, [("Virgil.", [])]),
}


@pytest.mark.parametrize("client", READERS)
def test_a_client_reads_the_answers_to_its_requests(client: str, server: RunningServer) -> None:
    reader, expected = READERS[client]
    requests = json.loads((CLIENTS / f"{client}.json").read_text(encoding="utf-8"))["requests"]
    replies = [server.ask(request["path"], request["body"]) for request in requests]
    assert [reader(reply) for reply in replies] == expected


def test_clients_find_the_model_by_its_list(server: RunningServer) -> None:
    """Open WebUI and Codex list models first, with a key."""
    listed = server.ask("/v1/models", headers={"authorization": "Bearer none"}).json
    assert [model["id"] for model in listed["data"]] == ["dante-chat"]
