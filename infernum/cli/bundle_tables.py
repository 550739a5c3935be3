"""The tables of `infernum inspect`: a bundle as a whole, a block variant, a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infernum.bundle import not_rebuilt
from infernum.cli.console import print_table, size_text
from infernum.ir.recipe_text import recipe_text
from infernum.manifest import Gemm, Launch, every_variant

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.manifest import BlockVariant, Kernel, Manifest, Step


def print_overview(bundle: Bundle) -> None:
    """The manifest in a page."""
    manifest, model = bundle.manifest, bundle.manifest.model
    compiler = f"NVRTC {manifest.nvrtc}" if manifest.arch else "graphs only"
    ranks = f"{manifest.ranks} ranks, " if manifest.ranks > 1 else ""
    compiled_for = f"{manifest.arch or 'NumPy'}, {ranks}{manifest.dtype}, {compiler}"
    facts = [
        ("model", f"{model.name} ({model.family}), {model.num_layers} layers, vocabulary {model.vocab_size}"),
        ("context", f"{model.context} tokens, in pages of {manifest.page_size}"),
        ("configuration", model.config_hash[:16]),
        ("compiled for", f"{compiled_for}, by Infernum {manifest.infernum}"),
        ("rules", ", ".join(manifest.rules) or "none"),
        ("samplers", ", ".join(manifest.samplers)),
        ("plugins", ", ".join(f"{p.name} {p.sha256[:16]}" for p in manifest.plugins) or "none"),
        ("edited by hand", edits_text(manifest) or "nothing"),
        *(("not rebuilt", _waiting(bundle, name)) for name in not_rebuilt(bundle)),
    ]
    print_table(str(bundle.folder), ("", ""), facts)
    variants = [(v.name, f"{v.min_tokens} to {v.max_tokens}", v.max_rows) for v in manifest.variants]
    print_table("Variants", ("variant", "tokens", "logit rows"), variants, numbers=("logit rows",))
    rows = [
        (
            *sizes_of(v),
            size_text(v.arena_bytes),
            ", ".join(f"{name} ×{count}" for name, count in v.fired.items() if count),
        )
        for v in every_variant(manifest)
    ]
    numbers = ("before", "kernels", "registers", "spilled bytes", "arena")
    print_table("Blocks", ("block", "variant", *numbers, "rules that fired"), rows, numbers=numbers)


def edits_text(manifest: Manifest) -> str:
    """The recorded edits, such as "decoder.t1.cu (gemv_o_proj)"; "" where there are none."""
    return ", ".join(f"{name} ({', '.join(edit.kernels)})" for name, edit in manifest.edits.items())


def _waiting(bundle: Bundle, name: str) -> str:
    """A sentence about a file that was edited and is not compiled yet."""
    return f"{name} differs from what was compiled; run `infernum rebuild {bundle.folder}`"


def edited_kernels(bundle: Bundle, variant: BlockVariant) -> list[str]:
    """The kernels of a block variant that were edited and rebuilt."""
    edit = bundle.manifest.edits.get(variant.source)
    return edit.kernels if edit else []


def print_block(bundle: Bundle, variant: BlockVariant) -> None:
    """Steps, memory plan, weights, and what the rules did."""
    name = f"{variant.block}.{variant.variant}"
    edited = edited_kernels(bundle, variant)
    steps = [
        _step_row(step, kernel, kernel.name in edited)
        for step, kernel in zip(variant.steps, variant.kernels, strict=True)
    ]
    columns = ("", "name", "grid, block", "shared", "registers", "spilled", "instead of", "ops")
    print_table(f"{name}: steps, in order", columns, steps, numbers=columns[3:7])
    notes = [("edited by hand", ", ".join(edited))] if edited else []
    if variant.source in not_rebuilt(bundle):
        notes.append(("not rebuilt", _waiting(bundle, variant.source)))
    if notes:
        print_table(f"{name}: {variant.source}", ("", ""), notes)
    buffers = [(n, b.spec.type_text, b.offset) for n, b in variant.buffers.items()]
    title = f"{name}: arena of {size_text(variant.arena_bytes)}"
    print_table(title, ("buffer", "type", "offset"), buffers, numbers=("offset",))
    weights = [
        (n, w.spec.type_text, recipe_text(w.recipe, tuple(w.spec.shape))) for n, w in variant.weights.items()
    ]
    print_table(f"{name}: weights", ("weight", "type", "made of"), weights)
    fired = [(f.rule, f.at, f.made) for f in variant.firings]
    print_table(f"{name}: rules fired, in order", ("rule", "at", "made"), fired)
    refused = [(r.rule, r.at, r.reason) for r in variant.refused]
    print_table(f"{name}: rules refused", ("rule", "at", "because"), refused)


def _step_row(step: Step, kernel: Kernel, edited: bool) -> tuple[object, ...]:
    before, ops = kernel.before.kernels, ", ".join(kernel.ops)
    if isinstance(step, Gemm):
        return ("gemm", step.name, f"{step.m} × {step.n} × {step.k}, {step.dtype}", "", "", "", before, ops)
    grid = f"({', '.join(map(str, step.grid))}), {' × '.join(str(n) for n in step.block if n > 1) or 1}"
    resources = (step.shared_bytes + kernel.static_shared_bytes, kernel.registers, kernel.spill_bytes)
    return ("edited" if edited else "launch", step.kernel, grid, *resources, before, ops)


def print_kernel(bundle: Bundle, variant: BlockVariant, name: str) -> None:
    """What is known of the steps of one name in a block variant."""
    waiting = variant.source in not_rebuilt(bundle)
    for step, k in zip(variant.steps, variant.kernels, strict=True):
        if k.name != name:
            continue
        emitted = isinstance(step, Launch)
        edited = k.name in edited_kernels(bundle, variant)
        facts: list[tuple[str, object]] = [
            ("template", f"{k.template}.cu.j2" if emitted else "none, a product of cuBLASLt"),
            (
                "source",
                f"{variant.source}, edited by hand" if edited else variant.source if emitted else None,
            ),
            ("not rebuilt", _waiting(bundle, variant.source) if waiting and emitted else None),
            ("node", k.node),
            ("ops", ", ".join(k.ops)),
            ("rules", ", ".join(k.rules) or "none"),
            ("traced nodes", ", ".join(k.origin)),
            ("from", ", ".join(k.where)),
            ("bytes, FLOPs", f"{k.bytes}, {k.flops}"),
            ("instead of", _before(k)),
            *(("passed over", reason) for reason in k.passed_over),
        ]
        if emitted:
            facts += [
                ("registers", k.registers),
                ("stack, spilled bytes", f"{k.stack_bytes}, {k.spill_bytes}"),
                ("shared bytes", f"{k.static_shared_bytes} static, {step.shared_bytes} dynamic"),
            ]
        rows = [(what, value) for what, value in facts if value is not None]
        print_table(f"{variant.block}.{variant.variant}: {k.name}", ("", ""), rows)


def _before(kernel: Kernel) -> str:
    before = kernel.before
    if not before.kernels:
        return "nothing more: the step before it has what their node cost"
    return f"{before.kernels} kernel(s): {before.bytes} bytes, {before.flops} FLOPs"


def sizes_of(variant: BlockVariant) -> tuple[object, ...]:
    """Block, variant, kernels before and after fusion, most registers of a kernel, and spilled bytes."""
    registers = max((k.registers for k in variant.kernels), default=0) or "–"
    spilled = sum(k.spill_bytes for k in variant.kernels)
    kernels = (variant.kernels_before_fusion, len(variant.steps))
    return (variant.block, variant.variant, *kernels, registers, spilled)
