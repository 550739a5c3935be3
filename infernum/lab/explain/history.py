"""Which rules made a kernel, and what each rule did and did not do in a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from infernum.bundle import Bundle
from infernum.fusion import RULES
from infernum.ir.rewrite import Fusion, Rewrite, Rule
from infernum.manifest import BlockVariant, Firing, Kernel
from infernum.rule_phrases import node_names


@dataclass(frozen=True)
class Applied:
    """A firing that helped to make a kernel: the nodes `at` it, the nodes it made, and why the rule exists."""

    rule: str
    at: str
    made: str
    why: str


class Places(msgspec.Struct, frozen=True, rename={"outcome": "told"}):
    """Where a rule did the same: `variants` such as "decoder.t1", the nodes, and new nodes or why it was refused."""

    variants: list[str]
    at: list[str]
    outcome: str


@dataclass(frozen=True)
class RuleExplanation:
    """What one rule did in a bundle. `enabled` is False for a rule that the bundle was compiled without."""

    name: str
    kind: str
    why: str
    enabled: bool
    fired: list[Places]
    refused: list[Places]
    firings: int
    refusals: int


def origins_by_firing(firings: Sequence[Firing]) -> list[dict[str, frozenset[str]]]:
    """The traced nodes behind each new node, before the first firing and after each; other nodes are traced ones."""
    origins: list[dict[str, frozenset[str]]] = [{}]
    for firing in firings:
        removed = traced_behind(node_names(firing.at), origins[-1])
        origins.append(origins[-1] | dict.fromkeys(node_names(firing.made), removed))
    return origins


def traced_behind(names: Iterable[str], origins: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The traced nodes behind some nodes."""
    return frozenset[str]().union(*(origins.get(name, {name}) for name in names))


def applied_to(variant: BlockVariant, kernel: Kernel) -> list[Applied]:
    """The firings that made the node of a kernel, in order: those of its rules, on traced nodes that it computes."""
    why, origins = reasons(), origins_by_firing(variant.firings)
    return [
        Applied(f.rule, f.at, f.made, why.get(f.rule, NOT_LOADED))
        for f, after in zip(variant.firings, origins[1:], strict=True)
        if f.rule in kernel.rules and traced_behind(node_names(f.made), after) & set(kernel.origin)
    ]


NOT_LOADED = "(of a plugin that is not loaded: give it with --plugin to read why)"


def reasons() -> dict[str, str]:
    """Why each rule exists, for the rules that are loaded."""
    return {rule.name: rule.why for rule in RULES}


def explain_rule(bundle: Bundle, name: str, variants: Sequence[BlockVariant]) -> RuleExplanation:
    """Where a rule fired and where it was refused in some block variants; those with the same outcome are grouped."""
    known: dict[str, Rule] = {rule.name: rule for rule in RULES}
    rule = known.get(name)
    fired = [(f"{v.block}.{v.variant}", f.at, f.made) for v in variants for f in v.firings if f.rule == name]
    refused = [
        (f"{v.block}.{v.variant}", r.at, r.reason) for v in variants for r in v.refused if r.rule == name
    ]
    return RuleExplanation(
        name=name,
        kind="unknown" if rule is None else kind_of(rule),
        why=NOT_LOADED if rule is None else rule.why,
        enabled=name in bundle.manifest.rules,
        fired=grouped(fired),
        refused=grouped(refused),
        firings=len(fired),
        refusals=len(refused),
    )


def kind_of(rule: Rule) -> str:
    """The kind of a rule, in a few words."""
    match rule:
        case Rewrite():
            return "rewrite: puts other ops in the place of some"
        case Fusion():
            return "fusion: makes one kernel of several ops"
        case _:
            return "general: looks at a call and at whatever stands around it"


def grouped(effects: Iterable[tuple[str, str, str]]) -> list[Places]:
    """(variant, at, text) triples with the variants, and then the nodes, of one text put together."""
    by_place: dict[tuple[str, str, str], list[str]] = {}
    for variant, at, text in effects:
        by_place.setdefault((variant.partition(".")[0], at, text), []).append(variant)
    by_variants: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (_, at, text), variants in by_place.items():
        by_variants.setdefault((tuple(dict.fromkeys(variants)), text), []).append(at)
    return [Places(list(variants), at, text) for (variants, text), at in by_variants.items()]
