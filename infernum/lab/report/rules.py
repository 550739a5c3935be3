"""Rules as a report tells them: what each is for, and the nodes before and after that a firing or refusal is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from infernum.ir.graph import Graph
from infernum.ir.op import Fused
from infernum.manifest import BlockVariant, Firing
from infernum.rule_phrases import node_names


def rule_data(block: BlockVariant, traced: Graph, final: Graph) -> dict[str, Any]:
    """What rules did to a block, in order, each with the nodes of the traced and the final graph that it is about.

    Rules name nodes of the graph at their time. Following the firings back leads to traced nodes, following them on
    leads to final ones.
    """
    before = {node.name for node in traced.nodes}
    homes = _homes(final)
    origins = [{name: {name} for name in before}]
    for firing in block.firings:
        known = dict(origins[-1])
        came_from = set[str]().union(*(known.get(name, ()) for name in node_names(firing.at)))
        known |= dict.fromkeys(node_names(firing.made), came_from)
        origins.append(known)

    def about(names: Sequence[str], at: int, later: Sequence[Firing]) -> dict[str, list[str]]:
        old = set[str]().union(*(origins[at].get(name, ()) for name in names))
        new = {homes[name] for name in _follow(names, later) if name in homes}
        return {"before": sorted(old), "after": sorted(new)}

    fired = [
        {"rule": f.rule, "at": f.at, "made": f.made}
        | about(node_names(f.made), i + 1, block.firings[i + 1 :])
        | {"before": about(node_names(f.at), i, ())["before"]}
        for i, f in enumerate(block.firings)
    ]
    ends = _ends(block)
    refused = [
        {"rule": r.rule, "at": r.at, "reason": r.reason}
        | about(node_names(r.at), ends[r.rule], block.firings[ends[r.rule] :])
        for r in block.refused
    ]
    return {"tried": list(block.fired), "fired": fired, "refused": refused}


def _follow(names: Iterable[str], later: Sequence[Firing]) -> set[str]:
    """What became of nodes after more firings."""
    left = set(names)
    for firing in later:
        taken = set(node_names(firing.at))
        if left & taken:
            left = (left - taken) | set(node_names(firing.made))
    return left


def _homes(final: Graph) -> dict[str, str]:
    """The node of the final graph that each name is now, or is now inside of."""
    inside = {
        inner.name: node.name
        for node in final.calls
        if isinstance(node.op, Fused)
        for inner in node.op.body.calls
    }
    return inside | {node.name: node.name for node in final.nodes}


def _ends(block: BlockVariant) -> dict[str, int]:
    """How many firings there had been when each rule had nothing more to do."""
    ends: dict[str, int] = {}
    done = 0
    for rule in dict.fromkeys((*block.fired, *(r.rule for r in block.refused))):
        last = [i for i, firing in enumerate(block.firings) if firing.rule == rule]
        done = max(done, last[-1] + 1 if last else 0)
        ends[rule] = done
    return ends
