"""`infernum bench engine`: what a step costs the host, without a GPU."""

from __future__ import annotations

from pathlib import Path

import click

from infernum.cli import options
from infernum.cli.bench_results import write_results


def _read_sizes(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    del ctx, param
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in value.split(",")]
    if not all(1 <= size <= 1024 for size in sizes):
        raise click.BadParameter(f"{value!r} is not a list of numbers from 1 to 1024, such as 64,256,512")
    return sizes


@click.command("engine", short_help="Time what a step costs the host, without a GPU.")
@click.option(
    "--null",
    is_flag=True,
    required=True,
    help="Use an executor that computes nothing. There is no other yet.",
)
@click.option(
    "--seqs",
    "sizes",
    default="64,256,512",
    show_default=True,
    metavar="N,…",
    callback=_read_sizes,
    help="Numbers of sequences that run at once.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Number of steps to time for each of --seqs.",
)
@options.as_json
@click.option("--output", type=click.Path(path_type=Path), help="File to write the results to, as JSON.")
@options.verbose
def engine(null: bool, sizes: list[int], steps: int, as_json: bool, output: Path | None) -> None:
    """Time what the engine does on the CPU for each step.

    The executor returns tokens at once, without computing them. So many sequences run at once as --seqs says; in each
    step one of 160 ends and another arrives. Prompts have 200 to 520 tokens, and half of them share their beginnings.
    There is no text.

    Times are medians of the CPU time of one thread, so other work on the machine disturbs them little.
    """
    from infernum.cli.console import print_json, print_table
    from infernum.lab.measure.host import measure_host

    del null
    results = measure_host(sizes, steps)
    write_results(results, output)
    if as_json:
        print_json(results)
        return
    columns = (
        "sequences",
        "µs a step",
        "10 % within",
        "fastest",
        "99 % within",
        "arrivals",
        "prompt tokens",
        "cached",
        "ahead",
    )
    rows = [
        (
            cost["sequences"],
            f"{cost['us']:.0f}",
            f"{cost['p10_us']:.0f}",
            f"{cost['least_us']:.0f}",
            f"{cost['p99_us']:.0f}",
            f"{cost['arrivals']:.2f}",
            f"{cost['prompt_tokens']:.0f}",
            f"{cost['cached_share']:.0%}",
            f"{cost['ahead_share']:.1%}",
        )
        for cost in results["costs"]
    ]
    print_table(f"The host's work for a step, on {results['cpu']}", columns, rows, numbers=columns)
