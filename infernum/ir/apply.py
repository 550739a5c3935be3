"""Applying a list of rules to a graph, each wherever it can be, and keeping what every one did and did not do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from infernum import logs
from infernum.errors import CompileError
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Rule
from infernum.manifest import Firing, RuleRefusal
from infernum.rule_phrases import refusal, replacement


@dataclass(frozen=True)
class Outcome:
    """What a list of rules did to a graph. `fired` has every rule of the list, also those that never fired."""

    graph: Graph
    fired: Mapping[str, int]
    firings: tuple[Firing, ...]
    refused: tuple[RuleRefusal, ...]


@dataclass(frozen=True)
class Pass:
    """One rule, tried on a graph until nothing was left for it to do; also when it never fired."""

    rule: str
    why: str
    before: Graph
    after: Graph
    firings: tuple[Firing, ...]
    refused: tuple[RuleRefusal, ...]
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
    passes: list[Pass] = []
    for rule in rules:
        begin = time.perf_counter()
        after, applied, refused = _apply_one(rule, graph, target, normalise)
        seconds = time.perf_counter() - begin
        passes.append(Pass(rule.name, rule.why, graph, after, applied, refused, seconds))
        graph = after
        if on_pass is not None:
            on_pass(passes[-1])
    return Outcome(
        graph,
        {each.rule: len(each.firings) for each in passes},
        tuple(firing for each in passes for firing in each.firings),
        tuple(refusal for each in passes for refusal in each.refused),
    )


def _apply_one(
    rule: Rule, graph: Graph, target: Target, normalise: Callable[[Graph], Graph]
) -> tuple[Graph, tuple[Firing, ...], tuple[RuleRefusal, ...]]:
    """The graph after a rule has been applied wherever it can be, what it did, and what it did not do.

    Calls are visited in graph order, new ones next; after a visit to all of them that changed something there is
    another, since what was refused may fit now.
    """
    block = f"{graph.name}.{target.variant}"
    firings: list[Firing] = []
    while True:
        fired_before, refused = len(firings), dict[str, list[RuleRefusal]]()
        todo = deque(node.name for node in graph.calls)
        while todo:
            name = todo.popleft()
            if name not in graph.nx:
                continue
            candidates = list(rule.at(graph, graph.node(name), target))
            chosen = next((c for c in candidates if c.reason is None), None)
            if chosen is None:
                refused[name] = [
                    RuleRefusal(rule=rule.name, at=c.at, reason=c.reason) for c in candidates if c.reason
                ]
                continue
            before, graph = graph, normalise(chosen.apply())
            new_calls = _not_in(before, graph)
            removed = ", ".join(_not_in(graph, before))
            firings.append(Firing(rule=rule.name, at=removed, made=", ".join(new_calls)))
            log.info("%s: %s fired at %s", block, rule.name, replacement(removed, firings[-1].made))
            if len(firings) == MOST_FIRINGS:
                raise CompileError(
                    f"{rule.name} fired {MOST_FIRINGS} times at {chosen.at}: does it match what it makes?"
                )
            todo.extendleft(reversed(list(dict.fromkeys((*new_calls, name)))))
        if len(firings) == fired_before:
            break
    refusals = tuple(dict.fromkeys(each for name in graph.order for each in refused.get(name, ())))
    for each in refusals:
        log.info("%s: %s refused at %s", block, rule.name, refusal(each.at, each.reason))
    return graph, tuple(firings), refusals


def _not_in(other: Graph, graph: Graph) -> list[str]:
    """The calls of `graph` that `other` does not have, or has as calls of something else."""
    known = {node.name: node.op for node in other.calls}
    return [node.name for node in graph.calls if known.get(node.name) is not node.op]
