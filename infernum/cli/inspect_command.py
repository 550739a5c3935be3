"""`infernum inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import BlockVariant, Bundle, Kernel, TensorSpec


@click.command("inspect", short_help="Show what is in a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--block", help="Only this block: its kernels, memory plan, weights and refused rules.")
@click.option("--variant", help="Only this class of token counts, such as t1.")
@click.option("--kernel", help="Only this kernel.")
@click.option(
    "--source", is_flag=True, help="Print the CUDA source of --kernel, or of the one --block and --variant."
)
@options.as_json
@options.verbose
def command(
    bundle: Path, block: str | None, variant: str | None, kernel: str | None, source: bool, as_json: bool
) -> None:
    """Show what is in BUNDLE: its manifest, blocks, kernels, memory plan, weights and refused rules."""
    from infernum.bundle import open_bundle
    from infernum.cli.console import print_json

    opened = open_bundle(bundle)
    chosen = _choose(opened, block, variant, kernel)
    if source:
        click.echo(_source(opened, chosen, kernel), nl=False)
    elif as_json:
        print_json(
            _as_json(opened, chosen, kernel, whole=block is None and variant is None and kernel is None)
        )
    elif kernel is not None:
        _print_kernel(chosen, kernel)
    elif block is not None or variant is not None:
        for found in chosen:
            _print_block(found)
    else:
        _print_overview(opened)


def _choose(bundle: Bundle, block: str | None, variant: str | None, kernel: str | None) -> list[BlockVariant]:
    """The block variants asked for. Raises BundleError when there are none."""
    from infernum.errors import BundleError

    every = [v for variants in bundle.manifest.blocks.values() for v in variants.values()]
    for what, wanted, known in (
        ("block", block, list(bundle.manifest.blocks)),
        ("variant", variant, [v.name for v in bundle.manifest.variants]),
        ("kernel", kernel, sorted({k.name for v in every for k in v.kernels})),
    ):
        if wanted is not None and wanted not in known:
            raise BundleError(f"{bundle.folder}: has no {what} {wanted!r}; it has {', '.join(known)}")
    chosen = [
        v
        for v in every
        if block in (None, v.block)
        and variant in (None, v.variant)
        and (kernel is None or any(k.name == kernel for k in v.kernels))
    ]
    if not chosen:
        raise BundleError(f"{bundle.folder}: has no kernel {kernel!r} in that block and variant")
    return chosen


def _source(bundle: Bundle, chosen: list[BlockVariant], kernel: str | None) -> str:
    """The emitted file of one block variant, or the part of it that is one kernel."""
    variant = chosen[0]
    if kernel is None and len(chosen) > 1:
        raise click.UsageError(
            "--source shows one kernel or one file; add --kernel, or --block and --variant"
        )
    text = bundle.read(variant.source).decode()
    if kernel is None:
        return text
    section = f"// ---- {kernel}\n"
    start = text.find(section)
    if start < 0:
        return text
    end = text.find("\n// ---- ", start)
    note = f"// {variant.source} of {bundle.folder}\n"
    return note + text[start + len(section) : end if end > 0 else len(text)].rstrip() + "\n"


def _as_json(bundle: Bundle, chosen: list[BlockVariant], kernel: str | None, *, whole: bool) -> object:
    import msgspec

    if whole:
        return msgspec.to_builtins(bundle.manifest)
    if kernel is not None:
        found = [(v, k) for v in chosen for k in v.kernels if k.name == kernel]
        return {
            "kernels": [{"block": v.block, "variant": v.variant, **msgspec.to_builtins(k)} for v, k in found]
        }
    return {"blocks": [msgspec.to_builtins(v) for v in chosen]}


def _print_overview(bundle: Bundle) -> None:
    from infernum.cli.console import print_table

    manifest, model = bundle.manifest, bundle.manifest.model
    facts = [
        ("model", f"{model.name} ({model.family}), {model.num_layers} layers, vocabulary {model.vocab_size}"),
        ("context", f"{model.context} tokens, in pages of {manifest.page_size}"),
        ("configuration", model.config_hash[:16]),
        (
            "compiled for",
            f"{manifest.arch}, {manifest.dtype}, by Infernum {manifest.infernum}, NVRTC {manifest.nvrtc}",
        ),
        ("rules", ", ".join(manifest.rules) or "none"),
        ("samplers", ", ".join(manifest.samplers)),
    ]
    print_table(str(bundle.folder), ("", ""), facts)
    variants = [(v.name, f"{v.min_tokens} to {v.max_tokens}", v.max_rows) for v in manifest.variants]
    print_table("Variants", ("variant", "tokens", "logit rows"), variants, numbers=("logit rows",))
    rows = [
        (
            v.block,
            v.variant,
            v.kernels_before_fusion,
            len(v.steps),
            max((k.registers for k in v.kernels), default=0) or "–",
            sum(k.spill_bytes for k in v.kernels),
            _size(v.arena_bytes),
            ", ".join(f"{name} ×{count}" for name, count in v.fired.items() if count),
        )
        for block in manifest.blocks.values()
        for v in block.values()
    ]
    columns = (
        "block",
        "variant",
        "before",
        "kernels",
        "registers",
        "spilled bytes",
        "arena",
        "rules that fired",
    )
    print_table("Blocks", columns, rows, numbers=columns[2:7])


def _print_block(found: BlockVariant) -> None:
    from infernum.bundle import Launch
    from infernum.cli.console import print_table

    name = f"{found.block}.{found.variant}"
    by_name = {k.name: k for k in found.kernels}
    steps = [
        _launch_row(step, by_name.get(step.kernel))
        if isinstance(step, Launch)
        else ("gemm", step.name, f"{step.m} × {step.n} × {step.k}, {step.dtype}", "", "", "", "linear")
        for step in found.steps
    ]
    columns = ("", "name", "grid, block", "shared", "registers", "spilled", "ops")
    print_table(f"{name}: steps, in order", columns, steps, numbers=columns[3:6])
    buffers = [(n, _type(b.spec), b.offset) for n, b in found.buffers.items()]
    title = f"{name}: arena of {_size(found.arena_bytes)}"
    print_table(title, ("buffer", "type", "offset"), buffers, numbers=("offset",))
    weights = [(n, _type(w.spec), ", ".join(w.parts)) for n, w in found.weights.items()]
    print_table(f"{name}: weights", ("weight", "type", "checkpoint tensors"), weights)
    refused = [(r.rule, r.at, r.reason) for r in found.refused]
    print_table(f"{name}: rules refused", ("rule", "at", "because"), refused)


def _launch_row(step: object, kernel: Kernel | None) -> tuple[object, ...]:
    from infernum.bundle import Launch

    assert isinstance(step, Launch)
    grid = f"({', '.join(map(str, step.grid))}), {' × '.join(str(n) for n in step.block if n > 1) or 1}"
    if kernel is None:
        return ("launch", step.kernel, grid, step.shared_bytes, "", "", "")
    shared = step.shared_bytes + kernel.static_shared_bytes
    return ("launch", step.kernel, grid, shared, kernel.registers, kernel.spill_bytes, ", ".join(kernel.ops))


def _print_kernel(chosen: list[BlockVariant], kernel: str) -> None:
    from infernum.cli.console import print_table

    for found in chosen:
        for k in (k for k in found.kernels if k.name == kernel):
            facts = [
                ("template", f"{k.template}.cu.j2"),
                ("ops", ", ".join(k.ops)),
                ("rules", ", ".join(k.rules) or "none"),
                ("from", ", ".join(k.where)),
                ("bytes", k.bytes),
                ("FLOPs", k.flops),
                ("registers", k.registers),
                ("stack, spilled bytes", f"{k.stack_bytes}, {k.spill_bytes}"),
                ("static shared bytes", k.static_shared_bytes),
            ]
            print_table(f"{found.block}.{found.variant}: {k.name}", ("", ""), facts)


def _type(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def _size(nbytes: int) -> str:
    """Bytes in a unit that keeps the number short."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << power:
            return f"{nbytes / (1 << power):.1f} {unit}"
    return f"{nbytes} B"
