"""The page at / in a browser: what it shows, the chat, the key, and what it may do."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving import RunningServer, running, start

KEY = "a-key-that-nobody-guesses"
MARKUP = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    yield from running()


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    yield from running("--api-key", KEY, "--root-path", "/behind/proxy")


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url)`: the page, open. The test fails if it complained, or asked another server for anything."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def open_page(url: str, routes: dict[str, Any] | None = None, **context: Any) -> Any:
        opened = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **context})
        contexts.append(opened)
        page = opened.new_page()

        def on_console(message: Any) -> None:
            if "Failed to load resource" not in message.text:  # the browser's own line about a status
                complaints.append(f"{message.type}: {message.text}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (url.rstrip("/"), "data:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else complaints.append(asked.url))
        for pattern, answer in (routes or {}).items():
            page.route(pattern, answer)
        page.goto(url)
        return page

    yield open_page
    for opened in contexts:
        opened.close()
    assert complaints == []


def ready(page: Any) -> Any:
    page.wait_for_selector("body[data-ready]")
    return page


def until(page: Any, condition: str) -> None:
    """Wait for an expression of JavaScript to hold. Playwright's own way needs `eval`, which the policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def send(page: Any, text: str) -> str:
    """Send a message from the keyboard, and wait for the whole answer."""
    page.locator("#prompt").focus()
    page.keyboard.insert_text(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#transcript[aria-busy=false]")
    return page.locator(".assistant .text").last.inner_text()


@contextmanager
def hundreds(server: RunningServer, count: int) -> Iterator[None]:
    """So many unfinished sequences, in the requests of one client, which goes at the end."""
    place = urlsplit(server.url)
    connections: list[socket.socket] = []
    for first in range(0, count, 100):
        fields = {
            "prompt": f"Then {first}",
            "max_tokens": 2000,
            "ignore_eos": True,
            "n": min(100, count - first),
        }
        body = json.dumps(fields)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connections.append(socket.create_connection((place.hostname, place.port)))
        connections[-1].sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    try:
        yield
    finally:
        for connection in connections:
            connection.close()
        server.wait_until_idle(60)


def test_the_shell_has_a_strict_policy_and_no_data(locked: RunningServer) -> None:
    reply = locked.ask("/")
    assert reply.status == 200 and reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert len(re.findall("'sha256-[^']+'", policy)) == 2
    text = reply.body.decode()
    assert "dante-chat" not in text and "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    for path in ("/status", "/metrics", "/v1/models"):
        assert locked.ask(path).status == 401, path


def test_without_the_page_its_path_is_not_there() -> None:
    for server in running("--no-ui"):
        assert server.ask("/").status == 404
        assert server.ask("/status").status == 200


def test_status_names_unfinished_sequences_and_no_text(server: RunningServer) -> None:
    with hundreds(server, 3):
        while not (status := server.ask("/status").json)["sequences"]:
            pass
        first = status["sequences"][0]
        assert set(first) == {
            "request",
            "state",
            "seconds",
            "prompt_tokens",
            "cached_tokens",
            "output_tokens",
            "max_tokens",
        }
        assert first["request"].startswith("cmpl-") and first["max_tokens"] == 2000
        assert first["prompt_tokens"] == server.ask("/tokenize", {"prompt": "Then 0"}).json["count"]
    assert server.ask("/status").json["sequences"] == []


def test_watching_is_logged_only_where_it_fails(server: RunningServer) -> None:
    server.ask("/status")
    server.ask("/nothing")
    server.ask("/metrics")
    while not any("/nothing" in line for line in server.lines):
        pass
    assert not [line for line in server.lines if "/status 200" in line or "/metrics 200" in line]


def test_an_idle_server_is_shown(server: RunningServer, visit: Callable[..., Any]) -> None:
    page = ready(visit(server.url + "/"))
    assert page.locator("#name").inner_text() == "dante-chat"
    facts = page.locator("#facts").inner_text()
    assert "cpu" in facts and "2,048 tokens of context" in facts
    assert page.locator("#health").inner_text() == "healthy"
    assert page.locator("#idle").is_visible() and page.locator("#sequences").is_hidden()
    assert page.locator(".plot").count() == 6 and page.locator("#lock").is_hidden()


def test_two_hundred_sequences_are_shown_and_go_again(
    server: RunningServer, visit: Callable[..., Any]
) -> None:
    page = ready(visit(server.url + "/"))
    with hundreds(server, 200):
        until(page, "document.querySelectorAll('#sequences tbody tr').length === 200")
        assert "200 unfinished" in page.locator("#sequences-title").inner_text()
        until(page, "document.querySelector('tr[data-state=answer]') !== null")
        shown = page.locator(".plot", has_text="Queue").locator("b").all_inner_texts()
        assert sum(map(int, shown)) > 0
    page.wait_for_selector("#idle", state="visible")


def test_a_chat_streams_and_remembers(server: RunningServer, visit: Callable[..., Any]) -> None:
    page = ready(visit(server.url + "/"))
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0")
    question = "Who guides Dante through Hell?"
    expected = server.chat(question).json["choices"][0]["message"]["content"]
    assert send(page, question) == expected
    line = page.locator(".assistant .note").last.inner_text()
    assert re.fullmatch(r"\d+ tokens?( · [\d.,K]+ tokens/s)? · first after [\d.]+ (ms|s)", line), line
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "And then?")
    roles = [message["role"] for message in asked.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0


def test_markup_of_people_and_models_is_text(server: RunningServer, visit: Callable[..., Any]) -> None:
    def answer(route: Any) -> None:
        choice = {"index": 0, "delta": {"content": MARKUP, "reasoning": MARKUP}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        event = json.dumps({"choices": [choice], "usage": usage})
        route.fulfill(content_type="text/event-stream", body=f"data: {event}\n\ndata: [DONE]\n\n")

    page = ready(visit(server.url + "/", routes={"**/v1/chat/completions": answer}))
    assert send(page, MARKUP) == MARKUP
    assert page.locator(".user .text").inner_text() == MARKUP
    assert page.locator("#transcript script, #transcript img").count() == 0
    assert page.title() == "dante-chat · Infernum"


def test_an_answer_is_stopped_from_the_keyboard(server: RunningServer, visit: Callable[..., Any]) -> None:
    page = ready(visit(server.url + "/"))
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True}),
    )
    page.locator("#prompt").focus()
    page.keyboard.type("Sing")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.assistant .text').textContent.length > 20")
    assert page.locator("#transcript").get_attribute("aria-busy") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("#transcript[aria-busy=false]")
    assert page.locator(".assistant .note").inner_text() == "stopped"
    assert page.evaluate("document.activeElement.id") == "prompt"
    server.wait_until_idle()


def test_everything_is_reached_by_the_tab_key_and_a_plot_is_read_by_arrows(
    server: RunningServer, visit: Callable[..., Any]
) -> None:
    page = ready(visit(server.url + "/"))
    reached: list[str] = []
    while True:
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):  # behind the last one
            break
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.getAttribute('aria-label') ||"
                " document.activeElement.textContent"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached
    plots = ["Answers", "Prompts", "Time to first token", "Time between tokens", "Queue", "KV cache"]
    assert [name for name in reached if name in plots] == plots
    assert {"2 min", "15 min", "transcript", "prompt", "send"} <= set(reached)
    until(page, "past.points.length > 3")
    queue = page.get_by_role("slider", name="Queue")
    queue.focus()
    page.keyboard.press("Home")
    assert re.fullmatch(r"\d+ s ago: running \d+, waiting \d+", queue.get_attribute("aria-valuetext"))
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_errors_of_the_server_are_sentences_and_the_question_comes_back(
    server: RunningServer, visit: Callable[..., Any]
) -> None:
    page = ready(visit(server.url + "/"))
    text = "gate " * 3000
    send(page, text)
    problem = page.locator(".assistant .problem").inner_text()
    assert problem.startswith("This model holds at most 2048 tokens")
    assert page.locator("#prompt").input_value() == text


def test_a_key_is_asked_for_and_a_wrong_one_is_refused(
    locked: RunningServer, visit: Callable[..., Any]
) -> None:
    page = visit(locked.url + "/")
    page.wait_for_selector("#lock", state="visible")
    assert page.locator("main").is_hidden() and page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#key-problem').textContent !== ''")
    assert "wrong" in page.locator("#key-problem").inner_text()
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    ready(page).wait_for_selector("main", state="visible")
    assert KEY not in page.content()
    assert send(page, "Who guides Dante through Hell?")
    page.reload()
    ready(page).wait_for_selector("main", state="visible")  # the tab has the key
    page.get_by_role("button", name="Forget key").click()
    page.wait_for_selector("#lock", state="visible")
    page.reload()
    page.wait_for_selector("#lock", state="visible")


def test_a_server_that_goes_and_comes_back_is_noticed(visit: Callable[..., Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = start("--port", port)
    try:
        page = ready(visit(server.url + "/"))
        server.stop()
        page.wait_for_selector("#trouble", state="visible")
        assert "does not answer" in page.locator("#trouble").inner_text()
        send(page, "Who guides Dante through Hell?")
        assert page.locator(".problem").inner_text() == "The server does not answer."
        server = start("--port", port)
        page.wait_for_selector("#trouble", state="hidden")
        page.wait_for_selector("#health[data-state=healthy]")
        assert page.evaluate("past.points.some((point) => point.isHole)")
        page.locator("#prompt").fill("")
        assert send(page, "Who guides Dante through Hell?")
    finally:
        server.stop()


def test_a_model_without_a_chat_template_continues_texts(visit: Callable[..., Any]) -> None:
    server = start(model="dante")
    try:
        page = ready(visit(server.url + "/"))
        assert page.locator("#chat-title").inner_text() == "Continue a text"
        page.get_by_text("Settings").click()
        assert page.get_by_label("System prompt").is_hidden()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Tokens at most").fill("12")
        expected = server.complete("In the middle of", max_tokens=12).json["choices"][0]["text"]
        assert send(page, "In the middle of") == expected.strip("\n")
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_one_part_at_a_time(
    scheme: str, server: RunningServer, visit: Callable[..., Any]
) -> None:
    page = ready(visit(server.url + "/", viewport={"width": 360, "height": 700}, color_scheme=scheme))
    assert page.locator("#chat").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("tab", name="Chat").click()
    assert page.locator("#server").is_hidden() and page.locator("#prompt").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_nothing_moves_for_those_who_want_that(server: RunningServer, visit: Callable[..., Any]) -> None:
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        page = ready(visit(server.url + "/", reduced_motion=motion))
        page.evaluate("setBusy(true); new Message('assistant', 'a')")
        style = "getComputedStyle(document.querySelector('.assistant .text'), '::after').animationName"
        assert page.evaluate(style) == name


def test_metrics_are_read_whatever_their_prefix_and_labels(
    server: RunningServer, visit: Callable[..., Any]
) -> None:
    page = ready(visit(server.url + "/"))
    text = """# HELP x:gap_seconds A sum.
x:n_total{model_name="a } 5\\",le=\\"9"} 3.0
x:n_total{model_name="b"} 4.0
x:gap_seconds_bucket{le="1.0",model_name="a"} 0.0
x:gap_seconds_bucket{le="2.0",model_name="a"} 4.0
x:gap_seconds_bucket{le="+Inf",model_name="a"} 4.0
"""
    assert page.evaluate("(text) => parseMetrics(text, 1).values.get('n_total')", text) == 7
    median = "(text) => quantileOf(parseMetrics('', 0), parseMetrics(text, 1), 'gap_seconds', 0.5)"
    assert page.evaluate(median, text) == 1.5
