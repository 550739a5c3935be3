"""The parameters of a kernel that may be tuned: the key they are known by, their candidates, and what was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from infernum.ir.kernel import Call, Target, Template

MOST_CANDIDATES = 32
"""Combinations of values that are tried; of kernels with more, those that differ from the default in one parameter."""


@dataclass(frozen=True)
class Parameters:
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


def settle(spec: Template, call: Call, target: Target, ops: Sequence[str]) -> Parameters | None:
    """What is chosen for a kernel that computes `ops`: as it was tuned, else the default; None: nothing to choose.

    Tuned values that the template offers no longer are passed over.
    """
    choices = {name: tuple(dict.fromkeys(values)) for name, values in spec.choices(call, target).items()}
    if all(len(values) < 2 for values in choices.values()):
        return None
    candidates = tuple(_candidates(spec, call, target, choices))
    default = candidates[0]
    key = key_of(spec, call, target, ops)
    tuned = target.tuned.get(key)
    if tuned is None or dict(tuned.values) not in candidates:
        return Parameters(key, default, default, candidates)
    return Parameters(key, dict(tuned.values), default, candidates, tuned.why)


def key_of(spec: Template, call: Call, target: Target, ops: Sequence[str]) -> str:
    """Everything that the best values of a kernel's parameters may depend on, but for the GPU and the sources."""
    types = [f"{name}: {type_}" for name, type_ in (*call.operands.items(), *call.results.items())]
    attrs = [f"{name}={value!r}" for name, value in sorted(call.attrs.items())]
    where = f"{target.variant} of {target.min_tokens} to {target.max_tokens} tokens, sm_{target.arch}"
    text = f"{spec.name}: {' '.join(ops)} ({', '.join([*types, *attrs])}), {where}"
    return re.sub(r"\s+", " ", text)


def _candidates(
    spec: Template, call: Call, target: Target, choices: Mapping[str, tuple[int, ...]]
) -> Iterator[Mapping[str, int]]:
    """The default, whatever `feasible` says of it, and all that is feasible besides."""
    default = {name: values[0] for name, values in choices.items()}
    yield default
    every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    feasible = [
        each
        for each in every
        if each != default and spec.feasible(call, replace(target, chosen=each)) is None
    ]
    if len(feasible) >= MOST_CANDIDATES:
        feasible = [each for each in feasible if sum(each[name] != default[name] for name in choices) == 1]
    yield from feasible
