"""A served model under thousands of requests; too long for CI, which runs a few of each kind (test_serve_soak.py).

    python tests/serve_soak.py --streams 2000      # streams give what whole answers give
    python tests/serve_soak.py --disconnects 2000  # clients that leave at any moment leave nothing behind
    python tests/serve_soak.py --bodies 10000      # bodies of any kind get JSON, and never an error of ours
    python tests/serve_soak.py --slow 200          # readers of a byte a second cost the others nothing
    python tests/serve_soak.py --counts 500        # /metrics agrees with what clients count
    python tests/serve_soak.py --ends 20           # servers that are stopped end each answer as they should
    python tests/serve_soak.py --soak 30           # minutes of all of it: memory, files and threads stay as they were

Each part prints a line with what it saw, and the script exits with 1 where something was wrong. The model is dante-chat
on the CPU.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from serve_counts import compare_counts
from serve_ends import ends
from serving import RunningServer, start

CLIENTS = 24
"""Requests at once: more than the engine runs at a time on a small machine, so that some wait."""

WORDS = (
    "Virgil",
    "leads",
    "him",
    "✨",
    "العربية",
    "👩‍👩‍👧",
    "e\u0301",
    "\n",
    "Hell",
    "and",
    "\u200b",
    "Beatrice",
    "🇮🇹",
)

CANTO = {
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

Problem = str


def shared(
    count: int, clients: int, work: Callable[[random.Random], Problem | None], seed: int
) -> list[Problem]:
    """What `count` calls of `work` found wrong, by so many threads; call i draws from a generator of its own."""
    with ThreadPoolExecutor(clients) as pool:
        results = pool.map(lambda i: work(random.Random(f"{seed}/{i}")), range(count))
        return [problem for problem in results if problem]


# ---- requests


def prompt_of(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12)))


def canto_of(draw: random.Random) -> str:
    """A question that the model answers by a call."""
    return draw.choice(("Read canto {}.", "What does canto {} say?")).format(draw.randint(1, 34))


def request_of(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body of a valid request with a seed, and perhaps stop strings and log-probabilities."""
    body: dict[str, Any] = {
        "max_tokens": draw.randint(1, 24),
        "seed": draw.randint(0, 1 << 30),
        "temperature": draw.choice((0, 0.7, 1.5)),
        "ignore_eos": draw.random() < 0.5,
    }
    if draw.random() < 0.5:
        body["stop"] = draw.sample(("e", "th", " and", "✨", "il", "the ", "\n", "a b"), draw.randint(1, 3))
    if draw.random() < 0.3:
        body["include_stop_str_in_output"] = True
    if draw.random() < 0.5:
        body["messages"] = [{"role": "user", "content": prompt_of(draw)}]
        if draw.random() < 0.4:
            body |= {"messages": [{"role": "user", "content": canto_of(draw)}], "tools": [CANTO]}
            body["max_tokens"] += draw.choice((0, 20))
        if draw.random() < 0.4:
            body |= {"logprobs": True, "top_logprobs": draw.randint(0, 3)}
        return "/v1/chat/completions", body
    body["prompt"] = prompt_of(draw)
    if draw.random() < 0.4:
        body["logprobs"] = draw.randint(0, 3)
    return "/v1/completions", body


def counted_request(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """A request whose tokens a client sees all: a server computes some behind a stop string, too."""
    draw = random.Random(f"{seed}/counts/{number}")
    path, body = request_of(draw)
    body.pop("stop", None)
    body |= {"stream": draw.random() < 0.5, "n": draw.choice((1, 1, 1, 2, 3))}
    if "prompt" in body and draw.random() < 0.2:
        body |= {"max_tokens": 0, "echo": True, "logprobs": 1}
    return path, body


def connected(server: RunningServer, timeout: float = 120) -> http.client.HTTPConnection:
    at = urlsplit(server.url)
    assert at.hostname is not None, server.url
    return http.client.HTTPConnection(at.hostname, at.port, timeout=timeout)


# ---- streams


def merged(events: Sequence[dict[str, Any]], chat: bool) -> dict[str, Any]:
    """What a stream has told of one answer, in the form of `whole`."""
    text, reason, logprobs, usage = "", None, list[Any](), None
    calls: Calls = {}
    for event in events:
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            text += (choice["delta"].get("content") or "") if chat else choice["text"]
            if chat:
                grow(calls, choice["delta"])
            reason = choice["finish_reason"] or reason
            logprobs += tokens_of(choice.get("logprobs"))
    return {"text": text, "calls": calls, "reason": reason, "logprobs": logprobs, "usage": counts(usage)}


def whole(answer: dict[str, Any], chat: bool) -> dict[str, Any]:
    choice, calls = answer["choices"][0], Calls()
    text = choice["message"]["content"] if chat else choice["text"]
    if chat:
        grow(calls, choice["message"])
    return {
        "text": text or "",
        "calls": calls,
        "reason": choice["finish_reason"],
        "logprobs": tokens_of(choice.get("logprobs")),
        "usage": counts(answer["usage"]),
    }


Calls = dict[int, tuple[str, str]]
"""The name and the arguments of each call of an answer, by its place."""


def grow(calls: Calls, message: dict[str, Any]) -> None:
    """Add the calls of a message, or what an event of a stream adds to them."""
    for place, call in enumerate(message.get("tool_calls", ())):
        name, arguments = calls.get(call.get("index", place), ("", ""))
        function = call["function"]
        grown = name + function.get("name", ""), arguments + function["arguments"]
        calls[call.get("index", place)] = grown


def counts(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Tokens used, without how many of them were cached, which the second of two requests has more of."""
    return usage and {name: count for name, count in usage.items() if isinstance(count, int)}


def tokens_of(logprobs: dict[str, Any] | None) -> list[Any]:
    """Of each token its spelling and log-probabilities."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return logprobs["content"]
    top = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], top, strict=True))


def stream_and_whole(server: RunningServer, draw: random.Random) -> Problem | None:
    path, body = request_of(draw)
    chat = path.endswith("chat/completions")
    answer = server.ask(path, body, timeout=300)
    streamed = server.ask(
        path, body | {"stream": True, "stream_options": {"include_usage": True}}, timeout=300
    )
    if (answer.status, streamed.status) != (200, 200):
        return f"{path} {body}: status {answer.status} and {streamed.status}: {answer.body[:200]!r}"
    first, second = whole(answer.json, chat), merged(streamed.events, chat)
    differing = [name for name in first if first[name] != second[name]]
    if not differing:
        return None
    return f"{path} {body}: " + "; ".join(f"{name}: {first[name]} and {second[name]}" for name in differing)


# ---- clients that leave


def leave(server: RunningServer, draw: random.Random) -> Problem | None:
    """Send a long request, read some of the answer or none, and close the connection."""
    path, body = request_of(draw)
    body |= {"max_tokens": draw.choice((1, 200, 400)), "ignore_eos": True, "stream": draw.random() < 0.5}
    body.pop("stop", None)
    connection = connected(server)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(draw.choice((0.0, 0.001, 0.02, 0.1, 0.4)) * draw.random())
        if body["stream"] and draw.random() < 0.5:
            connection.getresponse().read(draw.randint(1, 2000))
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {type(error).__name__}: {error}"
    finally:
        connection.close()
    return None


def left_behind(server: RunningServer, seconds: float = 1.0) -> str:
    """What the server still has of requests so long after the last; "": nothing."""
    end = time.monotonic() + seconds
    while True:
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        busy = {name: server.metric(name) for name in names if server.metric(name)}
        if not busy:
            return ""
        if time.monotonic() > end:
            return f"after {seconds:g} s it still has {busy}"
        time.sleep(0.02)


# ---- slow readers

FAST = 8
"""Streams whose gaps are measured beside the others."""


def gaps(server: RunningServer, tokens: int) -> list[float]:
    """Seconds from each event of a stream to the next."""
    body = {
        "prompt": "The",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "temperature": 1,
        "seed": 1,
    }
    connection = connected(server)
    times: list[float] = []
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        lines = connection.getresponse()
        times += [time.monotonic() for line in lines if line.startswith(b"data: {")]
    finally:
        connection.close()
    return [after - before for before, after in pairwise(times)]


def read_slowly(
    server: RunningServer, count: int, tokens: int, patient: bool, ended: threading.Event
) -> None:
    """Read so many streams, each a byte a second or, if `patient` is false, all there is, until `ended`."""
    body = {"prompt": "And", "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 1}
    sent = json.dumps(body).encode()
    at = urlsplit(server.url)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            each.connect((at.hostname, at.port))
            each.sendall(request)
            each.setblocking(False)
        while not ended.wait(1.0 if patient else 0.02):
            for each in sockets:
                with suppress(BlockingIOError):
                    each.recv(1 if patient else 1 << 16)


def slow_readers(server: RunningServer, count: int, tokens: int = 48) -> list[Problem]:
    """The gaps of some streams beside `count` others, which by turns read all there is and a byte a second.

    Machines vary more than readers do: the median of four turns counts.
    """
    turns: dict[bool, list[float]] = {False: [], True: []}
    pids = [server.process.pid, server.engine]
    memory: dict[bool, int] = {}
    for patient in (False, True) * 4:
        ended = threading.Event()
        others = threading.Thread(target=read_slowly, args=(server, count, tokens + 16, patient, ended))
        others.start()
        while server.metric("num_requests_running") + server.metric("num_requests_waiting") < count * 0.9:
            time.sleep(0.05)
        with ThreadPoolExecutor(FAST) as pool:
            gaps_seen = sorted(
                gap for each in pool.map(lambda _: gaps(server, tokens), range(FAST)) for gap in each
            )
        turns[patient].append(gaps_seen[int(len(gaps_seen) * 0.99)])
        memory.setdefault(patient, resources(pids)["MiB"])
        ended.set()
        others.join()
        if problem := left_behind(server, 10):
            return [problem]
    reading, hardly = (sorted(turns[patient])[len(turns[patient]) // 2] for patient in (False, True))
    print(
        f"slow: 99 % of the gaps of {FAST} streams are at most {1e3 * reading:.0f} ms beside {count} that read, "
        f"{1e3 * hardly:.0f} ms beside {count} that hardly do; MiB {memory[False]} and {memory[True]}",
        flush=True,
    )
    wrong = [f"slow readers: gaps of {hardly:.3f} s, not {reading:.3f}"] if hardly > 1.2 * reading else []
    grown = memory[True] - memory[False]
    return wrong + ([f"slow readers cost {grown} MiB"] if grown > 20 else [])


# ---- bodies of any kind


def any_value(draw: random.Random, depth: int = 0) -> Any:
    plain: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice((0, -1, 1, 1 << 31, 1 << 63, 10**30, -(10**12))),
        lambda: draw.choice((0.5, -0.0, 1e308, 1e-320)),
        lambda: draw.choice(("", "a", "\u0000", "💥", "x" * 5000, "\ud800", prompt_of(draw))),
    ]
    if depth > 3 or draw.random() < 0.6:
        return draw.choice(plain)()
    if draw.random() < 0.5:
        return [any_value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {str(any_value(draw, 9)): any_value(draw, depth + 1) for _ in range(draw.randint(0, 3))}


def any_body(server: RunningServer, draw: random.Random) -> Problem | None:
    """A valid request with some fields spoilt, or no JSON at all, to some path and by some method."""
    path, body = request_of(draw)
    if draw.random() < 0.2:
        path, body = "/v1/responses", {"input": body.get("messages", "Hello"), "tools": [CANTO["function"]]}
    body["max_tokens"] = body["max_output_tokens"] = 1
    others = ["n", "top_p", "logit_bias", "stream", "model", "echo", "tools", "tool_choice"]
    for name in draw.sample(list(dict.fromkeys([*body, *others])), draw.randint(1, 3)):
        body[name] = any_value(draw)
    raw = json.dumps(body).encode()
    if draw.random() < 0.3:
        cut = draw.randint(0, len(raw))
        raw = draw.choice((raw[:cut], raw[:cut] + bytes([draw.randint(0, 255)]) + raw[cut:], b"[" * cut, b""))
    if draw.random() < 0.1:
        path = draw.choice(("/v1/models", "/tokenize", "/detokenize", "/v1/nothing", "/", "/v1/completions/"))
    method = draw.choice(("POST",) * 9 + ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"))
    kind = draw.choice(("application/json",) * 9 + ("text/plain",))
    connection = connected(server)
    try:
        connection.request(method, path, raw, {"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{method} {path} {raw[:300]!r}: {type(error).__name__}: {error}"
    finally:
        connection.close()
    if answer.status >= 500:
        return f"{method} {path} {raw[:300]!r}: {answer.status} {text[:300]!r}"
    form = answer.headers.get_content_type()
    is_page = path == "/" and method == "GET"
    if (
        text
        and form not in ("application/json", "text/event-stream")
        and not (is_page and form == "text/html")
    ):
        return f"{method} {path} {raw[:300]!r}: {answer.status} is {form}"
    return None


# ---- processes


def resources(pids: Sequence[int]) -> dict[str, int]:
    """MiB of memory, open files, and threads, of all the processes together."""
    status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids).splitlines()
    kib = sum(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    threads = sum(int(line.split()[1]) for line in status if line.startswith("Threads:"))
    files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    return {"MiB": kib // 1024, "files": files, "threads": threads}


def soak(server: RunningServer, minutes: float, seed: int) -> list[Problem]:
    """Everything at once for so long. From its second fifth on, when caches are full, no process grows."""
    processes = {"server": server.process.pid, "engine": server.engine}
    end, problems = time.monotonic() + 60 * minutes, list[Problem]()
    answered, lock = Counter[str](), threading.Lock()

    def client(number: int) -> None:
        draw = random.Random(f"{seed}/soak/{number}")
        while time.monotonic() < end and len(problems) < 20:
            work = draw.choice((stream_and_whole, leave, any_body))
            problem = work(server, draw)
            with lock:
                answered[work.__name__] += 1
                if problem:
                    problems.append(problem)

    seen: list[dict[str, dict[str, int]]] = []

    def look() -> None:
        seen.append({name: resources([pid]) for name, pid in processes.items()})

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        while any(not each.done() for each in running):
            time.sleep(min(5.0, max(0.5, 60 * minutes / 20)))
            look()
        for each in running:
            each.result()
    problems += [problem] if (problem := left_behind(server, 5)) else []
    look()
    print(f"soak: {dict(answered)}", flush=True)
    fifth = max(1, len(seen) // 5)
    for name in processes:
        first, last = seen[0][name], seen[-1][name]
        settled = max(each[name]["MiB"] for each in seen[fifth : 2 * fifth + 1])
        final = min(each[name]["MiB"] for each in seen[-fifth:])
        print(f"soak: {name}: {first} at first, {settled} MiB after a fifth, {last} at the end", flush=True)
        if final > settled * 1.02 + 4:
            problems.append(f"memory of the {name} grew from {settled} to {final} MiB")
        if last["files"] > first["files"] + 8 or last["threads"] > first["threads"] + 8:
            problems.append(f"files or threads of the {name} were left: {first} at first, {last} at the end")
    return problems


def run(server: RunningServer, args: argparse.Namespace) -> list[Problem]:
    """All parts that were asked for. Each prints a line."""
    problems: list[Problem] = []
    seed = args.seed

    def part(name: str, count: int, work: Callable[[RunningServer, random.Random], Problem | None]) -> None:
        if not count:
            return
        begin, before = time.monotonic(), resources([server.process.pid, server.engine])
        wrong = shared(count, CLIENTS, lambda draw: work(server, draw), seed)
        wrong += [problem] if (problem := left_behind(server)) else []
        after = resources([server.process.pid, server.engine])
        if after["files"] > before["files"] + 8:
            wrong.append(f"{name}: {after['files'] - before['files']} files were left open")
        seconds = time.monotonic() - begin
        print(
            f"{name}: {count} in {seconds:.0f} s, {len(wrong)} wrong; {before} before, {after} after",
            flush=True,
        )
        problems.extend(wrong)

    part("streams", args.streams, stream_and_whole)
    part("disconnects", args.disconnects, leave)
    part("bodies", args.bodies, any_body)
    if args.slow:
        problems.extend(slow_readers(server, args.slow))
    if args.counts:
        wrong = compare_counts(
            server, [counted_request(seed, number) for number in range(args.counts)], CLIENTS
        )
        print(f"counts: {args.counts} requests, {len(wrong)} wrong", flush=True)
        problems.extend(wrong)
    if args.ends:
        wrong = ends(args.ends, seed)
        print(f"ends: {args.ends} rounds, {len(wrong)} wrong", flush=True)
        problems.extend(wrong)
    if args.soak:
        problems.extend(soak(server, args.soak, seed))
    health = server.ask("/health").status
    if health != 200:
        problems.append(f"/health answers {health} in the end")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=0, metavar="N")
    parser.add_argument("--disconnects", type=int, default=0, metavar="N")
    parser.add_argument("--bodies", type=int, default=0, metavar="N")
    parser.add_argument("--slow", type=int, default=0, metavar="N")
    parser.add_argument("--counts", type=int, default=0, metavar="N")
    parser.add_argument("--ends", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    server = start("--max-model-len", "512")
    try:
        problems = run(server, args)
    finally:
        code = server.stop()
    problems += [f"the server ended with {code}"] if code else []
    for problem in problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
