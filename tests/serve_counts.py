"""The metrics of a server beside what its clients count: every name that dashboards read, and sums that agree exactly.

`compare_counts(server, requests, clients)` is a part of serve_soak.py, and of test_serve_soak.py with fewer requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from serving import RunningServer

KINDS = {
    "counter": """num_preemptions prompt_tokens prompt_tokens_cached generation_tokens prefix_cache_queries
        prefix_cache_hits request_success step_tokens gpu_idle_seconds""",
    "gauge": "num_requests_running num_requests_waiting kv_cache_usage_perc",
    "histogram": """time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
        e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds
        request_decode_time_seconds request_prompt_tokens request_generation_tokens iteration_tokens_total
        request_params_n request_params_max_tokens step_seconds""",
}
"""The names that dashboards of vLLM read, and our own, by their kind."""

OF_SEQUENCES = """time_to_first_token_seconds e2e_request_latency_seconds request_queue_time_seconds
    request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens request_generation_tokens
    request_params_max_tokens"""
"""Histograms to which every sequence adds one value."""

Sums = dict[str, float]
"""Values by name, with the label that tells samples of one name apart behind a colon."""

Problem = str


def sums_of(server: RunningServer) -> tuple[Sums, list[Problem]]:
    """What /metrics says, and what is wrong with its names and kinds."""
    sums, problems = Sums(), list[Problem]()
    expected = {f"infernum:{name}": kind for kind, names in KINDS.items() for name in names.split()}
    for family in text_string_to_metric_families(server.ask("/metrics").body.decode()):
        if family.name.startswith("process_") or family.name.endswith("_created"):
            continue
        if expected.pop(family.name, None) != family.type or not family.documentation:
            problems.append(f"{family.name} is a {family.type}, of {family.documentation!r}")
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model_name", None) != "dante-chat":
                problems.append(f"{sample.name} lacks the name of the model: {sample.labels}")
            sums[":".join([sample.name.removeprefix("infernum:"), *labels.values()])] = sample.value
    return sums, problems + [f"{name} is missing" for name in expected]


@dataclass
class Counted:
    """What a client has counted of one request."""

    sequences: int
    max_tokens: int
    reasons: list[str]
    usage: dict[str, Any]


def ask(server: RunningServer, path: str, body: dict[str, Any]) -> Counted:
    """Ask, and count what comes."""
    stream = body.get("stream", False)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    reply = server.ask(path, body | options, timeout=300)
    assert reply.status == 200, reply.body
    answers = reply.events if stream else [reply.json]
    reasons = [choice["finish_reason"] for answer in answers for choice in answer["choices"]]
    return Counted(body.get("n", 1), body["max_tokens"], list(filter(None, reasons)), answers[-1]["usage"])


def expected_sums(counted: list[Counted]) -> Sums:
    """By what the sums of a server rise that has answered these requests, whose choices have no stop strings."""
    sequences = sum(each.sequences for each in counted)
    prompt = sum(each.usage["prompt_tokens"] * each.sequences for each in counted)
    cached = sum(each.usage["prompt_tokens_details"]["cached_tokens"] for each in counted)
    output = sum(each.usage["completion_tokens"] for each in counted)
    sums = Sums(dict.fromkeys((f"{name}_count" for name in OF_SEQUENCES.split()), sequences))
    calls = {"tool_calls": "stop"}  # the engine knows no calls
    reasons = Counter(calls.get(reason, reason) for each in counted for reason in each.reasons)
    return sums | {
        **{f"request_success_total:{reason}": count for reason, count in reasons.items()},
        "prompt_tokens_total": prompt,
        "prefix_cache_queries_total": prompt,
        "prompt_tokens_cached_total": cached,
        "prefix_cache_hits_total": cached,
        "generation_tokens_total": output,
        "step_tokens_total:prompt": prompt - cached,
        "step_tokens_total:decode": output,
        "iteration_tokens_total_sum": prompt - cached + output,
        "request_prompt_tokens_sum": prompt,
        "request_generation_tokens_sum": output,
        "request_params_n_count": len(counted),
        "request_params_n_sum": sequences,
        "request_params_max_tokens_sum": sum(each.max_tokens * each.sequences for each in counted),
        "num_preemptions_total": 0,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
    }


def compare_counts(
    server: RunningServer, requests: Iterable[tuple[str, dict[str, Any]]], clients: int
) -> list[Problem]:
    """Ask so many at a time, and compare what the server counted with what its clients counted."""
    before, problems = sums_of(server)
    with ThreadPoolExecutor(clients) as pool:
        counted = list(pool.map(lambda each: ask(server, *each), requests))
    server.wait_until_idle()
    after, more = sums_of(server)
    for name, expected in expected_sums(counted).items():
        if (rise := after.get(name, 0) - before.get(name, 0)) != expected:
            problems.append(f"{name} rose by {rise:g}; clients counted {expected:g}")
    begun = sum(each.sequences for each in counted if each.max_tokens)
    longer = sum(each.usage["completion_tokens"] for each in counted) - begun
    gaps = after["inter_token_latency_seconds_count"] - before["inter_token_latency_seconds_count"]
    if gaps != longer:
        problems.append(f"there were {gaps:g} gaps between tokens; clients counted {longer:g}")
    for name in ("step_seconds_sum", "gpu_idle_seconds_total", "step_seconds_count"):
        if after[name] <= before[name]:
            problems.append(f"{name} did not rise")
    return problems + more
