"""`infernum bench`: the time of a model on this GPU, next to its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options
from infernum.cli.bench_engine import engine
from infernum.cli.bench_latency import latency
from infernum.cli.bench_plot import plot
from infernum.cli.bench_results import title_of, write_results
from infernum.cli.bench_serve import serve
from infernum.cli.bench_throughput import throughput

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.opening import Progress


BURSTS = (
    "the steps ran slower one behind another, as graphs, than with pauses: at its power limit a GPU lowers its clock. "
    "What short kernels seem to take in place is then as uncertain as that; see alone"
)
"""Why the kernels of a step may take longer, summed, than the step."""


@click.group("bench", short_help="Measure latency, throughput, a server or single kernels; plot results.")
def command() -> None:
    """Measure a model on the GPU, next to the bound that its memory sets."""


@command.command("kernels", short_help="Time every kernel of a step in its place.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    help="The bundle's model; without BUNDLE, the model to compile and measure: a preset or a folder.",
)
@click.option(
    "--variant",
    help="Variant to measure, a class of token counts: t1, t8, t64, decode or prefill.  [default: t1]",
)
@click.option("--tokens", type=int, help="Number of tokens in the step, instead of --variant.")
@click.option(
    "--context",
    type=int,
    default=512,
    show_default=True,
    help="Positions of each sequence, including the new ones.",
)
@click.option(
    "--kernel",
    "names",
    multiple=True,
    metavar="NAME",
    help="Verify and report only this kernel. May be repeated.  [default: all]",
)
@options.subject
@options.dtype
@click.option(
    "--repeats", type=int, default=10, show_default=True, help="Number of rounds; the fastest one counts."
)
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print the kernels as CSV.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write the results to, as JSON.")
@options.plugin
@options.verbose
def kernels(
    bundle: Path | None,
    model: str | None,
    variant: str | None,
    tokens: int | None,
    context: int,
    names: tuple[str, ...],
    load_format: str,
    fuse: bool | None,
    dtype: str,
    repeats: int,
    as_json: bool,
    as_csv: bool,
    output: Path | None,
) -> None:
    """Time every kernel of a step of BUNDLE in its place.

    Next to the time of a kernel stands its bound, measured in the same run. Kernels are sorted by the time that they
    lose against their bounds. The time of the step that belongs to no kernel is printed too. Every kernel of the
    variant is verified first; if one is wrong, no time is printed. With --kernel, only the named kernels are verified
    and printed.

    The time of a kernel in place is the difference of two times: of the step cut after this kernel, and of the step
    cut before it. The time of the kernel alone stands beside it.
    """
    from infernum.cli.console import print_json, progress_bar, warn
    from infernum.lab.measure.kernels import measure_kernels
    from infernum.lab.measure.subject import open_subject

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    with progress_bar() as progress:
        subject = open_subject(
            "bench kernels", bundle, model, load_format=load_format, fuse=fuse, dtype=dtype, progress=progress
        )
        warn(subject.warnings)

        def check(bundle: Bundle, variant: str) -> None:
            _check_kernels(bundle, variant, names, progress)

        results = measure_kernels(
            subject.bundle,
            subject.checkpoint,
            check,
            variant=variant,
            tokens=tokens,
            context=context,
            repeats=repeats,
            kernels=names,
            progress=progress,
        )
    write_results(results, output)
    if as_json:
        print_json(results)
    elif as_csv:
        _print_csv(results["kernels"])
    else:
        _print_kernels(results, whole=not names)


def _check_kernels(bundle: Bundle, variant: str, names: Sequence[str], progress: Progress | None) -> None:
    """Raises DeviceError unless the kernels in `names`, or all of a variant, agree with NumPy."""
    from infernum.errors import DeviceError
    from infernum.lab.verify.bench import open_bench
    from infernum.lab.verify.verdict import select_units, verify_units

    with open_bench() as bench:
        units = select_units(bundle, kernels=names or None, variant=variant)
        verdicts = verify_units(bundle, bench, units, timed=False, progress=progress)
    for verdict in verdicts:
        if not verdict.ok:
            raise DeviceError(
                f"{verdict.block}.{verdict.variant}: {verdict.kernel} is wrong ({verdict.wrong[0]});"
                f" no result is given; see `infernum verify {bundle.folder}`"
            )


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _print_kernels(results: dict[str, Any], *, whole: bool) -> None:
    from infernum.cli.console import print_table

    rows = [
        (
            f"{k['block']}: {k['kernel']}",
            k["layers"],
            f"{k['us']:.2f}",
            f"{k['alone_us']:.2f}",
            f"{k['bytes'] / 1e6:.3f}",
            f"{k['flops'] / 1e6:.2f}",
            f"{k['floor_us']:.2f}",
            f"{k['fraction']:.0%}" if k["us"] > 0 else "–",
            f"{k['share']:.1%}",
            f"{k['gain_us']:.1f}",
        )
        for k in results["kernels"]
    ]
    columns = ("kernel", "launches", "µs", "alone", "MB", "MFLOP", "bound", "of it", "of step", "gain µs")
    title = f"{title_of(results)}: {results['variant']}, {results['tokens']} token(s) at context {results['context']}"
    print_table(title, columns, rows, numbers=columns[1:])
    rate = results["flops_per_second"]
    speeds = f"{results['read_bandwidth_gb_s']:.0f} GB/s" + (f", {rate / 1e12:.0f} TFLOP/s" if rate else "")
    wall, graph = 1e3 * results["ms_per_step"], 1e3 * results["graph_ms"]
    sums = [
        ("step, wall clock", f"{wall:.1f} µs"),
        ("kernels", f"{graph:.1f} µs, all of them as one graph{', which is the sum over the table' if whole else ''}"),
        ("unaccounted", f"{results['unaccounted_us']:.1f} µs ({results['unaccounted_share']:.1%}):"
         " starting graphs, copying tokens, the host"),
        ("bounds", f"{speeds}, measured in this run; µs, alone and bound are of one launch, gain is of the step"),
    ]  # fmt: skip
    if results["unaccounted_us"] < 0:
        sums.append(("note", BURSTS))
    print_table("Where a step's time goes", ("", ""), sums)


command.add_command(engine)
command.add_command(latency)
command.add_command(throughput)
command.add_command(serve)
command.add_command(plot)
