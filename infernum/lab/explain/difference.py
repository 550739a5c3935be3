"""What differs between two bundles: facts, rules, graphs, kernels, sources and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infernum.bundle import Bundle
from infernum.errors import BundleError
from infernum.lab.explain.facts import facts_of
from infernum.lab.explain.kernel_difference import KernelDiff, Numbers, Side, kernel_diffs, numbers_of
from infernum.lab.explain.measurements import Measurements
from infernum.lab.explain.names import every_variant
from infernum.lab.explain.text_diff import GraphDiff, SourceDiff, graph_diff, source_diffs
from infernum.manifest import BlockVariant, Manifest, RuleRefusal, spec_of, variant_names
from infernum.rule_phrases import refusal

SLOWER = 1.03
"""A step counts as slower when it takes more than this many times as long."""


@dataclass(frozen=True)
class Pair:
    """One fact of both bundles; None where a bundle lacks it."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Summary:
    """One block variant of both bundles, in a step of `tokens` tokens; None where a bundle lacks it."""

    where: str
    tokens: int
    a: Numbers | None
    b: Numbers | None


@dataclass(frozen=True)
class RuleDiff:
    """How often a rule fired in a block variant, where that differs, and refusals of one bundle only."""

    where: str
    rule: str
    fired_a: int
    fired_b: int
    refusals_gone: list[str]
    refusals_new: list[str]


@dataclass(frozen=True)
class BundleDiff:
    """Every difference. `summary` has all block variants compared, the other fields only those that differ.

    `cubins` are compiled files that differ although their sources are the same.
    """

    a: str
    b: str
    facts: list[Pair]
    summary: list[Summary]
    rules: list[RuleDiff]
    graphs: list[GraphDiff]
    kernels: list[KernelDiff]
    sources: list[SourceDiff]
    cubins: list[str]
    ms_per_step: tuple[float, float] | None

    @property
    def is_empty(self) -> bool:
        """True where the bundles are the same except for times."""
        parts = (self.facts, self.rules, self.graphs, self.kernels, self.sources, self.cubins)
        return not any(parts) and all(s.a is not None and s.b is not None for s in self.summary)


def difference(
    a: Bundle,
    b: Bundle,
    *,
    block: str | None = None,
    variant: str | None = None,
    source: bool = True,
    benches: tuple[Measurements | None, Measurements | None] = (None, None),
) -> BundleDiff:
    """What differs between two bundles, or between one block or one class of steps of them.

    Raises BundleError when neither bundle has that block or that class.
    """
    old, new = _chosen(a, block, variant), _chosen(b, block, variant)
    if not old and not new:
        request = " ".join(f"--{k} {v}" for k, v in (("block", block), ("variant", variant)) if v is not None)
        blocks = ", ".join(dict.fromkeys((*a.manifest.blocks, *b.manifest.blocks)))
        names = ", ".join(dict.fromkeys(name for m in (a.manifest, b.manifest) for name in variant_names(m)))
        raise BundleError(f"neither bundle has {request}; the blocks are {blocks}, the variants {names}")
    summary: list[Summary] = []
    rules: list[RuleDiff] = []
    graphs: list[GraphDiff] = []
    kernels: list[KernelDiff] = []
    files: list[tuple[str, str]] = []
    renamed: dict[str, dict[str, str]] = {}
    for where in dict.fromkeys((*old, *new)):
        of_class = variant or where.rpartition(".")[2]
        both = [bundle for bundle, chosen in ((a, old), (b, new)) if where in chosen]
        tokens = min(spec_of(bundle.manifest.variants, of_class).max_tokens for bundle in both)
        sides = [
            Side(bundle, chosen[where], facts_of(bundle, chosen[where], tokens=tokens), bench)
            if where in chosen
            else None
            for bundle, chosen, bench in ((a, old, benches[0]), (b, new, benches[1]))
        ]
        before, after = sides
        summary.append(Summary(where, tokens, _sum(before), _sum(after)))
        files.append((before.variant.source if before else "", after.variant.source if after else ""))
        mine = kernel_diffs(where, before, after)
        kernels += mine
        if before and after:
            renamed[after.variant.source] = {k.name: k.was for k in mine if k.was not in ("", k.name)}
            rules += _rules(where, before.variant, after.variant)
            texts = [s.bundle.read(s.variant.graph).decode() for s in (before, after)]
            changed = graph_diff(where, *texts)
            graphs += [changed] if changed else []
    steps = [bench.ms_per_step for bench in benches if bench is not None and bench.ms_per_step is not None]
    return BundleDiff(
        a=str(a.folder),
        b=str(b.folder),
        facts=_facts(a.manifest, b.manifest),
        summary=summary,
        rules=rules,
        graphs=graphs,
        kernels=kernels,
        sources=source_diffs(a, b, files, renamed) if source else [],
        cubins=_cubins(a, b, [(old[w], new[w]) for w in old if w in new]),
        ms_per_step=(steps[0], steps[1]) if len(steps) == 2 else None,
    )


def regressions(diff: BundleDiff) -> list[str]:
    """What is worse in the second bundle, a line each."""
    lines: list[str] = []
    for s in diff.summary:
        if s.a is None or s.b is None:
            continue
        worse = (
            ("spilled bytes", s.a.spills, s.b.spills),
            ("kernels", s.a.kernels, s.b.kernels),
            (f"bytes moved at {s.tokens} tokens", s.a.bytes, s.b.bytes),
        )
        lines += [f"{s.where}: {name}: {before} → {after}" for name, before, after in worse if after > before]
    if diff.ms_per_step is not None:
        before, after = diff.ms_per_step
        if after > before * SLOWER:
            lines.append(f"a step takes {before:.3f} ms → {after:.3f} ms, {after / before - 1:.1%} more")
    return lines


def _chosen(bundle: Bundle, block: str | None, variant: str | None) -> dict[str, BlockVariant]:
    if variant is not None and variant not in variant_names(bundle.manifest):
        return {}
    return {
        f"{v.block}.{v.variant}": v
        for v in every_variant(bundle)
        if block in (None, v.block) and v.serves(variant)
    }


def _facts(a: Manifest, b: Manifest) -> list[Pair]:
    pairs = zip(_manifest_facts(a).items(), _manifest_facts(b).items(), strict=True)
    differing = [Pair(name, before, after) for (name, before), (_, after) in pairs if before != after]
    for name in dict.fromkeys((*a.model.config, *b.model.config)):
        before, after = a.model.config.get(name), b.model.config.get(name)
        if before != after:
            differing.append(Pair(f"config {name}", str(before), str(after)))
    return differing


def _manifest_facts(manifest: Manifest) -> dict[str, str]:
    edits = [f"{file}: {', '.join(edit.kernels)}" for file, edit in manifest.edits.items()]
    return {
        "model": f"{manifest.model.name} ({manifest.model.family})",
        "arch": manifest.arch or "NumPy",
        "dtype": manifest.dtype,
        "fuse": "yes" if manifest.fuse else "no",
        "rules": ", ".join(manifest.rules) or "none",
        "variants": ", ".join(f"{v.name} {v.min_tokens} to {v.max_tokens}" for v in manifest.variants),
        "samplers": ", ".join(manifest.samplers),
        "Infernum": manifest.infernum,
        "NVRTC": manifest.nvrtc or "none",
        "plugins": ", ".join(f"{p.name} {p.sha256[:12]}" for p in manifest.plugins) or "none",
        "edited by hand": "; ".join(edits) or "nothing",
    }


def _rules(where: str, a: BlockVariant, b: BlockVariant) -> list[RuleDiff]:
    diffs: list[RuleDiff] = []
    refusing = (r.rule for r in (*a.refused, *b.refused))
    for rule in dict.fromkeys((*a.fired, *b.fired, *refusing)):
        old, new = _refusals(a.refused, rule), _refusals(b.refused, rule)
        fired = a.fired.get(rule, 0), b.fired.get(rule, 0)
        gone, came = [r for r in old if r not in new], [r for r in new if r not in old]
        if fired[0] != fired[1] or gone or came:
            diffs.append(RuleDiff(where, rule, *fired, gone, came))
    return diffs


def _refusals(refused: Sequence[RuleRefusal], rule: str) -> list[str]:
    return [refusal(r.at, r.reason) for r in refused if r.rule == rule]


def _sum(side: Side | None) -> Numbers | None:
    return None if side is None else numbers_of(side, side.facts)


def _cubins(a: Bundle, b: Bundle, pairs: Sequence[tuple[BlockVariant, BlockVariant]]) -> list[str]:
    """Compiled files that differ although their sources are the same."""
    return [
        new.cubin
        for old, new in pairs
        if a.checksums.get(old.source) == b.checksums.get(new.source)
        and a.checksums.get(old.cubin) != b.checksums.get(new.cubin)
    ]
