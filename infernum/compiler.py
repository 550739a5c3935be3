"""The whole pipeline, from a model to a bundle: trace, fuse, plan, emit, compile, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infernum import __version__, bundle, logs
from infernum.bundle_cache import cached
from infernum.cache import cache_folder
from infernum.codegen.cubin import Cubin
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock, describe_block
from infernum.codegen.nvrtc import compile_all, nvrtc_version, parse_arch
from infernum.codegen.plan import plan_block
from infernum.codegen.weights import fold_weights
from infernum.errors import CompileError
from infernum.fusion import select_rules
from infernum.ir.apply import apply_rules
from infernum.ir.graph import Graph
from infernum.ir.kernel import Target, Tuned
from infernum.ir.rewrite import Rule
from infernum.ir.text import print_graph
from infernum.manifest import BlockVariant, Manifest, VariantSpec, any_step, spec_of
from infernum.models import sampler
from infernum.models.presets import ModelSource
from infernum.passes import Passes, record_passes
from infernum.program import MAX_BATCH_TOKENS, Program, describe_program, read_program
from infernum.roofline import MAX_ROWS, MOST_DECODES
from infernum.rule_phrases import fired, refusal

kernel_log = logs.channel("kernels")

LEAST_DETERMINISTIC = 128
"""Tokens of the largest step of a deterministic bundle, at least: kernels of fewer split contexts by the step."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Options:
    """What to compile a model for. `dtype` auto: as the checkpoint stores it. `dump`: a folder for graphs by pass.

    `tuned`: parameters of kernels by key, as `infernum tune` found them (`infernum.machine.tuned_here`).
    `deterministic`: the bits of a token's result do not depend on what else is in the step; nothing tuned is used.
    `ranks`: number of GPUs that the model is divided among.
    """

    arch: str = "sm_90a"
    dtype: str = "auto"
    fuse: bool = True
    rules: tuple[str, ...] = ()
    max_batch_tokens: int = MAX_BATCH_TOKENS
    dump: Path | None = None
    tuned: Mapping[str, Tuned] = field(default_factory=dict[str, Tuned], hash=False)
    deterministic: bool = False
    ranks: int = 1


@dataclass(frozen=True)
class Sources:
    """Everything that is known of a bundle before NVRTC runs."""

    program: Program
    options: Options
    variants: list[VariantSpec]
    rules: list[Rule]
    blocks: list[CompiledBlock] = field(default_factory=list[CompiledBlock])
    passes: Passes = field(default_factory=Passes)


def compile_model(
    source: ModelSource,
    options: Options,
    out: Path,
    *,
    progress: Progress | None = None,
    seconds: dict[str, float] | None = None,
) -> bundle.Bundle:
    """Compile a model into the bundle `out`. Raises CompileError, ConfigError or BundleError.

    `seconds`, when given, receives how long NVRTC took for each `block.variant`.
    """
    bundle.check_replaceable(out)
    took = seconds if seconds is not None else {}
    with record_passes(options.dump) as passes:
        sources = prepare(source, options, passes)

        def on_compiled(name: str, duration: float) -> None:
            stem = name.removesuffix(".cu")
            took[stem] = duration
            passes.blocks[stem].took("nvrtc", "CUDA to cubin, or the cubin kept in the cache.", duration)
            if progress:
                progress("compiling", len(took), len(sources.blocks))

        files = ((f"{b.stem}.cu", b.source) for b in emit_blocks(sources))
        cubins = compile_all(files, options.arch, progress=on_compiled, cache=cache_folder())
    manifest = describe(sources, {b.stem: cubins[f"{b.stem}.cu"] for b in sources.blocks})
    _log_kernels(manifest)
    contents = texts(sources) | {f"{b.stem}.cubin": cubins[f"{b.stem}.cu"].data for b in sources.blocks}
    return bundle.write_bundle(out, manifest, contents)


def texts(sources: Sources) -> dict[str, bytes]:
    """The files of a bundle that a person reads, by name."""
    contents = {"rules.txt": _rules_text(sources)}
    for block in sources.blocks:
        contents[bundle.traced_name(block.block)] = print_graph(block.traced)
        contents[f"{block.stem}.ir"] = print_graph(block.plan.graph)
        contents[f"{block.stem}.cu"] = block.source
    return {name: text.encode() for name, text in contents.items()}


def cached_bundle(
    source: ModelSource, options: Options, *, progress: Progress | None = None
) -> bundle.Bundle:
    """The bundle of a model in the user's cache, compiled now unless the very same one is there already."""
    tuned = sorted((key, sorted(chosen.values.items()), chosen.why) for key, chosen in options.tuned.items())
    facts = [options.arch, options.dtype, options.fuse, options.rules, tuned]
    facts += [options.max_batch_tokens, options.deterministic, options.ranks, nvrtc_version()]
    return cached(source, facts, lambda folder: compile_model(source, options, folder, progress=progress))


def emit_sources(source: ModelSource, options: Options, passes: Passes | None = None) -> Sources:
    """Trace, fuse, plan and emit every block for every variant, samplers once; no compiler is needed for that.

    `passes` receives what each pass did and how long it took.
    """
    sources = prepare(source, options, passes)
    for _ in emit_blocks(sources):
        pass
    return sources


def prepare(source: ModelSource, options: Options, passes: Passes | None = None) -> Sources:
    """What is to be compiled, no block of it emitted yet. Raises CompileError or ConfigError."""
    program = read_program(source, options.dtype, options.max_batch_tokens, options.ranks)
    if options.deterministic:
        _check_deterministic(program, options.arch)
    rules = select_rules(options.fuse, options.rules)
    variants = variants_for(program.max_tokens, deterministic=options.deterministic)
    return Sources(program, options, variants, rules, passes=passes or Passes())


def _check_deterministic(program: Program, arch: str) -> None:
    if parse_arch(arch) != 90 or program.dtype.bytes != 2:
        raise CompileError(
            f"--deterministic: its kernels are for sm_90a, in bfloat16 and float16, and not for {arch} in"
            f" {program.dtype.long_name}; leave it out, or run in NumPy, which is deterministic"
        )
    if program.max_tokens < LEAST_DETERMINISTIC:
        raise CompileError(
            f"--deterministic: the largest step has {program.max_tokens} tokens; it must have {LEAST_DETERMINISTIC} or"
            " more, of --max-batch-tokens and of the model's context"
        )


def emit_blocks(sources: Sources) -> Iterator[CompiledBlock]:
    """Trace, fuse, plan and emit one block after another; when all are, `sources.blocks` has them as a step runs them.

    `sample` comes first: NVRTC takes longest for it, and can begin while the others are emitted.
    """
    program, options = sources.program, sources.options
    samplers = [block for block in program.blocks if block in sampler.BEHIND_THE_MODEL]
    model = [block for block in program.blocks if block not in samplers]
    for block in [*sorted(samplers, key=lambda block: block.name, reverse=True), *model]:
        classes = [any_step(sources.variants)] if block in samplers else sources.variants
        begin = time.perf_counter()
        traced = program.trace(block)
        sources.passes.traced(traced, time.perf_counter() - begin)
        for variant in classes:
            target = Target(
                parse_arch(options.arch),
                variant.name,
                variant.min_tokens,
                variant.max_tokens,
                program.dtype,
                {} if options.deterministic else options.tuned,
                variant.decodes,
                options.deterministic,
            )
            sources.blocks.append(compile_block(traced, target, sources.rules, sources))
            yield sources.blocks[-1]
    order = [block.name for block in (*model, *samplers)]
    sources.blocks.sort(key=lambda compiled: order.index(compiled.block))


def compile_block(traced: Graph, target: Target, rules: Sequence[Rule], sources: Sources) -> CompiledBlock:
    """Fuse, plan and emit one block for one target."""
    passes = sources.passes.over(traced, target.variant)
    outcome = apply_rules(traced, rules, target, normalise=fold_weights, on_pass=passes.rule)
    with passes.timed("plan", "A kernel or a library product for every node, in launch order."):
        plan = plan_block(outcome.graph, target)
    passes.kernels = len(plan.steps)
    before = plan_block(traced, target)
    title = (
        f"{sources.program.source.name}: block {traced.name}, {target.min_tokens} to {target.max_tokens} token(s), "
        f"{target.dtype.long_name}, {sources.options.arch}. Emitted by Infernum {__version__}."
    )
    with passes.timed("emit", "The kernels rendered from their templates."):
        emitted = emit_block(plan, title)
    return CompiledBlock(traced.name, target, traced, outcome, plan, before, emitted)


def variants_for(largest: int, *, deterministic: bool = False) -> list[VariantSpec]:
    """The classes of steps up to `largest` tokens: one, a few (GEMV), tens, decodes of more, and prompts.

    `deterministic`: one class of steps that decode and one of all others, whose kernels sum in the same orders.
    """
    if deterministic:
        classes = [("decode", 1, MOST_DECODES, True), ("prefill", 1, largest, False)]
    else:
        classes = [
            ("t1", 1, 1, False),
            ("t8", 2, 8, False),
            ("t64", 9, 64, False),
            ("d128", 65, 128, True),
            ("decode", 129, MOST_DECODES, True),
            ("prefill", 65, largest, False),
        ]
    return [
        VariantSpec(
            name=name,
            min_tokens=low,
            max_tokens=min(high, largest),
            max_rows=min(high, largest, MAX_ROWS),
            decodes=decodes,
        )
        for name, low, high, decodes in classes
        if low <= largest
    ]


def describe(sources: Sources, cubins: Mapping[str, Cubin]) -> Manifest:
    """The manifest of a bundle."""
    options = sources.options
    blocks: dict[str, dict[str, BlockVariant]] = {}
    for block in sources.blocks:
        variant = spec_of(sources.variants, block.target.variant)
        blocks.setdefault(block.block, {})[variant.name] = describe_block(block, variant, cubins[block.stem])
    return describe_program(
        sources.program,
        blocks,
        sources.variants,
        arch=options.arch,
        nvrtc=nvrtc_version(),
        fuse=options.fuse,
        rules=[rule.name for rule in sources.rules],
        deterministic=options.deterministic,
    )


def _rules_text(sources: Sources) -> str:
    """What each rule did, block by block, for a person to read."""
    reasons = {rule.name: rule.why for rule in sources.rules}
    lines = ["Rules, in the order they were tried:", *(f"  {name}: {why}" for name, why in reasons.items())]
    for block in sources.blocks:
        lines += [
            "",
            f"{block.stem}: {len(block.before.steps)} kernels before, {len(block.plan.steps)} after",
        ]
        lines += [f"  {name} {fired(count)}" for name, count in block.outcome.fired.items() if count]
        lines += [f"  {r.rule} refused at {refusal(r.at, r.reason)}" for r in block.outcome.refused]
    return "\n".join(lines) + "\n"


def _log_kernels(manifest: Manifest) -> None:
    """Say what every step of every block became."""
    if not kernel_log.isEnabledFor(logs.LEVEL):
        return
    for variant in (v for block in manifest.blocks.values() for v in block.values()):
        for step in variant.kernels:
            facts = [f"{step.template} chosen", *(f"passed over {reason}" for reason in step.passed_over)]
            if step.registers:
                facts.append(f"{step.registers} registers, {step.spill_bytes} bytes spilled")
            kernel_log.info("%s.%s: %s: %s", variant.block, variant.variant, step.name, "; ".join(facts))
