"""The candidates of `infernum tune`: other parameters for one kernel, compiled, and made variants of one bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from infernum.bundle import Bundle, write_bundle
from infernum.cache import cache_folder
from infernum.codegen.cubin import Cubin
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock, describe_block
from infernum.codegen.nvrtc import compile_all, compile_cuda
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import Kernel
from infernum.compiler import Sources, describe, texts
from infernum.errors import CompileError
from infernum.ir.kernel import Tuned
from infernum.ir.parameters import Parameters
from infernum.manifest import ANY, BlockVariant, VariantSpec, spec_of
from infernum.roofline import gpu_of

Values = Mapping[str, int]


@dataclass(frozen=True)
class Tunable:
    """Kernels of one key: what may be chosen, and block and name of each, in launch order."""

    variant: str
    kernels: tuple[tuple[str, str], ...]
    parameters: Parameters


@dataclass(frozen=True)
class CandidateVariant:
    """A block variant in which kernels have other parameters than by default. `name`: the variant that it becomes."""

    name: str
    variant: str
    changes: Mapping[str, Values]
    """By key: the values that are tried."""


@dataclass(frozen=True)
class CandidateBundle(Bundle):
    """A bundle in which several variants serve the same steps: the one that `serving` names does, if any."""

    serving: list[str] = field(default_factory=list[str])

    def variant_for(self, tokens: int) -> VariantSpec:
        for spec in self.manifest.variants:
            if spec.name in self.serving and spec.min_tokens <= tokens <= spec.max_tokens:
                return spec
        return super().variant_for(tokens)


def tunables(sources: Sources, variant: str, blocks: Iterable[str]) -> list[Tunable]:
    """Everything that can be chosen in a variant of these blocks; kernels of one key are tuned together."""
    by_key: dict[str, tuple[Parameters, list[tuple[str, str]]]] = {}
    wanted = set(blocks)
    for block in (b for b in sources.blocks if b.target.variant in (variant, ANY) and b.block in wanted):
        for step in block.plan.steps:
            if isinstance(step, Kernel) and step.parameters and len(step.parameters.candidates) > 1:
                named = by_key.setdefault(step.parameters.key, (step.parameters, []))[1]
                named.append((block.block, step.name))
    return [Tunable(variant, tuple(names), chosen) for chosen, names in by_key.values()]


def candidates_of(tunable: Tunable, first: int) -> list[CandidateVariant]:
    """Every combination but the default one, named by numbers from `first` on."""
    chosen = tunable.parameters
    return [
        CandidateVariant(f"{tunable.variant}.{first + i}", tunable.variant, {chosen.key: values})
        for i, values in enumerate(chosen.candidates[1:])
    ]


@dataclass(frozen=True)
class CompiledCandidate:
    """The blocks of a candidate that differ from the default ones, with their cubins; or why it cannot be tried."""

    candidate: CandidateVariant
    blocks: tuple[tuple[CompiledBlock, Cubin], ...] = ()
    refused: str = ""


def compile_candidates(
    sources: Sources,
    base: Mapping[str, Cubin],
    candidates: Sequence[CandidateVariant],
    in_time: Callable[[], bool] = lambda: True,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[CompiledCandidate]:
    """Plan, emit and compile each candidate side by side; `base`: the default cubins by file.

    One that does not compile, spills more than the default, or that no SM could hold, is refused with the reason, and
    so are those that are not begun in time.
    """

    def compiled(candidate: CandidateVariant) -> CompiledCandidate:
        if not in_time():
            return CompiledCandidate(candidate, refused="not compiled: the time was up")
        try:
            changed = [_changed(block, candidate) for block in _blocks_of(sources, candidate)]
            pairs = [
                (
                    block,
                    compile_cuda(
                        block.source,
                        name=f"{block.stem}.cu",
                        arch=sources.options.arch,
                        cache=cache_folder(),
                    ),
                )
                for block in changed
            ]
        except CompileError as error:
            return CompiledCandidate(candidate, refused=f"does not compile: {str(error).splitlines()[0]}")
        for block, cubin in pairs:
            reason = _refusal(block, cubin, base[f"{block.stem}.cu"], sources.options.arch)
            if reason:
                return CompiledCandidate(candidate, refused=reason)
        return CompiledCandidate(candidate, tuple(pairs))

    with ThreadPoolExecutor() as pool:
        done: list[CompiledCandidate] = []
        for each in pool.map(compiled, candidates):
            done.append(each)
            if progress:
                progress("compiling candidates", len(done), len(candidates))
    return done


def compile_default(sources: Sources) -> dict[str, Cubin]:
    """The cubins of all blocks as they are, by file."""
    files = {f"{block.stem}.cu": block.source for block in sources.blocks}
    return compile_all(files.items(), sources.options.arch, cache=cache_folder())


def write_candidates(
    folder: Path, sources: Sources, base: Mapping[str, Cubin], compiled: Sequence[CompiledCandidate]
) -> CandidateBundle:
    """A bundle of the default variants, and of one more for each candidate.

    Blocks that are compiled once have such a variant only where the candidate changes them.
    """
    manifest = describe(sources, {block.stem: base[f"{block.stem}.cu"] for block in sources.blocks})
    contents = texts(sources) | {name.removesuffix(".cu") + ".cubin": c.data for name, c in base.items()}
    variants, blocks = list(manifest.variants), {name: dict(each) for name, each in manifest.blocks.items()}
    for each in compiled:
        name, spec = each.candidate.name, spec_of(manifest.variants, each.candidate.variant)
        variants.append(msgspec.structs.replace(spec, name=name))
        for of_block in blocks.values():
            if spec.name in of_block:
                of_block[name] = msgspec.structs.replace(of_block[spec.name], variant=name)
        for block, cubin in each.blocks:
            source, binary = f"{block.block}.{name}.cu", f"{block.block}.{name}.cubin"
            compiled_for = spec_of(manifest.variants, block.target.variant)
            described: BlockVariant = describe_block(block, compiled_for, cubin)
            blocks[block.block][name] = msgspec.structs.replace(
                described, variant=name, source=source, cubin=binary
            )
            contents |= {source: block.source.encode(), binary: cubin.data}
    manifest = msgspec.structs.replace(manifest, variants=variants, blocks=blocks)
    written = write_bundle(folder, manifest, contents)
    return CandidateBundle(written.folder, written.manifest, written.checksums)


def _blocks_of(sources: Sources, candidate: CandidateVariant) -> list[CompiledBlock]:
    """The blocks that have a kernel of a key that is changed."""
    return [
        block
        for block in sources.blocks
        if block.target.variant in (candidate.variant, ANY)
        and any(
            isinstance(step, Kernel) and step.parameters and step.parameters.key in candidate.changes
            for step in block.plan.steps
        )
    ]


def _changed(block: CompiledBlock, candidate: CandidateVariant) -> CompiledBlock:
    tuned = {key: Tuned(values, "tried") for key, values in candidate.changes.items()}
    target = replace(block.target, tuned=tuned)
    plan = plan_block(block.plan.graph, target)
    return replace(
        block, target=target, plan=plan, source=emit_block(plan, f"{block.stem}, tried as {candidate.name}.")
    )


def _refusal(block: CompiledBlock, cubin: Cubin, default: Cubin, arch: str) -> str:
    """Why kernels of a changed block cannot be launched, or need not be timed; "" where nothing is known against it."""
    gpu = gpu_of(arch)
    for step in (s for s in block.plan.steps if isinstance(s, Kernel)):
        found = cubin.kernels[step.name]
        if found.spill_bytes > default.kernels[step.name].spill_bytes:
            return f"{step.name} spills {found.spill_bytes} bytes"
        if -(-found.registers // 8) * 8 * step.block > gpu.registers_per_sm:
            return f"{step.name}: {step.block} threads of {found.registers} registers are more than an SM has"
        shared = found.static_shared_bytes + step.shared_bytes + gpu.shared_reserved
        if shared > gpu.shared_per_sm:
            return f"{step.name}: {shared} bytes of shared memory are more than an SM has"
        if step.block > 1024:
            return f"{step.name}: {step.block} threads are more than a block has"
    return ""
