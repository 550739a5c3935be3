"""Serves requests by the tree of Infernum on PYTHONPATH, for compare_engine.py: one JSON object a line, in and out.

It uses only what the trees that are compared have in common, and draws random weights as the older ones do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

from infernum import LLM, SamplingParams
from infernum.weights import dummy

if hasattr(
    dummy, "distribution_of"
):  # before the runtime imports it: older trees have one deviation for all matrices
    distribution_of = dummy.distribution_of

    def distribution_of_older_trees(name: str, shape: tuple[int, ...], added: float = 0.0) -> dummy.Normal:
        normal = distribution_of(name, shape, added)
        return replace(normal, deviation=0.02) if len(shape) > 1 else normal

    dummy.distribution_of = distribution_of_older_trees


def serve(llm: LLM, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    """The tokens of each (prompt, number of tokens), the seconds at which they arrived, and the preemptions."""
    engine = llm._engine
    preempted = getattr(engine._scheduler, "preempted", 0)
    begin = time.perf_counter()
    index = {
        engine.add(prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)): number
        for number, (prompt, tokens) in enumerate(requests)
    }
    seconds: list[list[float]] = [[] for _ in index]
    tokens: list[list[int]] = [[] for _ in index]
    while engine.busy:
        events = engine.step()
        now = time.perf_counter() - begin
        for event in events:
            tokens[index[event.sequence]] += event.tokens
            seconds[index[event.sequence]] += [now] * len(event.tokens)
    preempted = getattr(engine._scheduler, "preempted", 0) - preempted
    return {"seconds": seconds, "tokens": tokens, "preemptions": preempted}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm: LLM | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            if llm is not None:
                llm.close()
            llm = LLM(**request["open"])
            reply: dict[str, Any] = {}
        else:
            assert llm is not None, "a model is opened first"
            reply = serve(llm, request["requests"])
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
