"""Steps, blocks and kernels as a trace for Perfetto and Chrome: the Trace Event Format, with complete events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from infernum.runtime.binding import StepPlace

TRACKS = ("steps", "blocks", "kernels")


@dataclass(frozen=True)
class TracedKernel:
    """One launch, from `start` to `end` in microseconds since its step began; viewers show `facts` on a click."""

    name: str
    place: StepPlace
    start: float
    end: float
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class TracedStep:
    """One step, its kernels in launch order."""

    name: str
    variant: str
    tokens: int
    kernels: Sequence[TracedKernel]
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


def block_name(place: StepPlace) -> str:
    """A block of the program, such as `decoder[3]`."""
    return place.block if place.layer is None else f"{place.block}[{place.layer}]"


def trace(title: str, steps: Sequence[TracedStep], metadata: Mapping[str, object]) -> dict[str, Any]:
    """The trace as a JSON object: a track each for steps, blocks and kernels; a step begins where the last ended."""
    events = [metadata_event("process_name", {"name": title})]
    for number, track in enumerate(TRACKS):
        events += [
            metadata_event("thread_name", {"name": track}, tid=number),
            metadata_event("thread_sort_index", {"sort_index": number}, tid=number),
        ]
    begin = 0.0
    for step in steps:
        end = begin + max((kernel.end for kernel in step.kernels), default=0.0)
        args = {"variant": step.variant, "tokens": step.tokens, "kernels": len(step.kernels), **step.facts}
        events.append(complete_event(0, step.name, "step", begin, end, args))
        for (block, layer), group in groupby(step.kernels, key=lambda k: (k.place.block, k.place.layer)):
            kernels = list(group)
            place = {"block": block, "layer": layer, "variant": step.variant}
            start, end_of_block = min(k.start for k in kernels), max(k.end for k in kernels)
            name, args = block_name(kernels[0].place), {**place, "kernels": len(kernels)}
            events.append(complete_event(1, name, "block", begin + start, begin + end_of_block, args))
            events += [
                complete_event(2, k.name, "kernel", begin + k.start, begin + k.end, {**place, **k.facts})
                for k in kernels
            ]
        begin = end
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": dict(metadata)}


def complete_event(
    track: int,
    name: str,
    category: str,
    begin: float,
    end: float,
    args: Mapping[str, object],
    process: int = 0,
) -> dict[str, Any]:
    """A complete event, from `begin` to `end` in microseconds.

    Times are rounded to nanoseconds at both ends, so that nested events stay nested.
    """
    ts = round(begin, 3)
    return {
        "ph": "X",
        "pid": process,
        "tid": track,
        "name": name,
        "cat": category,
        "ts": ts,
        "dur": round(round(end, 3) - ts, 3),
        "args": {key: value for key, value in args.items() if value is not None},
    }


def metadata_event(name: str, args: Mapping[str, object], process: int = 0, **thread: int) -> dict[str, Any]:
    """An event that names a process or one of its tracks."""
    return {"ph": "M", "pid": process, **thread, "name": name, "args": args}
