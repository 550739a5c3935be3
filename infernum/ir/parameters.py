"""The parameters of a kernel that may be tuned: the key they are known by, their candidates, and what was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infernum.ir.kernel import Call, Layout, Refusal, Target, Template

MOST_CANDIDATES = 32
"""Combinations of values that are tried; of kernels with more, those that differ from the default in one parameter."""


@dataclass(frozen=True)
class ParameterSpace:
    """The parameters of one kernel of a graph.

    key         what the choice is known by: template, ops, types and attributes, variant and architecture
    values      what was chosen
    default     the first candidates
    candidates  all combinations that may be tried, the default first
    why         where the values come from; "" for the default
    """

    key: str
    values: Mapping[str, int]
    default: Mapping[str, int]
    candidates: tuple[Mapping[str, int], ...]
    why: str = ""


def settle(
    kernel: Template, call: Call, target: Target, ops: Sequence[str]
) -> tuple[Layout | Refusal, ParameterSpace | None]:
    """The layout of a kernel that computes `ops`: as it was tuned, else the default; and what may be chosen of it.

    Tuned values that the template offers no longer are passed over. No parameters: there is nothing to choose.
    """
    default = kernel.plan(call, target)
    if isinstance(default, Refusal) or not default.parameters:
        return default, None
    layouts = [each for each in kernel.layouts(call, target) if isinstance(each, Layout)]
    by_values = {tuple(each.parameters.items()): each for each in reversed(layouts)}
    candidates = tuple(_candidates(default.parameters, [dict(values) for values in reversed(by_values)]))
    key = key_of(kernel, call, target, ops)
    tuned = target.tuned.get(key)
    layout = default
    if tuned is not None and dict(tuned.values) in candidates:
        layout = next(each for each in layouts if each.parameters == dict(tuned.values))
    if len(candidates) < 2:
        return default, None
    why = tuned.why if tuned is not None and layout.parameters == dict(tuned.values) else ""
    return layout, ParameterSpace(key, layout.parameters, default.parameters, candidates, why)


def key_of(kernel: Template, call: Call, target: Target, ops: Sequence[str]) -> str:
    """Everything that the best values of a kernel's parameters may depend on, but for the GPU and the sources."""
    types = [f"{name}: {type_}" for name, type_ in (*call.operands.items(), *call.results.items())]
    rows = [row.attrs.items() for slot in call.prologues.values() for row in slot]
    known = sorted(call.attrs.items()) + [item for items in rows for item in items]
    attrs = [f"{name}={value!r}" for name, value in known]
    where = f"{target.variant} of {target.min_tokens} to {target.max_tokens} tokens, sm_{target.arch}"
    text = f"{kernel.name}: {' '.join(ops)} ({', '.join([*types, *attrs])}), {where}"
    return re.sub(r"\s+", " ", text)


def _candidates(
    default: Mapping[str, int], combinations: Sequence[Mapping[str, int]]
) -> Iterator[Mapping[str, int]]:
    """The default and every other combination; of very many, those that differ from it in one parameter."""
    yield default
    others = [each for each in combinations if each != default]
    if len(others) >= MOST_CANDIDATES:
        others = [each for each in others if sum(each[name] != default[name] for name in default) == 1]
    yield from others
