"""What differs between two bundles: facts, rules, graphs, kernels, sources and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infernum.bundle import Bundle
from infernum.errors import BundleError
from infernum.lab.explain.facts import facts_of
from infernum.lab.explain.kernel_difference import KernelDiff, Numbers, Side, kernel_diffs, numbers_of
from infernum.lab.explain.measurements import Measurements
from infernum.lab.explain.text_diff import GraphDiff, SourceDiff, graph_diff, source_diffs
from infernum.manifest import BlockVariant, Manifest, every_variant, spec_of, variant_names
from infernum.rule_phrases import refusal

SLOWER = 1.03
"""A step counts as slower when it takes more than this many times as long."""


@dataclass(frozen=True)
class Pair:
    """One fact of both bundles, "None" where a bundle lacks it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Summary:
    """One block variant of both bundles, in a step of `tokens` tokens; None where a bundle lacks it."""

    where: str
    tokens: int
    a: Numbers | None
    b: Numbers | None

    @property
    def costs(self) -> list[tuple[str, int, int]]:
        """What is better when it is less, in the first and in the second bundle; nothing where one lacks it."""
        a, b = self.a, self.b
        if a is None or b is None:
            return []
        moved = f"bytes moved at {self.tokens} tokens"
        return [
            ("spilled bytes", a.spills, b.spills),
            ("kernels", a.kernels, b.kernels),
            (moved, a.bytes, b.bytes),
        ]


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
        bundles = [bundle for bundle, chosen in ((a, old), (b, new)) if where in chosen]
        tokens = min(spec_of(bundle.manifest.variants, of_class).max_tokens for bundle in bundles)
        before, after = (
            Side(bundle, chosen[where], facts_of(bundle, chosen[where], tokens=tokens), bench)
            if where in chosen
            else None
            for bundle, chosen, bench in zip((a, b), (old, new), benches, strict=True)
        )
        numbers = (side and numbers_of(side, side.facts) for side in (before, after))
        summary.append(Summary(where, tokens, *numbers))
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
        cubins=_cubins(a, b, old, new),
        ms_per_step=(steps[0], steps[1]) if len(steps) == 2 else None,
    )


def regressions(diff: BundleDiff) -> list[str]:
    """What is worse in the second bundle, a line each."""
    lines = [
        f"{s.where}: {name}: {before} → {after}"
        for s in diff.summary
        for name, before, after in s.costs
        if after > before
    ]
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
        for v in every_variant(bundle.manifest)
        if block in (None, v.block) and v.serves(variant)
    }


def _facts(a: Manifest, b: Manifest) -> list[Pair]:
    before, after = _manifest_facts(a), _manifest_facts(b)
    return [
        Pair(name, str(before.get(name)), str(after.get(name)))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _manifest_facts(manifest: Manifest) -> dict[str, object]:
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
        **{f"config {name}": value for name, value in manifest.model.config.items()},
    }


def _rules(where: str, a: BlockVariant, b: BlockVariant) -> list[RuleDiff]:
    diffs: list[RuleDiff] = []
    refusing = (r.rule for r in (*a.refused, *b.refused))
    for rule in dict.fromkeys((*a.fired, *b.fired, *refusing)):
        old, new = ([refusal(r.at, r.reason) for r in v.refused if r.rule == rule] for v in (a, b))
        fired = a.fired.get(rule, 0), b.fired.get(rule, 0)
        gone, came = [r for r in old if r not in new], [r for r in new if r not in old]
        if fired[0] != fired[1] or gone or came:
            diffs.append(RuleDiff(where, rule, *fired, gone, came))
    return diffs


def _cubins(
    a: Bundle, b: Bundle, chosen: Mapping[str, BlockVariant], others: Mapping[str, BlockVariant]
) -> list[str]:
    """Compiled files that differ although their sources are the same."""
    pairs = ((old, others[where]) for where, old in chosen.items() if where in others)
    return [
        new.cubin
        for old, new in pairs
        if a.checksums.get(old.source) == b.checksums.get(new.source)
        and a.checksums.get(old.cubin) != b.checksums.get(new.cubin)
    ]
