"""Rules in a report: the traced and the final nodes that each firing and each refusal is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from infernum.ir.graph import Graph
from infernum.ir.op import Fused
from infernum.lab.explain.history import origins_by_firing, traced_behind
from infernum.manifest import BlockVariant, Firing
from infernum.rule_phrases import node_names


def rule_data(block: BlockVariant, traced: Graph, final: Graph) -> dict[str, Any]:
    """What rules did to a block, in order, each with the nodes of the traced and the final graph that it is about.

    Rules name nodes of the graph at their time. The traced nodes behind those follow from the firings before, the
    final nodes from the firings after.
    """
    before = {node.name for node in traced.nodes}
    origins = origins_by_firing(block.firings)
    final_nodes = _final_nodes(final)

    def about(at: Sequence[str], new: Sequence[str], i: int, later: int) -> dict[str, list[str]]:
        """The nodes behind those `at`, after `i` firings, and what became of the `new` ones in the `later` firings."""
        ends = _follow(new, block.firings[later:])
        return {
            "before": sorted(traced_behind(at, origins[i]) & before),
            "after": sorted({final_nodes[name] for name in ends if name in final_nodes}),
        }

    fired = [
        {"rule": f.rule, "at": f.at, "made": f.made} | about(node_names(f.at), node_names(f.made), i, i + 1)
        for i, f in enumerate(block.firings)
    ]
    ends = _ends(block)
    refused = [
        {"rule": r.rule, "at": r.at, "reason": r.reason}
        | about(node_names(r.at), node_names(r.at), ends[r.rule], ends[r.rule])
        for r in block.refused
    ]
    return {"tried": list(block.fired), "fired": fired, "refused": refused}


def _follow(names: Iterable[str], later: Sequence[Firing]) -> set[str]:
    """What became of nodes after more firings."""
    current = set(names)
    for firing in later:
        removed = set(node_names(firing.at))
        if current & removed:
            current = (current - removed) | set(node_names(firing.made))
    return current


def _final_nodes(final: Graph) -> dict[str, str]:
    """The node of the final graph that each name is now, or is now inside of."""
    inside = {
        inner.name: node.name
        for node in final.calls
        if isinstance(node.op, Fused)
        for inner in node.op.body.calls
    }
    return inside | {node.name: node.name for node in final.nodes}


def _ends(block: BlockVariant) -> dict[str, int]:
    """The number of firings, of all rules, after which each rule was done."""
    ends: dict[str, int] = {}
    fired = 0
    for rule in dict.fromkeys((*block.fired, *(r.rule for r in block.refused))):
        fired = max([fired, *(i for i, firing in enumerate(block.firings, 1) if firing.rule == rule)])
        ends[rule] = fired
    return ends
