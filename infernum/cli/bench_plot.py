"""`infernum bench plot`: results of `bench latency` and `bench throughput` as bars, in an SVG."""

from __future__ import annotations

from pathlib import Path

import click

from infernum.cli import options
from infernum.cli.output import write_output


@click.command("plot", short_help="Draw results of `bench latency` and `bench throughput` as an SVG.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="SVG file to write.")
@options.verbose
def plot(results: tuple[Path, ...], output: Path) -> None:
    """Draw the milliseconds per token in RESULTS, files that `bench latency` or `bench throughput --output` wrote.

    One group of bars for each model and size: the bound, Infernum fused and not fused, and what it was compared with.
    Of `bench throughput`, the steps of equal requests are drawn.
    The picture is 700 pixels wide, and follows the reader's choice of a light or a dark page.
    """
    from infernum.lab.measure.plot import draw, groups_of, read_results

    write_output(output, draw(groups_of(read_results(results))), make_folders=True)
