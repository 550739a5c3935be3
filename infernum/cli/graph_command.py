"""`infernum graph`: the graph of one block, as a drawing or as text for Graphviz."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.manifest import BlockVariant


@click.command("graph", short_help="Draw the graph of one block.")
@click.argument("bundle", type=options.path)
@click.argument("block")
@click.option("--variant", help="Variant, a class of token counts, such as t1. Default: the first.")
@click.option("--before", is_flag=True, help="Draw the graph as it was traced, before any rule.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["svg", "dot"]),
    help="svg: a drawing; dot: text for Graphviz. Default: the ending of FILE, or svg.",
)
@click.option(
    "-o",
    "--output",
    type=options.path,
    metavar="FILE",
    help="File to write instead of stdout. An existing file is replaced.",
)
@options.plugin
@options.verbose
def command(
    bundle: Path, block: str, variant: str | None, before: bool, format_: str | None, output: Path | None
) -> None:
    """Draw the graph of BLOCK in BUNDLE: one box for each node, one colour for each kernel."""
    from infernum.bundle import open_bundle
    from infernum.cli.console import say
    from infernum.cli.output import is_stream, write_output
    from infernum.lab.explain.graphs import graphs_of
    from infernum.lab.report.drawing import dot_of, picture_of, svg_of

    opened = open_bundle(bundle)
    chosen = _choose(opened, block, variant)
    traced, final = graphs_of(opened, chosen)
    picture = picture_of(traced if before else final, chosen, before=before)
    as_dot = format_ == "dot" or (format_ is None and output is not None and output.suffix in (".dot", ".gv"))
    text = dot_of(picture) if as_dot else svg_of(picture)
    if output is None:
        click.echo(text, nl=False)
        return
    write_output(output, text)
    say(f"{output}: {picture.title}", err=is_stream(output))


def _choose(bundle: Bundle, block: str, variant: str | None) -> BlockVariant:
    """The block variant of these names. Raises BundleError when there is none."""
    from infernum.errors import BundleError
    from infernum.manifest import variant_names

    blocks = bundle.manifest.blocks
    if block not in blocks:
        raise BundleError(f"{bundle.folder}: has no block {block!r}; it has {', '.join(blocks)}")
    known = variant_names(bundle.manifest)
    serving = [v for v in blocks[block].values() if v.serves(variant)]
    if variant not in (None, *known) or not serving:
        raise BundleError(f"{bundle.folder}: {block} has no variant {variant!r}; it has {', '.join(known)}")
    return serving[0]
