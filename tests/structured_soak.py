"""Asks a server for answers of random schemas at temperature 1.5, and validates every answer that has ended.

    python tests/structured_soak.py [--schemas 500] [--seed 0] [--max-tokens 120]

Of every four requests, one has no schema: its tokens must be those that it has alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
from schemas import NODE, check_answer, random_schema
from serving import RunningServer, start

WORKERS = 16
FREE: dict[str, Any] = {
    "prompt": "In the middle of",
    "temperature": 1.0,
    "max_tokens": 24,
    "ignore_eos": True,
}


def outcome(server: RunningServer, number: int, seed: int, max_tokens: int) -> str:
    """What has become of one schema."""
    schema = random_schema(random.Random(f"{seed} {number}")) | {"$defs": {"node": NODE}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = server.complete(
        "Then", temperature=1.5, seed=number, max_tokens=max_tokens, response_format=form, timeout=300
    )
    if reply.status == 400 and reply.error["param"] == "response_format":
        return "refused before it was queued"
    if reply.status != 200:
        return f"failed: {reply.status} {reply.error['message']} {json.dumps(schema)}"
    (choice,) = reply.json["choices"]
    if choice["finish_reason"] == "length":
        return "cut off by max_tokens"
    try:
        check_answer(choice["text"], schema)
    except (jsonschema.ValidationError, ValueError) as error:
        return f"failed: {choice['text']!r} is no answer of {json.dumps(schema)}: {error}"
    return "valid"


def free(server: RunningServer, number: int, alone: str) -> str:
    """What has become of a neighbour without a schema."""
    text = server.complete(**FREE, seed=number % 4, timeout=300).json["choices"][0]["text"]
    return (
        "neighbour as if alone" if text == alone else f"failed: neighbour {number} is {text!r}, not {alone!r}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=120)
    options = parser.parse_args()
    server, begin = start(), time.monotonic()
    try:
        alone = [server.complete(**FREE, seed=seed).json["choices"][0]["text"] for seed in range(4)]
        with ThreadPoolExecutor(WORKERS) as pool:
            asked = []
            for number in range(options.schemas):
                asked.append(pool.submit(outcome, server, number, options.seed, options.max_tokens))
                if number % 3 == 0:
                    asked.append(pool.submit(free, server, number, alone[number % 4]))
            counts = Counter(each.result() for each in asked)
        server.wait_until_idle()
    finally:
        code = server.stop()
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    print(f"{time.monotonic() - begin:.0f} s, exit code {code}")
    sys.exit(code or any(name.startswith("failed") for name in counts))


if __name__ == "__main__":
    main()
