"""Checks rules in NumPy: wherever they fire, in a bundle's blocks and in random graphs, the meaning must stay."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

import infernum.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers the ops that graphs name
from infernum import fusion, plugins
from infernum.bundle import Bundle
from infernum.dtypes import BF16, F32, DType
from infernum.dtypes import dtype as dtype_named
from infernum.errors import BundleError
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Fusion, Rewrite, Rule, traced_pattern
from infernum.ir.text import parse_graph
from infernum.lab.verify.example_graphs import Attrs, attrs_of, example_graphs
from infernum.lab.verify.random_graphs import random_graph
from infernum.lab.verify.rule_change import GraphPair
from infernum.lab.verify.rule_firings import AppliedRule, RuleFault, firings
from infernum.lab.verify.rule_meaning import Comparison, compare
from infernum.lab.verify.rule_values import KINDS, RuleTrial
from infernum.lab.verify.rule_verdict import LARGEST, Failure, RuleTally, RuleVerdict
from infernum.lab.verify.units import target_of
from infernum.manifest import spec_of

RANDOM = 96
"""Random graphs to which all rules are applied."""

INSTANCES = 16
"""Graphs around the rule's own pattern in which it is to fire, for every rule."""

ATTEMPTS = 400
"""Graphs that are tried at most to find them."""

SMALL = 4 << 20
"""Up to so many bytes, a place is also checked with every kind of first row."""

Progress = Callable[[str, int, int], None]
"""Called with what is being checked, how much of it is done, and how much there is."""

__all__ = ["RuleVerdict", "verify_rules"]


def verify_rules(
    bundle: Bundle, rules: Sequence[str] | None = None, progress: Progress | None = None
) -> list[RuleVerdict]:
    """Check rules for the bundle's variants and element type.

    By default all that the bundle was compiled with, and those of loaded plugins that it was compiled without.
    Deterministic. Raises BundleError for a bundle made with a rule that is not known here, CompileError for an
    unknown name among `rules`.
    """
    for name in bundle.manifest.rules:
        if all(rule.name != name for rule in fusion.RULES):
            raise BundleError(
                f"{bundle.folder}: was compiled with the rule {name!r}, which is not known here; load its plugin"
            )
    used = {*bundle.manifest.rules}
    if rules is None:
        rules = [*used, *(name for plugin in plugins.loaded() for name in plugin.rules)]
    tested = {fusion.find_rule(name).name for name in rules}
    if not tested:
        return []
    applied = [rule for rule in fusion.RULES if rule.name in tested | used]
    told: Progress = progress or (lambda what, done, total: None)
    dtype = dtype_named(bundle.manifest.dtype)
    records = {rule.name: RuleTally(rule.name in used) for rule in applied if rule.name in tested}
    check = _Check(dtype, records)
    graphs = _in_bundle(check, bundle, applied, told)
    for record in check.records.values():
        record.enough += len(record.failures)
    targets = [target_of(bundle, spec) for spec in bundle.manifest.variants]
    _in_random_graphs(check, applied, targets, told)
    attrs = attrs_of(graphs)
    for done, rule in enumerate(r for r in applied if r.name in tested):
        told("patterns", done, len(tested))
        _in_examples(check, rule, targets, attrs)
    told("patterns", len(tested), len(tested))
    check.finish()
    return [record.verdict(name) for name, record in check.records.items()]


@dataclass
class _Check:
    """The element type that is checked beside float32, what was found by rule, and what was compared before."""

    dtype: DType
    records: dict[str, RuleTally]
    known: dict[tuple[str, tuple[RuleTrial, ...]], Comparison] = field(
        default_factory=dict[tuple[str, tuple[RuleTrial, ...]], Comparison]
    )

    @property
    def half(self) -> DType:
        return BF16 if self.dtype is F32 else self.dtype

    def look(self, graph: Graph, rules: Sequence[Rule], target: Target) -> Iterator[tuple[str, AppliedRule]]:
        """Every firing that is to be compared; what is broken is recorded."""
        known = {name: len(record.failures) for name, record in self.records.items()}

        def goes_on(rule: str) -> bool:
            return rule not in known or known[rule] == len(self.records[rule].failures)

        settled = {name for name, record in self.records.items() if record.settled}
        wanted = [rule for rule in rules if rule.name not in settled]
        for step in firings(graph, wanted, target, goes_on):
            if step.rule not in self.records:
                continue
            if isinstance(step, RuleFault):
                where = f"{step.graph.name}, {target.variant}: {step.reason}"
                failure = Failure(len(step.graph.calls), where, f"in:\n{step.graph}")
                self.records[step.rule].failures.append(failure)
            else:
                yield f"{graph.name}, {target.variant}, at {step.at}", step

    def compare(self, place: str, fired: AppliedRule, rounds: Sequence[RuleTrial]) -> bool:
        """Compare the graphs of one firing and record what was found. False where they could not be evaluated."""
        record = self.records[fired.rule]
        key, change = (fired.text, tuple(rounds)), fired.change
        if key not in self.known:
            self.known[key] = compare(change, self.dtype, self.half, rounds)
        found = self.known[key]
        if found.wrong and change.computed and fired.whole.bytes(rounds[0].tokens) <= LARGEST:
            whole = compare(fired.whole, self.dtype, self.half, rounds)
            if not whole.wrong and not whole.unusable:
                found = whole  # its inputs never are what the part was given
        if found.unusable:
            record.unusable += 1
            return False
        if found.wrong:
            said = f"{place}: {found.wrong}"
            record.failures.append(Failure(change.size, said, fired.text, found.error, found.tolerance))
        record.worst, record.half = max(record.worst, found.error), max(record.half, found.half_error)
        return True

    def finish(self) -> None:
        """A rule that fired only where operands are large is checked at the smallest of those places, for one token."""
        for record in self.records.values():
            if record.skipped and not record.sites and not record.graphs:
                fired, place = min(record.skipped, key=lambda skipped: skipped[0].change.bytes(1))
                record.skipped.remove((fired, place))
                record.sites += self.compare(place, fired, [RuleTrial(1)])


def _in_bundle(check: _Check, bundle: Bundle, rules: Sequence[Rule], told: Progress) -> list[Graph]:
    """Check every firing in the bundle's blocks; returns their traced graphs."""
    graphs: dict[str, Graph] = {}
    variants = [v for block in bundle.manifest.blocks.values() for v in block.values()]
    for done, variant in enumerate(variants):
        told("blocks", done, len(variants))
        if variant.traced not in graphs:
            graphs[variant.traced] = parse_graph(bundle.read(variant.traced).decode())
        target = target_of(bundle, spec_of(bundle.manifest.variants, variant.variant))
        for place, fired in check.look(graphs[variant.traced], rules, target):
            record = check.records[fired.rule]
            if fired.change.bytes(target.min_tokens) > LARGEST:
                record.skipped.append((fired, place))
            else:
                record.sites += check.compare(place, fired, _rounds(target, fired.change))
    told("blocks", len(variants), len(variants))
    return list(graphs.values())


def _rounds(target: Target, change: GraphPair) -> list[RuleTrial]:
    """The fewest tokens of a variant and an even number, at most 70; a single row is of every kind in turn."""
    even = max(target.min_tokens, min(target.max_tokens, 70) // 2 * 2)
    rounds = [RuleTrial(tokens) for tokens in dict.fromkeys((target.min_tokens, even))]
    if target.min_tokens < len(KINDS) and change.bytes(target.min_tokens) <= SMALL:
        rounds += [RuleTrial(target.min_tokens, first) for first in range(1, len(KINDS))]
    return rounds


SMALL_ROUNDS = (RuleTrial(14), RuleTrial(1))
"""Rounds for random graphs: every kind of row, alike in all streams and mixed, and a single token.

Numbers of tokens are even where there are several: then a step has a row of logits for each."""


def _in_random_graphs(
    check: _Check, rules: Sequence[Rule], targets: Sequence[Target], told: Progress
) -> None:
    """Apply all rules, or half of them, to random graphs; and rules that have no pattern each by itself."""
    alone = [rule for rule in rules if rule.name in check.records and not isinstance(rule, Rewrite | Fusion)]
    for seed in range(RANDOM):
        told("random graphs", seed, RANDOM)
        graph, target = random_graph(seed, check.dtype), targets[seed % len(targets)]
        rng = np.random.default_rng(seed)
        chosen = [rule for rule in rules if seed % 2 == 0 or rng.random() < 0.5]
        fired = _in_graph(check, graph, chosen, target)
        for rule in alone if seed % 2 else ():
            fired |= _in_graph(check, graph, [rule], target)
        for name in fired:
            check.records[name].graphs += 1
    told("random graphs", RANDOM, RANDOM)


def _in_graph(check: _Check, graph: Graph, rules: Sequence[Rule], target: Target) -> set[str]:
    """Check every firing in a small graph; the rules that fired and were checked."""
    looked = check.look(graph, rules, target)
    return {fired.rule for place, fired in looked if check.compare(place, fired, SMALL_ROUNDS)}


def _in_examples(check: _Check, rule: Rule, targets: Sequence[Target], attrs: Attrs) -> None:
    """Apply a rule by itself to random graphs around its examples, until it has fired in enough of them."""
    record = check.records[rule.name]
    try:
        patterns = [traced_pattern(rule.name, example) for example in rule.examples]
    except Exception as error:  # a rule is anybody's code
        sentence = f"its pattern cannot be traced: {type(error).__name__}: {error}"
        record.failures.append(Failure(0, sentence, ""))
        return
    rng = np.random.default_rng(zlib.crc32(rule.name.encode()))
    fired = 0
    for graph in example_graphs(rule.name, patterns, check.dtype, attrs, rng, ATTEMPTS):
        if fired == INSTANCES or record.settled:
            break
        fired += any(_in_graph(check, graph, [rule], target) for target in targets)
    record.graphs += fired
