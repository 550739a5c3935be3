"""Checks rules in NumPy: a rule that fires in a bundle's blocks or in random graphs must keep the meaning."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

import infernum.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers the ops that graphs name
from infernum import fusion, plugins
from infernum.bundle import Bundle
from infernum.compiler import Progress
from infernum.dtypes import dtype as dtype_named
from infernum.errors import BundleError
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Fusion, Rewrite, Rule, traced_pattern
from infernum.ir.text import parse_graph, print_graph
from infernum.lab.verify.example_graphs import attrs_of, example_graphs
from infernum.lab.verify.random_graphs import random_graph
from infernum.lab.verify.rule_firings import AppliedRule, GraphPair, firings
from infernum.lab.verify.rule_meaning import Comparison, compare
from infernum.lab.verify.rule_values import KINDS, RuleTrial
from infernum.lab.verify.rule_verdict import LARGEST, Failure, RuleTally, RuleVerdict
from infernum.lab.verify.units import target_of
from infernum.manifest import spec_of

RANDOM_GRAPHS = 96
"""Random graphs to which all rules are applied."""

EXAMPLE_GRAPHS = 16
"""Graphs around its own examples in which every rule is to fire."""

ATTEMPTS = 400
"""Attempts at most to draw these graphs."""

SMALL = 4 << 20
"""Up to so many bytes of operands, a place in a bundle is also checked with every kind of first row."""

SMALL_TRIALS = (RuleTrial(14), RuleTrial(1))
"""Trials in random graphs: every kind of row, alike in all streams and mixed, and a single token.

Numbers of tokens are even where there are several: then a step has a row of logits for each."""


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
    tallies = {rule.name: RuleTally(rule.name in used) for rule in applied if rule.name in tested}
    check = _RuleCheck(bundle, applied, tallies, progress or (lambda part, done, total: None))
    check.in_bundle()
    for tally in tallies.values():
        tally.enough += len(tally.failures)
    check.in_random_graphs()
    check.around_examples()
    check.of_large_places()
    return [tally.verdict(name) for name, tally in tallies.items()]


class _RuleCheck:
    """The check of all rules. `applied` are the rules in their order; rules without a tally are not checked."""

    def __init__(
        self, bundle: Bundle, applied: Sequence[Rule], tallies: dict[str, RuleTally], progress: Progress
    ) -> None:
        self.bundle, self.applied, self.tallies, self.progress = bundle, applied, tallies, progress
        self.dtype = dtype_named(bundle.manifest.dtype)
        self.targets = [target_of(bundle, spec) for spec in bundle.manifest.variants]
        self.traced: dict[str, Graph] = {}
        self._comparisons: dict[tuple[str, tuple[RuleTrial, ...]], Comparison] = {}

    def in_bundle(self) -> None:
        """Check every firing in the bundle's blocks, as they were traced."""
        variants = [v for block in self.bundle.manifest.blocks.values() for v in block.values()]
        for done, variant in enumerate(variants):
            self.progress("blocks", done, len(variants))
            if variant.traced not in self.traced:
                self.traced[variant.traced] = parse_graph(self.bundle.read(variant.traced).decode())
            target = target_of(self.bundle, spec_of(self.bundle.manifest.variants, variant.variant))
            checked = self._in_graph(self.traced[variant.traced], self.applied, target, in_bundle=True)
            for rule, places in checked.items():
                self.tallies[rule].sites += places
        self.progress("blocks", len(variants), len(variants))

    def in_random_graphs(self) -> None:
        """Apply all rules, or half of them, to random graphs; and rules that have no pattern each by itself."""
        tested = [rule for rule in self.applied if rule.name in self.tallies]
        alone = [rule for rule in tested if not isinstance(rule, Rewrite | Fusion)]
        for seed in range(RANDOM_GRAPHS):
            self.progress("random graphs", seed, RANDOM_GRAPHS)
            graph, target = random_graph(seed, self.dtype), self.targets[seed % len(self.targets)]
            rng = np.random.default_rng(seed)
            chosen = [rule for rule in self.applied if seed % 2 == 0 or rng.random() < 0.5]
            checked = {*self._in_graph(graph, chosen, target)}
            for rule in alone if seed % 2 else ():
                checked |= {*self._in_graph(graph, [rule], target)}
            for name in checked:
                self.tallies[name].graphs += 1
        self.progress("random graphs", RANDOM_GRAPHS, RANDOM_GRAPHS)

    def around_examples(self) -> None:
        """Apply each rule by itself to random graphs around its examples, until it has fired in enough of them."""
        attrs = attrs_of(self.traced.values())
        for done, (name, tally) in enumerate(self.tallies.items()):
            self.progress("patterns", done, len(self.tallies))
            rule = fusion.find_rule(name)
            try:
                examples = [traced_pattern(name, example) for example in rule.examples]
            except Exception as error:  # a rule is anybody's code
                sentence = f"its pattern cannot be traced: {type(error).__name__}: {error}"
                tally.failures.append(Failure(0, sentence, ""))
                continue
            rng, fired = np.random.default_rng(zlib.crc32(name.encode())), 0
            for graph in example_graphs(name, examples, self.dtype, attrs, rng, ATTEMPTS):
                if fired == EXAMPLE_GRAPHS or tally.settled:
                    break
                fired += any(self._in_graph(graph, [rule], target) for target in self.targets)
            tally.graphs += fired
        self.progress("patterns", len(self.tallies), len(self.tallies))

    def of_large_places(self) -> None:
        """Check a rule that fired only where operands are large at the smallest of those places, for one token."""
        for tally in self.tallies.values():
            if tally.skipped and not tally.sites and not tally.graphs:
                place, firing = min(tally.skipped, key=lambda skipped: skipped[1].part.bytes(1))
                tally.skipped.remove((place, firing))
                tally.sites += not self._compare(place, firing, [RuleTrial(1)]).unusable

    def _in_graph(
        self, graph: Graph, rules: Sequence[Rule], target: Target, *, in_bundle: bool = False
    ) -> Counter[str]:
        """Apply the rules in turn and check every firing: the number of places that were evaluated, by rule.

        A firing that is wrong is undone, and the next rule's turn. A place without trials is skipped.
        """
        checked = Counter[str]()
        settled = {name for name, tally in self.tallies.items() if tally.settled}
        name, graph = graph.name, graph.live()
        for rule in (rule for rule in rules if rule.name not in settled):
            tally = self.tallies.get(rule.name)
            for firing in firings(rule, graph, target):
                if isinstance(firing, str):
                    if tally is not None:
                        sentence = f"{graph.name}, {target.variant}: {firing}"
                        tally.failures.append(
                            Failure(len(graph.calls), sentence, f"in:\n{print_graph(graph)}")
                        )
                    break
                if tally is not None:
                    place = f"{name}, {target.variant}, at {firing.at}"
                    trials = _trials_of(firing.part, target) if in_bundle else SMALL_TRIALS
                    comparison = self._compare(place, firing, trials) if trials else Comparison()
                    if not trials:
                        tally.skipped.append((place, firing))
                    elif not comparison.unusable:
                        checked[rule.name] += 1
                    if comparison.wrong:
                        break
                if firing.part.mistyped():
                    break
                graph = firing.whole.after
        return checked

    def _compare(self, place: str, firing: AppliedRule, trials: Sequence[RuleTrial]) -> Comparison:
        """Compare the graphs of a firing, and enter the comparison in the rule's tally."""
        tally, part = self.tallies[firing.rule], firing.part
        key = (str(part), tuple(trials))
        if key not in self._comparisons:
            self._comparisons[key] = compare(part, self.dtype, trials)
        comparison = self._comparisons[key]
        if comparison.wrong and part.computed and firing.whole.bytes(trials[0].tokens) <= LARGEST:
            whole = compare(firing.whole, self.dtype, trials)
            if not whole.wrong and not whole.unusable:
                comparison = whole  # the graph never computes the inputs for which the parts differ
        tally.add(place, part, comparison)
        return comparison


def _trials_of(part: GraphPair, target: Target) -> list[RuleTrial]:
    """The fewest tokens of a variant and an even number, at most 70; a single row is of every kind in turn.

    No trials where the operands are too large.
    """
    if part.bytes(target.min_tokens) > LARGEST:
        return []
    even = max(target.min_tokens, min(target.max_tokens, 70) // 2 * 2)
    trials = [RuleTrial(tokens) for tokens in dict.fromkeys((target.min_tokens, even))]
    if target.min_tokens < len(KINDS) and part.bytes(target.min_tokens) <= SMALL:
        trials += [RuleTrial(target.min_tokens, first) for first in range(1, len(KINDS))]
    return trials
