"""`infernum bench throughput`: many requests at once or at a rate, next to the bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from infernum.cli import options
from infernum.cli.bench_results import title_of, write_results
from infernum.sampling_params import listed

Number = TypeVar("Number", int, float)

BATCHES = "8,64,256"


def numbers(kind: Callable[[str], Number]) -> Callable[..., tuple[Number, ...]]:
    """A callback that reads numbers separated by commas. Raises BadParameter."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Number, ...]:
        del ctx
        try:
            return tuple(kind(part) for part in value.split(",")) if value else ()
        except ValueError as error:
            raise click.BadParameter(
                f"{value!r} is no list of numbers such as {BATCHES}", param=param
            ) from error

    return read


@click.command("throughput", short_help="Time many requests, at once or at a rate.")
@click.option(
    "--model", default="llama", show_default=True, help="A preset or a folder in Hugging Face's format."
)
@options.load_format
@options.device
@click.option(
    "--batch",
    "batches",
    callback=numbers(int),
    metavar="N,…",
    help=f"Equal requests at once, decoded together.  [default: {BATCHES} unless --mixed or --rate is given]",
)
@click.option(
    "--prompt", type=int, default=512, show_default=True, help="Number of prompt tokens of equal requests."
)
@click.option(
    "--tokens", type=int, default=256, show_default=True, help="Number of output tokens of equal requests."
)
@click.option("--mixed", is_flag=True, help="Requests of mixed lengths, all at once.")
@click.option(
    "--rate",
    "rates",
    callback=numbers(float),
    metavar="R,…",
    help="Requests of mixed lengths that come at random, R a second on average.",
)
@click.option(
    "--requests", type=int, default=512, show_default=True, help="Number of requests of mixed lengths."
)
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Apply the fusion rules.")
@options.deterministic
@options.rules
@options.dtype
@click.option(
    "--repeats",
    type=int,
    default=2,
    show_default=True,
    help="Number of runs of --batch and --mixed; times are their medians.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights and of --rate.")
@options.as_json
@click.option("--output", type=click.Path(path_type=Path), help="File to write the results to, as JSON.")
@options.plugin
@options.verbose
def throughput(
    model: str,
    load_format: str,
    device: str,
    batches: tuple[int, ...],
    prompt: int,
    tokens: int,
    mixed: bool,
    rates: tuple[float, ...],
    requests: int,
    fuse: bool,
    deterministic: bool,
    rules: str,
    dtype: str,
    repeats: int,
    seed: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time many requests through the engine: equal ones, mixed ones, or ones that come at a rate.

    Of equal requests, tokens are counted from when each has its first token until one has its last. Mixed requests have
    64 to 1024 tokens in and 64 to 256 out, and all tokens count, in and out. At a rate, the time to the first token and
    the gaps between tokens are those that 50, 90 and 99 % stay below.

    No number is printed unless the tokens of some requests are the most likely ones when they are computed again, each
    request alone. The bound is the time in which the GPU reads the weights once a step and the cache once a token, or
    computes the products, at the speeds measured in this run.
    """
    from infernum.cli.console import print_json, print_table, progress_bar, warn
    from infernum.lab.measure.throughput import ThroughputRequest, measure_throughput
    from infernum.machine import choose_device
    from infernum.models.presets import resolve

    source = resolve(model)
    warn(source.warnings)
    if not (batches or mixed or rates):
        batches = tuple(int(part) for part in BATCHES.split(","))
    request = ThroughputRequest(
        source,
        load_format,
        dtype,
        fuse,
        options.split_rules(rules),
        seed,
        choose_device(device),
        batches=batches,
        prompt=prompt,
        tokens=tokens,
        mixed=mixed,
        requests=requests,
        rates=rates,
        deterministic=deterministic,
        repeats=repeats,
    )
    with progress_bar() as progress:
        results = measure_throughput(request, progress)
    write_results(results, output)
    if as_json:
        print_json(results)
    else:
        print_table(title_of(results), ("", ""), rows(results))


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the printed table."""
    lines = [line for scenario in results["scenarios"] for line in _lines(scenario)]
    if results["read_bandwidth_gb_s"] is not None:
        rate = results["flops_per_second"]
        flops = "" if rate is None else f" and {rate / 1e12:.0f} TFLOP/s"
        lines.append(("bounds", f"{results['read_bandwidth_gb_s']:.0f} GB/s{flops}, measured in this run"))
    return lines


def _lines(scenario: dict[str, Any]) -> list[tuple[str, str]]:
    bound = ""
    if scenario.get("fraction_of_bound") is not None:
        bound = f", {scenario['fraction_of_bound']:.1%} of the bound"
    match scenario["scenario"]:
        case "equal":
            name = f"{scenario['batch']} × {scenario['prompt_tokens']} in, {scenario['output_tokens']} out"
            step = f"{scenario['ms_per_step']:.3f} ms a step"
            return [(name, f"{scenario['tokens_per_second']:.0f} tokens/s, {step}{bound}")]
        case "mixed":
            name = f"{scenario['requests']} mixed requests"
            outputs = f"{scenario['output_tokens_per_second']:.0f} of them out"
            seconds = f"{scenario['seconds']:.2f} s"
            return [(name, f"{scenario['tokens_per_second']:.0f} tokens/s, {outputs}, {seconds}{bound}")]
        case _:
            name = f"{scenario['requests_per_second']:g} requests/s"
            return [
                (name, f"{scenario['output_tokens_per_second']:.0f} tokens/s out"),
                ("  first token", quantiles(scenario["first_token_ms"])),
                ("  gap", quantiles(scenario["gap_ms"])),
            ]


def quantiles(values: dict[str, float]) -> str:
    return f"{listed((f'{name} {value:.1f}' for name, value in values.items()), 'and')} ms"
