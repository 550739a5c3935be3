"""`infernum inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.manifest import BlockVariant


@click.command("inspect", short_help="Show what is in a bundle.")
@click.argument("bundle", type=options.path)
@click.option("--block", help="Only this block: its kernels, memory plan, weights and refused rules.")
@click.option("--variant", help="Only this variant, a class of token counts, such as t1.")
@click.option("--kernel", help="Only this kernel.")
@click.option(
    "--source", is_flag=True, help="Print the CUDA source of --kernel, or the file of --block and --variant."
)
@options.as_json
@options.verbose
def command(
    bundle: Path, block: str | None, variant: str | None, kernel: str | None, source: bool, as_json: bool
) -> None:
    """Show what is in BUNDLE: its manifest, blocks, kernels, memory plan, weights and refused rules."""
    from infernum.bundle import not_rebuilt, open_bundle
    from infernum.cli import bundle_tables
    from infernum.cli.console import print_json

    opened = open_bundle(bundle)
    if kernel is not None or source:
        opened.check_kernels()
    chosen = _choose(opened, block, variant, kernel)
    if source:
        file, text = _source(opened, chosen, kernel)
        if as_json:
            edited = file in not_rebuilt(opened)
            print_json({"file": file, "kernel": kernel, "not_rebuilt": edited, "source": text})
        else:
            click.echo(text, nl=False)
    elif as_json:
        whole = (block, variant, kernel) == (None, None, None)
        print_json(_as_json(opened, None if whole else chosen, kernel))
    elif kernel is not None:
        for each in chosen:
            bundle_tables.print_kernel(opened, each, kernel)
    elif block is not None or variant is not None:
        for each in chosen:
            bundle_tables.print_block(opened, each)
    else:
        bundle_tables.print_overview(opened)


def _choose(bundle: Bundle, block: str | None, variant: str | None, kernel: str | None) -> list[BlockVariant]:
    """The block variants that the options select. Raises BundleError when there are none."""
    from infernum.errors import BundleError
    from infernum.manifest import every_variant, variant_names

    every = every_variant(bundle.manifest)
    for what, name, known in (
        ("block", block, list(bundle.manifest.blocks)),
        ("variant", variant, variant_names(bundle.manifest)),
        ("kernel", kernel, sorted({k.name for v in every for k in v.kernels})),
    ):
        if name is not None and name not in known:
            raise BundleError(f"{bundle.folder}: has no {what} {name!r}; it has {', '.join(known)}")
    chosen = [v for v in every if block in (None, v.block) and v.serves(variant)]
    if kernel is not None:
        chosen = [v for v in chosen if any(k.name == kernel for k in v.kernels)]
    if not chosen:
        raise BundleError(f"{bundle.folder}: has no kernel {kernel!r} in that block and variant")
    return chosen


def _source(bundle: Bundle, chosen: list[BlockVariant], kernel: str | None) -> tuple[str, str]:
    """A file, and its source as it is now, or the part of it that is one kernel."""
    from infernum.bundle import file_state, sections
    from infernum.cli.console import say
    from infernum.errors import BundleError

    if kernel is None and len(chosen) > 1:
        raise click.UsageError(
            "--source shows one kernel or one file; add --kernel, or --block and --variant"
        )
    emitted = [v for v in chosen if any(k.name == kernel and k.source_hash for k in v.kernels)]
    if kernel is not None and not emitted:
        raise BundleError(f"{bundle.folder}: {kernel} is a product of cuBLASLt; there is no source to show")
    variant = emitted[0] if emitted else chosen[0]
    if file_state(bundle, variant.source) == "edited":
        text = bundle.read_as_it_is(variant.source).decode(errors="replace")
        note = f"{variant.source} differs from what was compiled; run `infernum rebuild {bundle.folder}`"
        say(f"note: {note}", err=True)
    else:
        text = bundle.read(variant.source).decode()
    if kernel is None:
        return variant.source, text
    parts = sections(text)
    heading = f"// {variant.source} of {bundle.folder}\n"
    return variant.source, heading + parts[kernel] if kernel in parts else text


def _as_json(bundle: Bundle, chosen: list[BlockVariant] | None, kernel: str | None) -> object:
    """The manifest or the chosen part of it, with the edits, and the files that are yet to be rebuilt."""
    from msgspec import to_builtins

    from infernum.bundle import not_rebuilt
    from infernum.cli.bundle_tables import edited_kernels

    waiting = not_rebuilt(bundle)
    if chosen is None:
        return to_builtins(bundle.manifest) | {"not_rebuilt": waiting}
    if kernel is None:
        blocks = [
            to_builtins(v) | {"edited": edited_kernels(bundle, v), "not_rebuilt": v.source in waiting}
            for v in chosen
        ]
        return {"blocks": blocks}
    kernels = [
        {"block": v.block, "variant": v.variant}
        | to_builtins(k)
        | {"edited": kernel in edited_kernels(bundle, v), "not_rebuilt": v.source in waiting}
        for v in chosen
        for k in v.kernels
        if k.name == kernel
    ]
    return {"kernels": kernels}
