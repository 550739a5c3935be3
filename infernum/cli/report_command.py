"""`infernum report`: one HTML file that shows what the compiler did."""

from __future__ import annotations

from pathlib import Path

import click

from infernum.cli import options


@click.command("report", short_help="Write one HTML file that shows what the compiler did.")
@click.argument("bundle", type=options.path)
@click.option(
    "-o",
    "--output",
    type=options.path,
    default=Path("report.html"),
    show_default=True,
    help="File to write, whose name ends in .html. An existing file is replaced.",
)
@click.option(
    "--bench",
    type=options.path,
    metavar="FILE",
    help="Measured times: a file with the output of `infernum bench kernels --json`.",
)
@options.plugin
@options.verbose
def command(bundle: Path, output: Path, bench: Path | None) -> None:
    """Write one HTML file about BUNDLE: graphs before and after fusion, kernels, rules, memory and roofline.

    The file holds everything it needs; a browser opens it without a network.
    """
    from infernum.bundle import open_kernels
    from infernum.cli.output import write_output
    from infernum.errors import InfernumError
    from infernum.lab.explain.measurements import read_measurements
    from infernum.lab.report.data import report_data
    from infernum.lab.report.html import html_of

    if output.suffix != ".html":
        raise InfernumError(f"{output}: a report's name ends in .html; choose one with -o")
    opened = open_kernels(bundle)
    measured = read_measurements(bench, opened.manifest) if bench is not None else None
    data = report_data(opened, measured)
    page = html_of(data, f"{opened.folder.resolve().name}: Infernum report").encode(errors="replace")
    write_output(output, page)
    click.echo(f"{output}: {len(page) / 1e6:.1f} MB; open it in a browser")
