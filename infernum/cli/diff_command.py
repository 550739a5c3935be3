"""`infernum diff`: what differs between two bundles."""

from __future__ import annotations

from pathlib import Path

import click

from infernum.cli import options


@click.command("diff", short_help="Show what differs between two bundles.")
@click.argument("a", type=options.path)
@click.argument("b", type=options.path)
@click.option("--block", help="Only this block.")
@click.option("--variant", help="Only this variant, a class of token counts, such as t1.")
@click.option("--source/--no-source", default=True, help="Show or hide the differences of the emitted CUDA.")
@click.option("--bench-a", type=options.path, metavar="FILE", help="Times of A, from `bench kernels --json`.")
@click.option("--bench-b", type=options.path, metavar="FILE", help="Times of B, from `bench kernels --json`.")
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Exit with 1 if B spills more, launches more kernels, moves more bytes, or takes over 3 % longer.",
)
@options.as_json
@options.verbose
def command(
    a: Path,
    b: Path,
    block: str | None,
    variant: str | None,
    source: bool,
    bench_a: Path | None,
    bench_b: Path | None,
    fail_on_regression: bool,
    as_json: bool,
) -> int:
    """Show what differs between the bundles A and B: facts, rules, graphs, kernels, sources, and times if given."""
    import msgspec

    from infernum.bundle import open_kernels
    from infernum.cli.console import print_json, print_lines, say, text_width
    from infernum.lab.explain.diff_text import diff_text
    from infernum.lab.explain.difference import difference, regressions
    from infernum.lab.explain.measurements import read_measurements

    if (bench_a is None) != (bench_b is None):
        raise click.UsageError("--bench-a and --bench-b go together: times are compared")
    first, second = open_kernels(a), open_kernels(b)
    times_a = None if bench_a is None else read_measurements(bench_a, first.manifest)
    times_b = None if bench_b is None else read_measurements(bench_b, second.manifest)
    diff = difference(first, second, block=block, variant=variant, source=source, benches=(times_a, times_b))
    worse = regressions(diff)
    if as_json:
        print_json({**msgspec.to_builtins(diff), "regressions": worse})
    else:
        print_lines(diff_text(diff, text_width()))
    if not fail_on_regression or not worse:
        return 0
    for line in worse:
        say(f"regression: {line}", err=True)
    return 1
