"""A block before and after the rules: which traced nodes became which kernels, and what that changed."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.bundle import Bundle
from infernum.ir.graph import Graph, Value
from infernum.lab.explain.calls import OpCall, call_of
from infernum.lab.explain.facts import Amount, KernelFacts, facts_of, total
from infernum.lab.explain.graphs import costs_nothing, graphs_of
from infernum.lab.explain.history import Applied, applied_to
from infernum.lab.explain.kernel import own
from infernum.manifest import BlockVariant, spec_of
from infernum.roofline import CONTEXT, gpu_of


@dataclass(frozen=True)
class Traced:
    """One call of a block as traced. `free`: a view, or work done when weights are loaded."""

    call: OpCall
    free: bool


@dataclass(frozen=True)
class NodeGroup:
    """The traced nodes that became one node after the rules, its kernels, and the rules that made it."""

    node: str
    before: list[Traced]
    kernels: list[KernelFacts]
    rules: list[Applied]
    amount_before: Amount
    amount_after: Amount


@dataclass(frozen=True)
class BlockExplanation:
    """A block variant in a step of `tokens` tokens, `context` positions for each sequence.

    `layers`: how often the block is applied in a step; 0 for a sampler.
    """

    block: str
    variant: str
    arch: str
    gpu: str
    tokens: int
    context: int
    layers: int
    groups: list[NodeGroup]
    before: Amount
    after: Amount


def explain_block(
    bundle: Bundle, variant: BlockVariant, *, tokens: int | None = None, context: int = CONTEXT
) -> BlockExplanation:
    """A block for one class of steps: its traced nodes by the kernels that do their work."""
    traced, _ = graphs_of(bundle, variant)
    facts = facts_of(bundle, variant, tokens=tokens, context=context)
    homes = _homes(traced, facts)
    groups: list[NodeGroup] = []
    for node in dict.fromkeys(f.kernel.node for f in facts):
        kernels = [f for f in facts if f.kernel.node == node]
        calls = [n for n in traced.calls if homes.get(n.name) == node]
        before = [Traced(call_of(traced, n), costs_nothing(n)) for n in calls]
        rules, after = applied_to(variant, kernels[0].kernel), total(own(f) for f in kernels)
        groups.append(NodeGroup(node, before, kernels, rules, kernels[0].before, after))
    spec = spec_of(bundle.manifest.variants, variant.variant)
    return BlockExplanation(
        block=variant.block,
        variant=variant.variant,
        arch=bundle.arch,
        gpu=gpu_of(bundle.arch).name,
        tokens=spec.max_tokens if tokens is None else tokens,
        context=context,
        layers=sum(stage.block == variant.block for stage in bundle.manifest.program),
        groups=groups,
        before=total(g.amount_before for g in groups),
        after=total(g.amount_after for g in groups),
    )


def _homes(traced: Graph, facts: list[KernelFacts]) -> dict[str, str]:
    """The first node after the rules that does the work of each traced node; a view goes with what it shows."""
    homes = {name: f.kernel.node for f in reversed(facts) for name in f.kernel.origin}
    for node in traced.calls:
        if node.name in homes or not costs_nothing(node):
            continue
        near = [value.node for value in traced.operands(node.name)]
        near += [user for i in range(len(node.types)) for user, _ in traced.users(Value(node.name, i))]
        home = next((homes[name] for name in near if name in homes), None)
        if home is not None:
            homes[node.name] = home
    return homes
