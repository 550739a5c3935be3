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
    old = {f.kernel.name: (a, f) for f in a.facts} if a else {}
    new = {f.kernel.name: (b, f) for f in b.facts} if b else {}
    was = {name: name for name in new if name in old}
    for name in (n for n in new if n not in was):
        alike = (o for o in old if o not in was.values() and o not in new)
        origin = new[name][1].kernel.origin
        same = next((o for o in alike if old[o][1].kernel.origin == origin), None)
        if same is not None:
            was[name] = same
    diffs: list[KernelDiff] = []
    for name, (side, facts) in new.items():
        numbers = numbers_of(side, [facts])
        if name not in was:
            diffs.append(KernelDiff(where, name, "", "added", [], _sharing(facts, old), None, numbers))
            continue
        before, after = _traits(*old[was[name]]), _traits(side, facts)
        changes = [trait for trait in before if before[trait] != after[trait]]
        if changes:
            old_side, old_facts = old[was[name]]
            old_numbers = numbers_of(old_side, [old_facts])
            diffs.append(KernelDiff(where, name, was[name], "changed", changes, [], old_numbers, numbers))
    for name, (side, facts) in old.items():
        if name not in was.values():
            numbers, instead = numbers_of(side, [facts]), _sharing(facts, new)
            diffs.append(KernelDiff(where, name, name, "removed", [], instead, numbers, None))
    return diffs


def _sharing(facts: KernelFacts, others: Mapping[str, tuple[Side, KernelFacts]]) -> list[str]:
    """The kernels of another bundle that do work of the same traced nodes."""
    origin = set(facts.kernel.origin)
    return [name for name, (_, other) in others.items() if origin & set(other.kernel.origin)]


def _traits(side: Side, facts: KernelFacts) -> dict[str, object]:
    """What is compared of a kernel, by the words for it."""
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
