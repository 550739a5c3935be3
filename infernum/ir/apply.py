"""Applying a list of rules to a graph, each wherever it can be, and keeping what every one did and did not do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from infernum import logs
from infernum.errors import CompileError
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Rule


@dataclass(frozen=True)
class Fired:
    """One time that a rule was applied: the nodes it took, and the calls it put in their place."""

    rule: str
    at: str
    made: str


@dataclass(frozen=True)
class Refused:
    """A place where a rule matched and was not applied, and why."""

    rule: str
    at: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a list of rules did to a graph. `fired` has every rule of the list, also those that never fired."""

    graph: Graph
    fired: Mapping[str, int]
    firings: tuple[Fired, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class Pass:
    """One rule, tried on a graph until nothing was left for it to do; also when it never fired."""

    rule: str
    why: str
    before: Graph
    after: Graph
    firings: tuple[Fired, ...]
    refused: tuple[Refused, ...]
    seconds: float


log = logs.channel("rules")

MOST_FIRINGS = 1000
"""How often one rule may fire in a block; a rule that matches its own result would never end."""


def apply_rules(
    graph: Graph,
    rules: Iterable[Rule],
    target: Target,
    *,
    normalise: Callable[[Graph], Graph] = lambda graph: graph,
    on_pass: Callable[[Pass], None] | None = None,
) -> Outcome:
    """Apply each rule, in order, wherever it can be.

    `normalise` is applied after every change; `on_pass` sees what each rule did, also when that is nothing. Raises
    CompileError for a rule that does not come to an end.
    """
    graph = graph.live()
    fired: dict[str, int] = {}
    firings: list[Fired] = []
    refused: list[Refused] = []
    name = f"{graph.name}.{target.variant}"
    for rule in rules:
        begin, start = time.perf_counter(), graph
        applied: list[Fired] = []
        while True:
            candidates = list(rule.candidates(graph, target))
            chosen = next((c for c in candidates if c.reason is None), None)
            if chosen is None:
                break
            before, graph = graph, normalise(chosen.apply())
            applied.append(
                Fired(rule.name, ", ".join(_not_in(graph, before)), ", ".join(_not_in(before, graph)))
            )
            log.info("%s: %s fired at %s -> %s", name, rule.name, applied[-1].at, applied[-1].made)
            if len(applied) == MOST_FIRINGS:
                raise CompileError(
                    f"{rule.name} fired {MOST_FIRINGS} times at {chosen.at}: does it match what it makes?"
                )
        left = dict.fromkeys(Refused(rule.name, c.at, c.reason) for c in candidates if c.reason is not None)
        for refusal in left:
            log.info("%s: %s refused at %s: %s", name, rule.name, refusal.at, refusal.reason)
        fired[rule.name] = len(applied)
        firings += applied
        refused += left
        if on_pass is not None:
            seconds = time.perf_counter() - begin
            on_pass(Pass(rule.name, rule.why, start, graph, tuple(applied), tuple(left), seconds))
    return Outcome(graph, fired, tuple(firings), tuple(refused))


def _not_in(other: Graph, graph: Graph) -> list[str]:
    """The calls of `graph` that `other` does not have, or has as calls of something else."""
    known = {node.name: node.op for node in other.calls}
    return [node.name for node in graph.calls if known.get(node.name) is not node.op]
