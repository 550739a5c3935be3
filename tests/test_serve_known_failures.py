"""Failures of other servers, each with the row of the list that it is number of, that this one must not have.

9, 10, 17, 18 and 19 are in test_serve_defences and test_chat_template too; what grammars are refused for, in
test_serve_structured.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import write_chat_model
from schemas import HOSTILE
from serving import Reply, RunningServer, running, start

FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running("--max-queue", "64")


@pytest.fixture(autouse=True)
def alive(server: RunningServer) -> Iterator[None]:
    """Whatever a test has asked, the server answers afterwards."""
    yield
    assert server.ask("/health").status == 200
    assert server.complete("Then", max_tokens=2).status == 200


def test_1_a_temperature_that_is_no_number(server: RunningServer) -> None:
    for number in ("NaN", "-Infinity", "1e400", '"NaN"'):
        body = f'{{"prompt": "a", "temperature": {number}}}'.encode()
        assert server.ask("/v1/completions", raw=body).status == 400


@pytest.mark.parametrize("key", ["4102", "-1", "x", "1.0", "9" * 5000, "٣"])
def test_2_a_bias_for_a_token_that_is_not_there(key: str, server: RunningServer) -> None:
    reply = server.complete("a", logit_bias={key: 1})
    assert reply.status == 400 and reply.error["param"] == "logit_bias"


def test_3_a_negative_token(server: RunningServer) -> None:
    for prompt in ([-1], [[1, -1]], [2**31]):
        assert server.complete(prompt).status == 400


def test_4_an_empty_prompt(server: RunningServer) -> None:
    for prompt in ([], [[]], [[5], []], None):
        assert server.complete(prompt).status == 400
    assert server.complete("", max_tokens=2).status == 200  # the model has a token to begin with


def test_5_an_echo_without_new_tokens_and_tokens_that_are_excluded(server: RunningServer) -> None:
    reply = server.complete("In the middle", echo=True, max_tokens=0, logprobs=20, top_k=1)
    assert reply.status == 200 and b"Infinity" not in reply.body and b"NaN" not in reply.body
    choice = reply.json["choices"][0]
    assert choice["text"] == "In the middle" and choice["finish_reason"] == "length"
    assert all(-9999 <= value <= 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_6_log_probabilities_of_all_tokens_of_a_prompt(server: RunningServer) -> None:
    for count in (-1, 21, 2**31):
        reply = server.complete("a", prompt_logprobs=count)
        assert reply.status == 400 and reply.error["param"] == "prompt_logprobs"


def test_7_very_many_choices(server: RunningServer) -> None:
    assert server.complete("a", n=10**9).status == 400
    assert server.complete(["a"] * 10_000).status == 400
    reply = server.complete(["a"] * 8, n=100)
    assert reply.status == 429 and reply.headers["retry-after"]


def test_8_a_prompt_that_does_not_fit(server: RunningServer) -> None:
    begin = time.monotonic()
    reply = server.complete([5] * 3000)
    assert reply.status == 400 and time.monotonic() - begin < 5
    assert reply.error["code"] == "context_length_exceeded"
    assert "2048" in reply.error["message"] and "3000" in reply.error["message"]


def test_9_a_template_of_the_request(server: RunningServer) -> None:
    bomb = "{% for a in range(9999999) %}{% for b in range(9999999) %}x{% endfor %}{% endfor %}"
    for fields in ({"chat_template": bomb}, {"chat_template_kwargs": {"chat_template": bomb}}):
        assert server.chat("Hello", **fields).status == 400


def test_11_a_grammar_that_is_none(server: RunningServer) -> None:
    """Each is refused, and an answer that runs meanwhile goes on."""
    replies: list[Reply] = []
    running = threading.Thread(
        target=lambda: replies.append(server.complete("Then", max_tokens=60, ignore_eos=True))
    )
    running.start()
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "sequence"}}}
    for fields in (
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "[z-a]"}},
        {"structured_outputs": {"grammar": "root ::= other"}},
        {"structured_outputs": {"json": {"$ref": "http://127.0.0.1/schema"}}},
        {"response_format": schema},
    ):
        reply = server.complete("Then", **fields)
        assert reply.status == 400 and reply.error["param"] == next(iter(fields))
    running.join()
    assert [reply.status for reply in replies] == [200]


@pytest.mark.parametrize("name", HOSTILE)
def test_12_a_grammar_that_explodes(name: str, server: RunningServer) -> None:
    """It is served or refused. Its limit is processor time, of which a busy machine has less."""
    begin = time.monotonic()
    reply = server.complete("Then", max_tokens=3, temperature=1.5, structured_outputs=HOSTILE[name])
    assert reply.status in (200, 400), reply.body
    assert time.monotonic() - begin < 5


def test_13_an_output_that_takes_long_to_parse(tmp_path: Path) -> None:
    """Beginnings of calls within each other, of which test_chat_calls has more: text, as fast as without tools."""
    folder = write_chat_model(tmp_path / "model", ["<tool_call>", *'{"[:'], endless=True)
    hostile = start("--tool-call-parser", "hermes", model=str(folder))
    answers = []
    for tools in ([], [FUNCTION]):
        begin = time.monotonic()
        answers.append(hostile.chat("Hello", tools=tools, max_tokens=900).json["choices"][0]["message"])
        assert time.monotonic() - begin < 30
    assert answers[0] == answers[1]
    assert hostile.stop() == 0


@pytest.mark.parametrize("arguments", ["{}", '{"t": "é\\n"}', "null", None])
def test_14_arguments_of_a_stream_and_of_a_whole_answer(arguments: str | None, tmp_path: Path) -> None:
    """They are the same bytes, and "{}" where a function has none."""
    given = "" if arguments is None else f', "arguments": {arguments}'
    call = f'<tool_call>{{"name": "f"{given}}}</tool_call>'
    folder = write_chat_model(tmp_path / "model", [call, "."])
    calling = start("--tool-call-parser", "hermes", model=str(folder))
    whole = calling.chat("Hello", tools=[FUNCTION]).json["choices"][0]["message"]
    events = calling.chat("Hello", tools=[FUNCTION], stream=True).events
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0} and calls[0]["id"] and calls[0]["function"]["name"] == "f"
    joined = "".join(call["function"]["arguments"] for call in calls)
    assert joined == whole["tool_calls"][0]["function"]["arguments"]
    assert joined == (arguments if arguments not in (None, "null") else "{}")
    assert calling.stop() == 0


@pytest.mark.parametrize("length", range(1, 12))
def test_15_a_stop_string_wherever_the_tokens_part(length: int, server: RunningServer) -> None:
    text = server.complete("In the middle of", max_tokens=30, ignore_eos=True).json["choices"][0]["text"]
    stop = text[9 : 9 + length]
    fields: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "stop": [stop, "never there"]}
    whole = server.complete("In the middle of", **fields).json["choices"][0]
    events = server.complete("In the middle of", stream=True, **fields).events
    assert (
        whole["text"] == "".join(event["choices"][0]["text"] for event in events) == text[: text.index(stop)]
    )


def test_16_half_a_character(server: RunningServer) -> None:
    for body in (
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xf0\x9f"}',
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
    ):
        path = "/v1/chat/completions" if b"messages" in body else "/v1/completions"
        assert server.ask(path, raw=body).status == 400
    ids = server.ask("/tokenize", {"prompt": "🜚", "add_special_tokens": False}).json["tokens"]
    assert server.complete(ids[:-1], max_tokens=1, echo=True).status == 200


def test_18_health_while_the_engine_hangs() -> None:
    """/health says so once a step takes too long, and a request goes on when the engine does."""
    hanging = start("--stall-seconds", "1")
    try:
        replies: list[Reply] = []
        asking = threading.Thread(
            target=lambda: replies.append(hanging.complete("Then", max_tokens=400, ignore_eos=True))
        )
        asking.start()
        while not hanging.metric("num_requests_running"):
            time.sleep(0.01)
        os.kill(hanging.engine, signal.SIGSTOP)
        end = time.monotonic() + 10
        while (reply := hanging.ask("/health")).status == 200:
            assert time.monotonic() < end, "nothing says that the engine hangs"
            time.sleep(0.1)
        assert reply.status == 503 and "has finished no step for" in reply.error["message"]
        os.kill(hanging.engine, signal.SIGCONT)
        asking.join(60)
        assert [answer.status for answer in replies] == [200]
        assert hanging.ask("/health").status == 200
    finally:
        assert hanging.stop() == 0


def test_20_a_reader_that_does_not_read(server: RunningServer) -> None:
    """Its tokens wait for it, in one piece, and others are served meanwhile."""
    import socket
    from urllib.parse import urlsplit

    place = urlsplit(server.url)
    body = json.dumps({"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((place.hostname, place.port))
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.2)
        assert server.complete("Then", max_tokens=8).status == 200
        answer = b""
        while b"[DONE]" not in answer:
            answer += slow.recv(4096)
    assert answer.count(b'"finish_reason":"length"') == 1


def test_21_a_long_prompt_while_others_ask(server: RunningServer) -> None:
    text = "the gate of Hell " * 200_000  # seconds of work, however fast the machine
    asking = threading.Thread(target=lambda: server.ask("/tokenize", {"prompt": text}))
    asking.start()
    answered = 0
    while asking.is_alive():
        assert server.ask("/health").status == 200
        answered += asking.is_alive()
    asking.join()
    assert answered >= 5, "one that waits for the long prompt is answered once"


def test_23_the_cache_of_another_salt(server: RunningServer) -> None:
    prompt = list(range(10, 210))

    def cached(salt: str) -> int:
        usage = server.complete(prompt, max_tokens=1, cache_salt=salt).json["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert [cached("one"), cached("one"), cached("other")] == [0, 192, 0]


def test_24_answers_do_not_depend_on_neighbours_or_the_cache(server: RunningServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "seed": 11, "ignore_eos": True}
    prompt = "The gate of Hell was high, and over it were words " * 8
    alone = server.complete(prompt, **fields).json["choices"][0]["text"]
    texts: list[str] = []

    def ask() -> None:
        texts.append(server.complete(prompt, **fields).json["choices"][0]["text"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [alone] * 8
