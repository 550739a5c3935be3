"""Steps, blocks and kernels as a trace that Perfetto and Chrome open: the Trace Event Format, with complete events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from infernum.runtime.binding import StepPlace

TRACKS = ("steps", "blocks", "kernels")


@dataclass(frozen=True)
class TracedKernel:
    """One launch, from `start` to `end` in microseconds since its step began; `facts` are shown when it is clicked."""

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
    events: list[dict[str, Any]] = [_names(None, "process", title)]
    for number, track in enumerate(TRACKS):
        events += [_names(number, "thread", track), _sorted_as(number)]
    begin = 0.0
    for step in steps:
        end = begin + max((kernel.end for kernel in step.kernels), default=0.0)
        about = {"variant": step.variant, "tokens": step.tokens, "kernels": len(step.kernels), **step.facts}
        events.append(_complete(0, step.name, "step", begin, end, about))
        for place, group in groupby(
            step.kernels, key=lambda kernel: (kernel.place.block, kernel.place.layer)
        ):
            kernels = list(group)
            first, last = min(k.start for k in kernels), max(k.end for k in kernels)
            about = {"block": place[0], "layer": place[1], "variant": step.variant, "kernels": len(kernels)}
            name = block_name(kernels[0].place)
            events.append(_complete(1, name, "block", begin + first, begin + last, about))
            for kernel in kernels:
                about = {"block": place[0], "layer": place[1], "variant": step.variant, **kernel.facts}
                events.append(
                    _complete(2, kernel.name, "kernel", begin + kernel.start, begin + kernel.end, about)
                )
        begin = end
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": dict(metadata)}


def _complete(
    track: int, name: str, kind: str, begin: float, end: float, about: Mapping[str, object]
) -> dict[str, Any]:
    """A complete event; times are rounded to nanoseconds, so that what nests still does."""
    ts = round(begin, 3)
    return {
        "ph": "X",
        "pid": 0,
        "tid": track,
        "name": name,
        "cat": kind,
        "ts": ts,
        "dur": round(round(end, 3) - ts, 3),
        "args": {key: value for key, value in about.items() if value is not None},
    }


def _names(track: int | None, what: str, name: str) -> dict[str, Any]:
    where = {} if track is None else {"tid": track}
    return {"ph": "M", "pid": 0, **where, "name": f"{what}_name", "args": {"name": name}}


def _sorted_as(track: int) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}
