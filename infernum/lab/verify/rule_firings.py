"""Applies rules to a graph as the compiler does, one firing at a time, and tells what each firing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from infernum.codegen.weights import fold_weights
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Rule, candidates
from infernum.lab.verify.rule_change import GraphPair, change_of


@dataclass(frozen=True)
class AppliedRule:
    """One time that a rule was applied: where, the whole graphs, the part of them that differs, and its text."""

    rule: str
    at: str
    whole: GraphPair
    change: GraphPair
    text: str


@dataclass(frozen=True)
class RuleFault:
    """A rule that could not be applied to a graph, or never came to an end, and why."""

    rule: str
    graph: Graph
    reason: str


def firings(
    graph: Graph, rules: Sequence[Rule], target: Target, goes_on: Callable[[str], bool]
) -> Iterator[AppliedRule | RuleFault]:
    """Apply each rule, in order, wherever it can be.

    A firing is undone, and the next rule's turn, where `goes_on` is False for its rule once the firing was looked at.
    """
    graph = graph.live()
    for rule in rules:
        most = 2 * len(graph.calls) + 8
        for count in range(most + 1):
            try:
                fired = _fire(rule, graph, target)
            except Exception as error:  # a rule is anybody's code
                yield RuleFault(rule.name, graph, f"it raised {type(error).__name__}: {error}")
                break
            if fired is None:
                break
            if count == most or len(fired.whole.after.calls) > 2 * most:
                reason = f"it fired {count + 1} times in one graph: does it match what it makes?"
                yield RuleFault(rule.name, graph, reason)
                break
            yield fired
            if fired.change.mistyped() or not goes_on(rule.name):
                break
            graph = fired.whole.after


def _fire(rule: Rule, graph: Graph, target: Target) -> AppliedRule | None:
    chosen = next((c for c in candidates(rule, graph, target) if c.reason is None), None)
    if chosen is None:
        return None
    after = fold_weights(chosen.apply())
    change = change_of(graph, after)
    return AppliedRule(rule.name, chosen.at, GraphPair(graph, after), change, change.text)
