"""Candidates of `infernum tune`: kernels with other parameters, compiled, as further variants of one bundle."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from infernum.codegen.steps import KernelStep
from infernum.compiler import Sources, describe, texts
from infernum.errors import CompileError
from infernum.ir.kernel import Tuned
from infernum.ir.parameters import ParameterSpace
from infernum.manifest import ANY, VariantSpec, spec_of
from infernum.opening import Progress
from infernum.roofline import gpu_of

Values = Mapping[str, int]
"""Parameters of a kernel by name."""


@dataclass(frozen=True)
class Tunable:
    """The kernels of one key in a variant: their parameters, and block and name of each kernel in launch order."""

    variant: str
    kernels: tuple[tuple[str, str], ...]
    parameters: ParameterSpace


@dataclass(frozen=True)
class CandidateVariant:
    """A copy of `variant`, called `name`, whose kernels have the parameters in `changes`, by key."""

    name: str
    variant: str
    changes: Mapping[str, Values]


@dataclass(frozen=True)
class CandidateBundle(Bundle):
    """A bundle in which several variants serve the same steps; the one named in `serving`, if any, is chosen."""

    serving: list[str] = field(default_factory=list[str])

    @contextmanager
    def serve(self, variant: str) -> Generator[None]:
        """Have `variant` serve the steps that it can serve, instead of the default."""
        outer = list(self.serving)
        self.serving[:] = [variant]
        try:
            yield
        finally:
            self.serving[:] = outer

    def variant_for(self, tokens: int, decodes: bool = False) -> VariantSpec:
        for spec in self.manifest.variants:
            if spec.name in self.serving and spec.serves(tokens, decodes):
                return spec
        return super().variant_for(tokens, decodes)


def tunables(sources: Sources, variant: str, blocks: Iterable[str]) -> list[Tunable]:
    """The tunable kernels of these blocks in a variant; kernels of one key are tuned together."""
    by_key: dict[str, tuple[ParameterSpace, list[tuple[str, str]]]] = {}
    for block, kernel, parameters in _tunable_kernels(sources, variant):
        if block.block in blocks and len(parameters.candidates) > 1:
            by_key.setdefault(parameters.key, (parameters, []))[1].append((block.block, kernel.name))
    return [Tunable(variant, tuple(names), parameters) for parameters, names in by_key.values()]


def candidates_of(tunable: Tunable, first: int) -> list[CandidateVariant]:
    """Every combination of parameters but the default; the variants are numbered from `first` on."""
    key, (_, *others) = tunable.parameters.key, tunable.parameters.candidates
    return [
        CandidateVariant(f"{tunable.variant}.{number}", tunable.variant, {key: values})
        for number, values in enumerate(others, first)
    ]


@dataclass(frozen=True)
class CompiledCandidate:
    """The blocks of a candidate that differ from the default, with their cubins; or why the candidate is refused."""

    candidate: CandidateVariant
    blocks: tuple[tuple[CompiledBlock, Cubin], ...] = ()
    refused: str = ""


def compile_candidates(
    sources: Sources,
    base: Mapping[str, Cubin],
    candidates: Sequence[CandidateVariant],
    in_time: Callable[[], bool] = lambda: True,
    progress: Progress | None = None,
) -> list[CompiledCandidate]:
    """Plan, emit and compile candidates in parallel; `base`: the default cubins by file.

    A candidate is refused when it does not compile, when a kernel spills more than the default does or fits on no SM,
    and when its turn comes after `in_time` has become False.
    """
    arch = sources.options.arch

    def compiled(candidate: CandidateVariant) -> CompiledCandidate:
        if not in_time():
            return CompiledCandidate(candidate, refused="not compiled: the time was up")
        pairs: list[tuple[CompiledBlock, Cubin]] = []
        try:
            for block in _changed_blocks(sources, candidate):
                file = f"{block.stem}.cu"
                cubin = compile_cuda(block.source, name=file, arch=arch, cache=cache_folder())
                if refusal := _refusal(block, cubin, base[file], arch):
                    return CompiledCandidate(candidate, refused=refusal)
                pairs.append((block, cubin))
        except CompileError as error:
            return CompiledCandidate(candidate, refused=f"does not compile: {str(error).splitlines()[0]}")
        return CompiledCandidate(candidate, tuple(pairs))

    results: list[CompiledCandidate] = []
    with ThreadPoolExecutor() as pool:
        for result in pool.map(compiled, candidates):
            results.append(result)
            if progress:
                progress("compiling candidates", len(results), len(candidates))
    return results


def compile_default(sources: Sources) -> dict[str, Cubin]:
    """The cubins of all blocks with their default parameters, by file."""
    files = {f"{block.stem}.cu": block.source for block in sources.blocks}
    return compile_all(files.items(), sources.options.arch, cache=cache_folder())


def write_candidates(
    folder: Path, sources: Sources, base: Mapping[str, Cubin], compiled: Sequence[CompiledCandidate]
) -> CandidateBundle:
    """A bundle of the default variants, and of one variant more for each candidate that is not refused.

    Blocks that are compiled once have such a variant only where the candidate changes them.
    """
    manifest = describe(sources, {block.stem: base[f"{block.stem}.cu"] for block in sources.blocks})
    contents = texts(sources) | {name.removesuffix(".cu") + ".cubin": c.data for name, c in base.items()}
    variants, blocks = list(manifest.variants), {name: dict(each) for name, each in manifest.blocks.items()}
    for result in (result for result in compiled if not result.refused):
        name, spec = result.candidate.name, spec_of(manifest.variants, result.candidate.variant)
        variants.append(msgspec.structs.replace(spec, name=name))
        for by_variant in blocks.values():
            if spec.name in by_variant:
                by_variant[name] = msgspec.structs.replace(by_variant[spec.name], variant=name)
        for block, cubin in result.blocks:
            source, binary = f"{block.block}.{name}.cu", f"{block.block}.{name}.cubin"
            described = describe_block(block, spec_of(manifest.variants, block.target.variant), cubin)
            blocks[block.block][name] = msgspec.structs.replace(
                described, variant=name, source=source, cubin=binary
            )
            contents |= {source: block.source.encode(), binary: cubin.data}
    manifest = msgspec.structs.replace(manifest, variants=variants, blocks=blocks)
    bundle = write_bundle(folder, manifest, contents)
    return CandidateBundle(bundle.folder, bundle.manifest, bundle.checksums)


def _tunable_kernels(
    sources: Sources, variant: str
) -> Iterator[tuple[CompiledBlock, KernelStep, ParameterSpace]]:
    """The kernels with parameters in a step of `variant`."""
    for block in sources.blocks:
        if block.target.variant in (variant, ANY):
            for step in block.plan.steps:
                if isinstance(step, KernelStep) and step.parameters:
                    yield block, step, step.parameters


def _changed_blocks(sources: Sources, candidate: CandidateVariant) -> Iterator[CompiledBlock]:
    """The blocks that have a kernel whose parameters change, planned and emitted anew."""
    tuned = {key: Tuned(values, "tried") for key, values in candidate.changes.items()}
    kernels = _tunable_kernels(sources, candidate.variant)
    changed = {block.stem: block for block, _, parameters in kernels if parameters.key in tuned}
    for block in changed.values():
        target = replace(block.target, tuned=tuned)
        plan = plan_block(block.plan.graph, target)
        source = emit_block(plan, f"{block.stem}, tried as {candidate.name}.")
        yield replace(block, target=target, plan=plan, source=source)


def _refusal(block: CompiledBlock, cubin: Cubin, default: Cubin, arch: str) -> str:
    """Why kernels of a changed block cannot be launched, or are not worth timing; "" for none of both."""
    gpu = gpu_of(arch)
    for step in (s for s in block.plan.steps if isinstance(s, KernelStep)):
        usage = cubin.kernels[step.name]
        if usage.spill_bytes > default.kernels[step.name].spill_bytes:
            return f"{step.name} spills {usage.spill_bytes} bytes"
        if -(-usage.registers // 8) * 8 * step.threads > gpu.registers_per_sm:
            return (
                f"{step.name}: {step.threads} threads of {usage.registers} registers are more than an SM has"
            )
        shared = usage.static_shared_bytes + step.shared_bytes + gpu.shared_reserved
        if shared > gpu.shared_per_sm:
            return f"{step.name}: {shared} bytes of shared memory are more than an SM has"
        if step.threads > 1024:
            return f"{step.name}: {step.threads} threads are more than a block has"
    return ""
