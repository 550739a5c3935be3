"""What the server does with requests that are wrong, hostile or abandoned."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import Outcome
from serving import Reply, RunningServer, running, start

OPEN = {"/", "/health", "/ping", "/version"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    yield from running(
        "--api-key", "first", "--api-key", "second", "--allowed-origins", "https://page.example"
    )


def test_numbers_that_json_has_not_are_refused(server: RunningServer) -> None:
    for number in (b"NaN", b"Infinity", b"1e999"):
        reply = server.ask("/v1/completions", raw=b'{"prompt":"a","temperature":%s}' % number)
        assert reply.status == 400 and reply.error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": "\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(body: bytes, server: RunningServer) -> None:
    assert server.ask("/v1/completions", raw=body).status == 400


def test_brackets_without_end_are_refused_at_once(server: RunningServer) -> None:
    begin = time.monotonic()
    for body in (b"[" * 100_000, b'{"messages":' + b'[{"a":' * 100_000, b'{"a":"' + b"[" * 100_000 + b'"}'):
        assert server.ask("/v1/chat/completions", raw=body).status == 400
    assert time.monotonic() - begin < 2


def spoken(server: RunningServer, text: bytes) -> bytes:
    """What the server answers to these bytes before it closes the connection."""
    place = urlsplit(server.url)
    answer = b""
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        try:
            connection.sendall(text)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            pass
    return answer


def test_a_long_body_is_refused_before_it_is_read(server: RunningServer) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = spoken(server, f"{head}Content-Length: 104857600\r\n\r\n{{".encode())
    assert b" 413 " in answer.split(b"\r\n")[0] and b"body_too_long" in answer


def test_headers_that_are_too_long_or_too_many_are_refused(server: RunningServer) -> None:
    line = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    for headers in (b"X: " + b"a" * 100_000, b"X: a\r\n" * 101 + b"\r\n", b"X-" + b"a" * 100_000):
        assert b" 431 " in spoken(server, line + headers).split(b"\r\n")[0]
    assert b" 400 " in spoken(server, b"hello\r\n\r\n").split(b"\r\n")[0]
    assert server.ask("/health").status == 200


def test_a_body_that_is_not_said_to_be_json_is_refused(server: RunningServer) -> None:
    reply = server.ask("/v1/completions", raw=b"{}", headers={"content-type": "text/plain"})
    assert reply.status == 415 and "application/json" in reply.error["message"]


def test_a_wrong_path_and_a_wrong_method_are_told(server: RunningServer) -> None:
    assert server.ask("/v1/nothing").status == 404
    assert "/v1/completions" in server.ask("/v1/nothing").error["message"]
    reply = server.ask("/v1/completions")
    assert reply.status == 405 and "POST" in reply.error["message"]


def test_a_host_name_that_is_not_this_machine_is_refused(server: RunningServer) -> None:
    reply = server.ask("/v1/models", headers={"host": "evil.example"})
    assert reply.status == 403 and reply.error["code"] == "wrong_host"


def test_every_path_but_the_open_ones_needs_a_key(locked: RunningServer) -> None:
    paths = json.loads(locked.ask("/openapi.json", headers={"x-api-key": "first"}).body)["paths"]
    for path in [*paths, "/metrics", "/openapi.json", "/nothing", "/"]:
        method = "POST" if "post" in paths.get(path, {}) else "GET"
        status = locked.ask(path, method=method).status
        assert (status == 401) != (path in OPEN), path
        wrong = locked.ask(path, method=method, headers={"authorization": "Bearer firs"})
        assert (wrong.status == 401) != (path in OPEN), path
    for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
        assert locked.ask("/v1/models", headers=headers).status == 200
    assert locked.ask("/v1/models").error["type"] == "authentication_error"


def test_pages_of_other_sites_read_answers_only_where_they_are_allowed(locked: RunningServer) -> None:
    for origin, allowed in (("https://page.example", True), ("https://other.example", False)):
        reply = locked.ask("/health", headers={"origin": origin})
        assert (reply.headers.get("access-control-allow-origin") == origin) == allowed
        preflight = locked.ask("/v1/models", method="OPTIONS", headers={"origin": origin})
        assert preflight.status == 200
        assert ("access-control-allow-methods" in preflight.headers) == allowed


def test_a_request_has_an_id_which_its_answer_carries(server: RunningServer) -> None:
    reply = server.complete("a", max_tokens=1)
    assert reply.json["id"] == f"cmpl-{reply.headers['x-request-id']}"
    assert server.ask("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert "\n" not in server.ask("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]


def test_a_client_that_goes_frees_its_sequences(server: RunningServer) -> None:
    place = urlsplit(server.url)
    for streaming in (True, False):
        body = json.dumps(
            {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": streaming, "n": 4}
        )
        with socket.create_connection((place.hostname, place.port)) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            end = time.monotonic() + 10
            while server.metric("num_requests_running") < 4:
                assert time.monotonic() < end
        server.wait_until_idle()


def asked_for_a_long_stream(server: RunningServer, tokens: int) -> socket.socket:
    """A connection on which eight streams of so many tokens come, to a client with hardly a buffer."""
    place = urlsplit(server.url)
    body = json.dumps({"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "n": 8, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    connection.connect((place.hostname, place.port))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def test_a_client_that_reads_nothing_is_cut_off_and_one_that_reads_slowly_is_not() -> None:
    server = start("--reader-timeout", "1", "--null-token-us", "400")
    try:
        with asked_for_a_long_stream(server, 1500) as idle, asked_for_a_long_stream(server, 1500) as slow:
            slow.settimeout(10)
            answer, begin = b"", time.monotonic()
            while time.monotonic() < begin + 4:
                answer += slow.recv(8192)
                time.sleep(0.05)
            assert server.metric("num_requests_running") == 8, "those of the client that reads"
            assert server.metric("generation_tokens_total") < 2 * 8 * 1500
            while not answer.endswith(b"0\r\n\r\n"):
                answer += slow.recv(1 << 16)
            assert b"data: [DONE]" in answer and answer.count(b'"finish_reason":"length"') == 8
            cut = b""
            while part := idle.recv(1 << 16):
                cut += part
            assert len(cut) < 200_000 and not cut.endswith(b"0\r\n\r\n")
        assert sum(" 499 " in line for line in server.lines) == 1
    finally:
        assert server.stop() == 0


def test_logs_hold_no_prompts(server: RunningServer) -> None:
    server.complete("a secret that nobody may see", max_tokens=1)
    server.ask("/v1/completions", {"prompt": "a secret that nobody may see", "temperature": -1})
    assert not [line for line in server.lines if "secret" in line]
    assert any("POST /v1/completions 200" in line for line in server.lines)


def test_a_cache_by_key_needs_keys(infernum: Callable[..., Outcome]) -> None:
    refused = infernum("serve", "dante-chat", "--cache-per-key")
    assert (refused.code, refused.out) == (2, "")
    assert "--cache-per-key needs the keys that it tells apart; give --api-key" in refused.err


def test_the_cache_is_kept_apart_by_key() -> None:
    server = start("--api-key", "one", "--api-key", "two", "--cache-per-key")
    try:
        fields = {"prompt": list(range(10, 210)), "max_tokens": 1, "cache_salt": "s"}

        def cached(key: str) -> int:
            usage = server.ask("/v1/completions", fields, headers={"x-api-key": key}).json["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        assert [cached("one"), cached("one"), cached("two"), cached("two")] == [0, 192, 0, 192]
    finally:
        assert server.stop() == 0


def test_no_more_sequences_run_than_the_server_may() -> None:
    """Of six that are asked for at once, the third begins when one of the first two has ended, and so on."""
    server = start("--max-num-seqs", "2")
    try:
        fields = {"max_tokens": 20, "ignore_eos": True, "n": 6, "temperature": 1, "stream": True}
        reply = server.complete("Then", **fields, stream_options={"include_usage": True})
        order = [choice["index"] for event in reply.events for choice in event["choices"]]
        lasts = {index: place for place, index in enumerate(order)}
        most = max(sum(order.index(i) <= place <= lasts[i] for i in range(6)) for place in range(len(order)))
        assert most == 2 and sorted(lasts) == list(range(6))
        assert reply.events[-1]["usage"]["completion_tokens"] == 6 * 20
        reasons = [choice["finish_reason"] for event in reply.events for choice in event["choices"]]
        assert reasons.count("length") == 6
    finally:
        assert server.stop() == 0


def test_when_the_engine_dies_every_answer_ends_with_an_error_and_health_says_so_within_two_seconds() -> None:
    """Of eight answers two are computed, one of them a stream; the others wait."""
    server = start("--max-num-seqs", "2")
    fields = {"max_tokens": 1500, "ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        asked: list[Future[Reply]] = []
        for stream in (True, False, True, True, False, True, False, True):
            asked.append(pool.submit(server.complete, "a", stream=stream, **fields))
            while server.metric("num_requests_running") + server.metric("num_requests_waiting") < len(asked):
                time.sleep(0.01)
        while server.metric("generation_tokens_total") < 6:
            time.sleep(0.01)
        begin = time.monotonic()
        os.kill(server.engine, signal.SIGKILL)
        while (health := server.ask("/health")).status == 200:
            time.sleep(0.01)
        first, *others = [each.result(5) for each in asked]
        assert time.monotonic() - begin <= 2
    assert health.status == 503 and "has ended" in health.error["message"]
    assert "has ended" in first.events[-1]["error"]["message"] and len(first.events) > 2
    for reply in others:
        assert reply.status == 503 and reply.headers["retry-after"] and "has ended" in reply.error["message"]
    assert server.complete("a").status == 503
    assert server.stop() == 0


def test_when_the_server_is_killed_the_engine_ends_too() -> None:
    server = start()
    engine = server.engine
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{engine}").exists():
        assert time.monotonic() < end, "the engine goes on"
        time.sleep(0.05)
