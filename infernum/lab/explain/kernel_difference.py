"""Which kernels of a block variant differ between two bundles, and in what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infernum.bundle import Bundle
from infernum.lab.explain.facts import KernelFacts
from infernum.lab.explain.measurements import Measurements
from infernum.manifest import BlockVariant, Gemm


@dataclass(frozen=True)
class Numbers:
    """A block variant, or one kernel, in numbers. Registers are the most of any kernel, spills are bytes of all."""

    kernels: int
    registers: int
    spills: int
    shared: int
    bytes: int
    floor_us: float
    occupancy: float | None = None
    us: float | None = None


@dataclass(frozen=True)
class KernelDiff:
    """One kernel that was added, removed, or changed in `what`; `was` is its name in the first bundle.

    `instead`: for one that was added or removed, the kernels of the other bundle that do some of the same work.
    """

    where: str
    name: str
    was: str
    status: str
    what: list[str]
    instead: list[str]
    a: Numbers | None
    b: Numbers | None


@dataclass(frozen=True)
class Side:
    """One block variant of one bundle, with the times measured of it."""

    bundle: Bundle
    variant: BlockVariant
    facts: list[KernelFacts]
    bench: Measurements | None

    def us(self, name: str) -> float | None:
        return self.bench.us(self.variant.block, self.variant.variant, name) if self.bench else None


def kernel_diffs(where: str, a: Side | None, b: Side | None) -> list[KernelDiff]:
    """Kernels that differ; those of both sides belong together by name, otherwise by the traced nodes they do."""
    old = {f.kernel.name: f for f in a.facts} if a else {}
    new = {f.kernel.name: f for f in b.facts} if b else {}
    diffs: list[KernelDiff] = []
    pairs = {name: name for name in new if name in old}
    for name in (n for n in new if n not in pairs):
        alike = (o for o in old if o not in pairs.values() and o not in new)
        same = next((o for o in alike if old[o].kernel.origin == new[name].kernel.origin), None)
        if same is not None:
            pairs[name] = same
    for name, facts in new.items():
        assert b is not None, "there are no kernels without a side"
        numbers = numbers_of(b, [facts])
        if name not in pairs:
            diffs.append(KernelDiff(where, name, "", "added", [], _sharing(facts, old), None, numbers))
            continue
        assert a is not None, "a pair has two sides"
        was = pairs[name]
        what = _changes(a, old[was], b, facts)
        if what:
            diffs.append(
                KernelDiff(where, name, was, "changed", what, [], numbers_of(a, [old[was]]), numbers)
            )
    for name in (n for n in old if n not in pairs.values()):
        assert a is not None, "there are no kernels without a side"
        diffs.append(
            KernelDiff(
                where, name, name, "removed", [], _sharing(old[name], new), numbers_of(a, [old[name]]), None
            )
        )
    return diffs


def _sharing(facts: KernelFacts, others: Mapping[str, KernelFacts]) -> list[str]:
    """The kernels of another bundle that do work of the same traced nodes."""
    mine = set(facts.kernel.origin)
    return [name for name, other in others.items() if mine & set(other.kernel.origin)]


def _changes(a: Side, old: KernelFacts, b: Side, new: KernelFacts) -> list[str]:
    """What differs about one kernel, in words."""
    before = _traits(a, old)
    after = _traits(b, new)
    return [name for name in before if before[name] != after[name]]


def _traits(side: Side, facts: KernelFacts) -> dict[str, object]:
    kernel, step = facts.kernel, facts.step
    edit = side.bundle.manifest.edits.get(side.variant.source)
    return {
        "name": kernel.name,
        "template": kernel.template,
        "ops": kernel.ops,
        "rules": kernel.rules,
        "Python lines": kernel.where,
        "registers": kernel.registers,
        "spills": kernel.spill_bytes,
        "stack": kernel.stack_bytes,
        "shared memory": _shared(facts),
        "bytes": facts.bytes,
        "FLOPs": facts.flops,
        "launch": step
        if isinstance(step, Gemm)
        else (step.grid, step.block, step.shared_bytes, step.cluster, step.programmatic),
        "arguments": None if isinstance(step, Gemm) else step.args,
        "emitted source": kernel.source_hash,
        "edited by hand": edit is not None and kernel.name in edit.kernels,
        "kernels passed over": kernel.passed_over,
        "parameters": kernel.parameters,
    }


def numbers_of(side: Side, facts: Sequence[KernelFacts]) -> Numbers:
    """Some kernels of one side, taken together."""
    measured = [us for f in facts if (us := side.us(f.kernel.name)) is not None]
    single = facts[0].occupancy if len(facts) == 1 else None
    return Numbers(
        kernels=len(facts),
        registers=max((f.kernel.registers for f in facts), default=0),
        spills=sum(f.kernel.spill_bytes for f in facts),
        shared=max((_shared(f) for f in facts), default=0),
        bytes=sum(f.bytes for f in facts),
        floor_us=sum(f.floor_us for f in facts),
        occupancy=single.fraction if single else None,
        us=sum(measured) if facts and len(measured) == len(facts) else None,
    )


def _shared(facts: KernelFacts) -> int:
    dynamic = 0 if isinstance(facts.step, Gemm) else facts.step.shared_bytes
    return dynamic + facts.kernel.static_shared_bytes
