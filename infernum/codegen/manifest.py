"""A compiled block as the bundle's manifest tells it to the runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from infernum import bundle, manifest
from infernum.codegen.costs import total
from infernum.codegen.cubin import Cubin
from infernum.codegen.memory import Lifetime, check_no_overlap, plan_memory
from infernum.codegen.nvrtc import arch_name
from infernum.codegen.plan import BlockPlan
from infernum.codegen.planner import pointer
from infernum.codegen.steps import KernelStep, ProductStep
from infernum.dims import size
from infernum.ir.apply import Outcome
from infernum.ir.fuse import made_by
from infernum.ir.graph import Graph, TensorType
from infernum.ir.interface import inputs_of, spec, states_of, weights_of
from infernum.ir.kernel import Target
from infernum.ir.op import Fused

LIBRARY = "cublaslt"
"""What stands for the template of a step that is the library's."""


@dataclass(frozen=True)
class CompiledBlock:
    """One block for one variant, up to its source: what the rules did, and the plans after and before them."""

    block: str
    target: Target
    traced: Graph
    outcome: Outcome
    plan: BlockPlan
    before: BlockPlan
    source: str

    @property
    def stem(self) -> str:
        return f"{self.block}.{self.target.variant}"


def describe_block(
    block: CompiledBlock, variant: manifest.VariantSpec, cubin: Cubin
) -> manifest.BlockVariant:
    """Everything the runtime needs to know of one block for one variant."""
    plan, graph = block.plan, block.plan.graph
    inputs = {node.name: node for node in graph.inputs}
    produced = list(dict.fromkeys(plan.places[v].tensor for v in graph.outputs))
    out_types = {plan.places[v].tensor: graph.type(v) for v in graph.outputs}
    streams_out = [name for name in produced if name not in inputs]
    buffers, arena = _plan_arena(plan, variant, set(streams_out) | set(inputs))
    return manifest.BlockVariant(
        block=block.block,
        variant=variant.name,
        source=f"{block.stem}.cu",
        shared_hash=bundle.source_hash(
            bundle.shared_code(block.source, [s.name for s in plan.steps if isinstance(s, KernelStep)])
        ),
        cubin=f"{block.stem}.cubin",
        traced=bundle.traced_name(block.block),
        graph=f"{block.stem}.ir",
        stream_in=inputs_of(graph, "stream"),
        stream_out=[spec(name, out_types[name]) for name in streams_out],
        batch=inputs_of(graph, "batch"),
        state=states_of(graph),
        buffers=buffers,
        weights=weights_of(graph),
        arena_bytes=arena,
        steps=[_step(step, block.target) for step in plan.steps],
        kernels=_kernels(block, cubin),
        kernels_before_fusion=len(block.before.steps),
        fired=dict(block.outcome.fired),
        firings=list(block.outcome.firings),
        refused=list(block.outcome.refused),
    )


def _plan_arena(
    plan: BlockPlan, variant: manifest.VariantSpec, external: set[str]
) -> tuple[dict[str, manifest.Buffer], int]:
    """Offsets of every intermediate tensor, at the variant's largest token count."""
    symbols = {"tokens": variant.max_tokens, "seqs": variant.max_tokens, "rows": variant.max_rows}
    order = {step.node.name: i for i, step in enumerate(plan.steps)}
    types: dict[str, TensorType] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for value, place in plan.places.items():
        if place.tensor in external:
            continue
        if place.tensor not in types:
            types[place.tensor] = place.type
            first[place.tensor] = last[place.tensor] = order[value.node]
        for user in (u for u, _ in plan.graph.users(value) if u in order):
            last[place.tensor] = max(last[place.tensor], order[user])
    for name, (type_, node) in plan.workspaces.items():
        types[name] = type_
        steps = [i for i, step in enumerate(plan.steps) if step.node.name == node]
        first[name], last[name] = steps[0], steps[-1]
    lifetimes = [
        Lifetime(n, size(t.shape, symbols) * t.dtype.bytes, first[n], last[n]) for n, t in types.items()
    ]
    offsets, arena = plan_memory(lifetimes)
    check_no_overlap(lifetimes, offsets)
    return {
        name: manifest.Buffer(spec=spec(name, types[name]), offset=offset) for name, offset in offsets.items()
    }, arena


def _step(step: KernelStep | ProductStep, target: Target) -> manifest.Step:
    if isinstance(step, ProductStep):
        return step.gemm
    return manifest.Launch(
        kernel=step.name,
        args=[
            *(pointer(o.place) for o in step.operands),
            *([manifest.Pointer(tensor=manifest.EXCHANGE)] if step.exchanged else []),
            *(manifest.SymbolArg(symbol=symbol) for _, symbol in step.symbols),
        ],
        grid=list(step.grid),
        block=[step.threads, 1, 1],
        shared_bytes=step.shared_bytes,
        cluster=step.cluster,
        programmatic=target.programmatic,
        exchanged=step.exchanged,
    )


def _kernels(block: CompiledBlock, cubin: Cubin) -> list[manifest.Kernel]:
    """What is known of each step. Of several steps that do the work of one traced node, the first has its cost."""
    unfused: dict[str, list[KernelStep | ProductStep]] = {}
    for step in block.before.steps:
        unfused.setdefault(step.node.name, []).append(step)
    texts = bundle.sections(block.source)
    counted: set[str] = set()
    kernels: list[manifest.Kernel] = []
    for step in block.plan.steps:
        node = step.node
        replaced = [s for o in node.origins if o not in counted for s in unfused.get(o, ())]
        counted.update(node.origins)
        emitted = step if isinstance(step, KernelStep) else None
        resources = asdict(cubin.kernels[step.name]) if emitted else {}
        kernels.append(
            manifest.Kernel(
                name=step.name,
                node=node.name,
                template=emitted.template.name if emitted else LIBRARY,
                ops=[n.op.name for n in node.op.body.calls] if isinstance(node.op, Fused) else [node.op.name],
                rules=list(made_by(node)),
                where=list(node.where),
                origin=list(node.origins),
                before=manifest.Cost(
                    kernels=len(replaced),
                    bytes=total(s.bytes for s in replaced),
                    flops=total(s.flops for s in replaced),
                ),
                bytes=step.bytes,
                flops=step.flops,
                passed_over=list(step.passed_over),
                parameters=_parameters(emitted, block.target),
                source_hash=bundle.source_hash(texts[step.name]) if emitted else "",
                **resources,
            )
        )
    return kernels


def _parameters(step: KernelStep | None, target: Target) -> manifest.Parameters | None:
    if step is None or step.parameters is None:
        return None
    chosen = step.parameters
    return manifest.Parameters(
        key=chosen.key,
        values=dict(chosen.values),
        default=dict(chosen.default),
        candidates=len(chosen.candidates),
        why=chosen.why or f"default for {arch_name(target.arch)}",
    )
