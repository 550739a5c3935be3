"""Why a kernel is as it is: its ops, the rules and lines of Python that made it, what it costs, what limits it."""

from __future__ import annotations

from dataclasses import dataclass

from infernum.bundle import Bundle
from infernum.errors import BundleError
from infernum.ir.graph import Graph
from infernum.lab.explain.calls import KernelRead, KernelWrite, OpCall, calls_of, reads_of, writes_of
from infernum.lab.explain.facts import Amount, KernelFacts, facts_of, total
from infernum.lab.explain.graphs import costs_nothing, graphs_of
from infernum.lab.explain.history import Applied, applied_to
from infernum.lab.explain.lines import text_of
from infernum.manifest import BlockVariant
from infernum.roofline import CONTEXT, gpu_of


@dataclass(frozen=True)
class Line:
    """A line of Python, its text where it can be read, and the traced nodes of that line that the kernel computes."""

    where: str
    text: str | None
    made: list[str]


@dataclass(frozen=True)
class KernelExplanation:
    """One kernel of a block variant in a step of `facts.tokens` tokens, `context` positions for each sequence.

    `together`: all kernels of the same node, in order; `after` is what they cost, `before` what they replaced.
    `resident`: blocks of the launch that a multiprocessor gets, as far as it can hold them.
    """

    block: str
    variant: str
    arch: str
    gpu: str
    context: int
    facts: KernelFacts
    reads: list[KernelRead]
    calls: list[OpCall]
    writes: list[KernelWrite]
    rules: list[Applied]
    lines: list[Line]
    together: list[str]
    before: Amount
    after: Amount
    resident: int | None
    source: str
    edited: bool
    see: str


def explain_kernels(
    bundle: Bundle,
    name: str,
    variants: list[BlockVariant],
    *,
    tokens: int | None = None,
    context: int = CONTEXT,
) -> list[KernelExplanation]:
    """Explanations of the kernel `name`, one for each of the block variants that have it.

    Raises BundleError when none of them has it.
    """
    explanations: list[KernelExplanation] = []
    for variant in variants:
        explanations += explain_variant(bundle, variant, name, tokens=tokens, context=context)
    if not explanations:
        raise BundleError(f"{bundle.folder}: has no kernel {name!r} in that variant; leave out --variant")
    return explanations


def explain_variant(
    bundle: Bundle,
    variant: BlockVariant,
    name: str | None = None,
    *,
    tokens: int | None = None,
    context: int = CONTEXT,
) -> list[KernelExplanation]:
    """Explanations of all kernels of a block variant, or of those called `name`."""
    if name is not None and all(kernel.name != name for kernel in variant.kernels):
        return []
    traced, graph = graphs_of(bundle, variant)
    every = facts_of(bundle, variant, tokens=tokens, context=context)
    chosen = (facts for facts in every if name in (None, facts.kernel.name))
    return [_explain(bundle, variant, traced, graph, facts, every, context) for facts in chosen]


def _explain(
    bundle: Bundle,
    variant: BlockVariant,
    traced: Graph,
    graph: Graph,
    facts: KernelFacts,
    every: list[KernelFacts],
    context: int,
) -> KernelExplanation:
    kernel, gpu = facts.kernel, gpu_of(bundle.arch)
    siblings = [f for f in every if f.kernel.node == kernel.node]
    edit = bundle.manifest.edits.get(variant.source)
    resident = None
    if facts.grid is not None and facts.occupancy is not None:
        blocks = facts.grid[0] * facts.grid[1] * facts.grid[2]
        resident = min(facts.occupancy.blocks_per_sm, -(-blocks // gpu.sms))
    shown = f"--block {variant.block} --variant {variant.variant} --kernel {kernel.name} --source"
    return KernelExplanation(
        block=variant.block,
        variant=variant.variant,
        arch=bundle.arch,
        gpu=gpu.name,
        context=context,
        facts=facts,
        reads=reads_of(graph, kernel.node, {f.kernel.node: f.kernel.name for f in every}),
        calls=calls_of(graph, kernel.node),
        writes=writes_of(graph, kernel.node),
        rules=applied_to(variant, kernel),
        lines=[Line(where, text_of(where), _made_at(traced, where, kernel.origin)) for where in kernel.where],
        together=[f.kernel.name for f in siblings],
        before=siblings[0].before,
        after=total(own(f) for f in siblings),
        resident=resident,
        source=variant.source,
        edited=edit is not None and kernel.name in edit.kernels,
        see=f"infernum inspect {bundle.folder} {shown}",
    )


def own(facts: KernelFacts) -> Amount:
    """The cost of one kernel alone."""
    return Amount(1, facts.bytes, facts.flops, facts.floor_us)


def _made_at(traced: Graph, where: str, origin: list[str]) -> list[str]:
    """The traced nodes of a line that a kernel computes, and the views of that line, which cost nothing."""
    here = [node for node in traced.calls if where in node.where]
    return [n.name for n in here if n.name in origin or costs_nothing(n)]
