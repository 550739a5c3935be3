"""Servers that are stopped while they answer: each answer comes to an end that its client understands.

`ends(rounds, seed)` is a part of serve_soak.py; test_serve_ends.py runs a round of each kind.
"""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from serving import Reply, RunningServer, start

WAYS = {
    "drain": ("--shutdown-timeout", "600"),
    "timeout": ("--shutdown-timeout", "0.3"),
    "twice": ("--shutdown-timeout", "600"),
}
"""Ways to stop a server, with their options: it may finish its answers; it may not; or it gets a second signal."""

AT_ONCE_SECONDS = 4.0
"""How long a server may take that is not to finish its answers, beyond `--shutdown-timeout`."""

Problem = str


def ends(rounds: int, seed: int) -> list[Problem]:
    """What was wrong in so many rounds of each way, with answers that run and answers that wait."""
    return [
        problem
        for number in range(rounds)
        for way in WAYS
        for problem in stop_while_answering(way, random.Random(f"{seed}/{number}/{way}"), requests=12)
    ]


def stop_while_answering(way: str, draw: random.Random, requests: int) -> list[Problem]:
    """Ask, stop the server by a signal once it has begun to answer, and look at each reply and the exit code."""
    server = start("--max-num-seqs", "3", *WAYS[way])
    tokens = [draw.randint(60, 150) for _ in range(requests)]
    streamed = [True, *(draw.random() < 0.6 for _ in tokens[1:])]
    problems: list[Problem] = []
    with ThreadPoolExecutor(requests) as pool:
        asked = [
            pool.submit(
                server.complete, "Then", max_tokens=count, ignore_eos=True, stream=stream, timeout=700
            )
            for count, stream in zip(tokens, streamed, strict=True)
        ]
        while server.metric("num_requests_running") < 3 or server.metric("generation_tokens_total") < 9:
            time.sleep(0.01)
        time.sleep(0.3 * draw.random())
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        problems += refusal_of(server)
        if way == "twice":
            server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(700)
        seconds = time.monotonic() - begin
        replies = [each.result(10) for each in asked]
    if code != 0 or any("Traceback" in line for line in server.lines):
        problems.append(f"{way}: the server ended with {code}: {''.join(server.lines[-5:])}")
    if way != "drain" and seconds > AT_ONCE_SECONDS + 0.3:
        problems.append(f"{way}: the server took {seconds:.1f} s to end")
    endings = [ending_of(*each) for each in zip(replies, tokens, streamed, strict=True)]
    allowed = {"whole"} if way == "drain" else {"whole", "error frame", "refused"}
    problems += [f"{way}: {ending}" for ending in endings if ending not in allowed]
    if way != "drain" and "error frame" not in endings:
        problems.append(f"{way}: no stream ended with an error: {endings}")
    return problems


def refusal_of(server: RunningServer) -> list[Problem]:
    """What is wrong with the answer to a request that comes while the server stops."""
    reply = server.complete("a", max_tokens=1)
    if reply.status == 503 and reply.headers.get("retry-after") and reply.error["message"]:
        return []
    return [f"a new request is answered {reply.status} {reply.headers}: {reply.body[:200]!r}"]


def ending_of(reply: Reply, tokens: int, stream: bool) -> str:
    """How an answer has ended: "whole", "error frame", "refused", or else what is wrong with it."""
    if reply.status == 503:
        refused = reply.headers.get("retry-after") and "shutting down" in reply.error["message"]
        return "refused" if refused else f"a 503 without a reason: {reply.headers} {reply.body!r}"
    if reply.status != 200:
        return f"status {reply.status}: {reply.body[-200:]!r}"
    answers = reply.events if stream else [reply.json]
    if error := answers[-1].get("error"):
        return "error frame" if "shutting down" in error["message"] else f"the error {error}"
    reasons = [choice["finish_reason"] for answer in answers for choice in answer["choices"]]
    counted = None if stream else reply.json["usage"]["completion_tokens"]
    if reasons[-1] == "length" and counted in (None, tokens):
        return "whole"
    return f"it ends with {reasons[-1]} after {counted} of {tokens} tokens"
