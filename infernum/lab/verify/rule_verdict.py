"""The comparisons at all places of a rule, counted, and the verdict on the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from infernum.dtypes import F32
from infernum.lab.verify.rule_firings import AppliedRule, GraphPair
from infernum.lab.verify.rule_meaning import Comparison

LARGEST = 256 << 20
"""Bytes of the operands, in float32, of a place in a bundle that is checked as a matter of course."""

ENOUGH = 4
"""Failures after which a rule is known to be wrong and not checked further: in the bundle, then in random graphs."""


@dataclass(frozen=True)
class RuleVerdict:
    """Whether one rule keeps the meaning of graphs.

    sites        places in the bundle's own blocks at which it fired and was checked
    graphs       random graphs in which it fired and was checked
    worst_error  the largest relative error of a row in float32, or that of what is wrong; infinite for NaNs, other
                 types and exceptions
    tolerance    what the error may be
    wrong        sentences, the last one with the smallest failing graph before and after
    note         whether it never fired, which places were not checked, whether it drops a rounding
    in_bundle    False: the bundle was compiled without it; `sites` are where it would have fired
    """

    rule: str
    sites: int
    graphs: int
    worst_error: float
    tolerance: float
    ok: bool
    wrong: tuple[str, ...]
    note: str
    in_bundle: bool = True


@dataclass(frozen=True)
class Failure:
    """One place where a rule is wrong: the number of calls in its graphs, a sentence, their text, and the error."""

    size: int
    sentence: str
    text: str
    error: float = math.inf
    tolerance: float = F32.tolerance


@dataclass
class RuleTally:
    """The comparisons of one rule so far. `half` is the largest error in the half type, `skipped` are large places."""

    in_bundle: bool = True
    sites: int = 0
    graphs: int = 0
    unusable: int = 0
    enough: int = ENOUGH
    worst: float = 0.0
    half: float = 0.0
    failures: list[Failure] = field(default_factory=list[Failure])
    skipped: list[tuple[str, AppliedRule]] = field(default_factory=list[tuple[str, AppliedRule]])

    @property
    def settled(self) -> bool:
        """True once enough failures are known."""
        return len(self.failures) >= self.enough

    def add(self, place: str, part: GraphPair, comparison: Comparison) -> None:
        """Enter the comparison of the graphs at a place."""
        if comparison.unusable:
            self.unusable += 1
            return
        if comparison.wrong:
            sentence = f"{place}: {comparison.wrong}"
            failure = Failure(part.size, sentence, str(part), comparison.error, comparison.tolerance)
            self.failures.append(failure)
        self.worst = max(self.worst, comparison.error)
        self.half = max(self.half, comparison.half_error)

    def verdict(self, rule: str) -> RuleVerdict:
        """The verdict on the rule of that name."""
        error, tolerance, wrong = self.worst, F32.tolerance, tuple[str, ...]()
        if self.failures:
            smallest = min(self.failures, key=lambda failure: failure.size)
            others = dict.fromkeys(f.sentence for f in self.failures if f.sentence != smallest.sentence)
            worst = max(self.failures, key=lambda failure: failure.error / failure.tolerance)
            error, tolerance = worst.error, worst.tolerance
            wrong = (*others, f"{smallest.sentence}\n{smallest.text}")
        return RuleVerdict(
            rule, self.sites, self.graphs, error, tolerance, not wrong, wrong, self._note(), self.in_bundle
        )

    def _note(self) -> str:
        notes: list[str] = []
        if not self.in_bundle:
            notes.append("the bundle was compiled without it, so no kernel of the bundle was made by it")
        if not self.sites and not self.graphs and not self.failures:
            notes.append("it never fired, neither in the bundle nor in random graphs: nothing was checked")
        elif not self.sites and self.graphs:
            notes.append("it fired in random graphs only")
        elif self.sites and not self.graphs:
            notes.append("it fired in the bundle only")
        if self.half:
            notes.append(
                f"it rounds where separate ops round otherwise (up to {self.half:.1g} in the half type)"
            )
        if self.skipped:
            limit = LARGEST >> 20
            notes.append(f"{len(self.skipped)} place(s) with operands over {limit} MiB were not evaluated")
        if self.unusable:
            notes.append(f"{self.unusable} place(s) could not be evaluated in NumPy before it was applied")
        return "; ".join(notes)
