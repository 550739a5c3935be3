"""The steps of an engine under load, as a trace: who was in each step, pages, preemptions, and when the GPU was idle.

Time stamps are CUDA events before the first kernel of a step and after the last one. The engine runs as it does
otherwise, so the time between two steps is what the GPU waits for the host. Where a step is launched kernel by kernel,
waits within the step count as a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np

from infernum.bundle import Bundle
from infernum.engine.engine import Engine
from infernum.engine.events import StepRecord, ahead_share
from infernum.errors import RequestError
from infernum.lab.measure.origin import origin
from infernum.lab.measure.requests import requests_of, serve, warm_up_lengths
from infernum.lab.measure.trace import complete_event, metadata_event
from infernum.opening import Progress
from infernum.runtime.executor import CudaExecutor
from infernum.weights.source import TensorSource

TIME_SOURCE = "CUDA events around each step, in the engine's normal run"

GPU, REQUESTS = 0, 1
"""Processes of the trace: steps and counters of the GPU, and a track for each request."""

Times = Sequence[tuple[float, float]]
"""Milliseconds since the first step began at which each step began and ended."""


def profile_load(
    bundle: Bundle,
    checkpoint: TensorSource | None,
    lengths: Sequence[tuple[int, int]],
    *,
    pages: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The trace of an engine that gets requests of these tokens in and out, all at once.

    None for `checkpoint`: random weights; for `pages`: as many as fit. Raises RequestError when the requests do not fit
    the bundle; BundleError, CheckpointError or DeviceError in loading.
    """
    model, longest = bundle.manifest.model, max(map(sum, lengths))
    if longest > model.context:
        raise RequestError(f"a request has {longest} tokens, more than the context of {model.context}")
    about = origin(bundle.manifest.nvrtc)
    numbers, records = count(), list[StepRecord]()
    with ExitStack() as stack:
        executor = CudaExecutor.open(
            bundle, checkpoint, max_model_len=longest, max_pages_total=pages, seed=seed
        )
        engine = Engine(executor, model, max_model_len=longest, on_step=records.append)
        stack.callback(engine.close)
        if progress:
            progress("profiling", 0, 2)
        serve(engine, requests_of(warm_up_lengths(lengths), model.vocab_size, numbers))
        warm_up = len(records)
        if progress:
            progress("profiling", 1, 2)
        requests = requests_of(lengths, model.vocab_size, numbers)
        marks = stack.enter_context(executor.marked())
        serve(engine, requests)
        times = marks.steps()
    metadata = {
        **about,
        "model": model.name,
        "dtype": bundle.manifest.dtype,
        "fuse": bundle.manifest.fuse,
        "requests": len(lengths),
        "prompt_tokens": sum(prompt for prompt, _ in lengths),
        "output_tokens": sum(out for _, out in lengths),
        "pages": executor.num_pages,
        "time_source": TIME_SOURCE,
        "summary": summary(records[warm_up - 1 :], times, executor.num_pages),
    }
    events = load_events(f"{model.name} on {about['gpu']}", records[warm_up:], times)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": metadata}


def summary(records: Sequence[StepRecord], times: Times, pages: int) -> dict[str, Any]:
    """What the steps have in common; the first record is of the step before them."""
    before, *steps = records
    begins, ends = (np.array(each) for each in zip(*times, strict=True))
    idle = np.concatenate([[0.0], begins[1:] - ends[:-1]])
    busy = ends - begins
    host_ms = 1e3 * np.array([record.host_seconds for record in steps])
    kinds: dict[str, Any] = {}
    for name, chosen in (
        ("all", np.ones(len(steps), bool)),
        ("decode", np.array([_is_decode(record) for record in steps])),
        ("with prompts", np.array([not _is_decode(record) for record in steps])),
    ):
        if not chosen.any():
            continue
        sequences = [len(record.sequences) for record, here in zip(steps, chosen, strict=True) if here]
        busy_ms, idle_ms = float(busy[chosen].sum()), float(idle[chosen].sum())
        kinds[name] = {
            "steps": int(chosen.sum()),
            "sequences": float(np.mean(sequences)),
            "busy_ms": busy_ms,
            "idle_ms": idle_ms,
            "idle_share": idle_ms / (busy_ms + idle_ms),
            "host_ms": float(np.median(host_ms[chosen])),
        }
    return {
        "kinds": kinds,
        "launched_ahead": ahead_share(steps),
        "masked": sum(record.masked for record in steps),
        "most_running": max(record.running for record in steps),
        "most_waiting": max(record.waiting for record in steps),
        "most_pages": pages - min(record.free_pages for record in steps),
        "preemptions": steps[-1].preemptions - before.preemptions,
        "cached_tokens": steps[-1].cached_tokens - before.cached_tokens,
    }


def load_events(title: str, records: Sequence[StepRecord], times: Times) -> list[dict[str, Any]]:
    """Events of the trace: each step with its sequences, counters, and a track of spans for each request."""
    first = min(int(record.sequences.min()) for record in records)
    events = [
        metadata_event("process_name", {"name": title}),
        metadata_event("thread_name", {"name": "steps"}, tid=0),
        metadata_event("process_name", {"name": "requests"}, REQUESTS),
    ]
    for record, (begin, end) in zip(records, times, strict=True):
        args = {
            "sequences": (record.sequences - first).tolist(),
            "starts": record.starts.tolist(),
            "lengths": record.lengths.tolist(),
            "prompt_tokens": record.prompt_tokens,
            "ahead": record.ahead,
            "masked": record.masked,
            "host_ms": 1e3 * record.host_seconds,
        }
        events.append(complete_event(GPU, _step_name(record), "step", 1e3 * begin, 1e3 * end, args))
        for name, value in (
            ("running", record.running),
            ("waiting", record.waiting),
            ("free pages", record.free_pages),
            ("preemptions", record.preemptions),
            ("cached tokens", record.cached_tokens),
        ):
            ts = round(1e3 * begin, 3)
            events.append({"ph": "C", "pid": GPU, "name": name, "ts": ts, "args": {name: value}})
    for sequence, name, begin, end in _spans(records):
        span = (1e3 * times[begin][0], 1e3 * times[end][1])
        events.append(
            complete_event(sequence - first, name, "request", *span, {"steps": end - begin + 1}, REQUESTS)
        )
    return events


def _spans(records: Sequence[StepRecord]) -> list[tuple[int, str, int, int]]:
    """Sequence, "prompt" or "decode", and the first and last step, of each run of steps in which it does the same."""
    spans: list[tuple[int, str, int, int]] = []
    latest: dict[int, int] = {}
    for step, record in enumerate(records):
        sampled = np.zeros(len(record.sequences), bool)
        sampled[record.sampled] = True
        decodes = sampled & (record.lengths == 1)
        for sequence, is_decode in zip(record.sequences.tolist(), decodes.tolist(), strict=True):
            name, place = "decode" if is_decode else "prompt", latest.get(sequence)
            if place is not None and spans[place][1] == name and spans[place][3] == step - 1:
                spans[place] = (*spans[place][:3], step)
            else:
                latest[sequence] = len(spans)
                spans.append((sequence, name, step, step))
    return spans


def _is_decode(record: StepRecord) -> bool:
    return len(record.sampled) == len(record.sequences) == int(record.lengths.sum())


def _step_name(record: StepRecord) -> str:
    decodes, tokens = int((record.lengths == 1).sum()), int(record.lengths[record.lengths > 1].sum())
    prompts = len(record.sequences) - decodes
    return f"{decodes} decode" + (f", {tokens} tokens of {prompts} prompts" if prompts else "")
