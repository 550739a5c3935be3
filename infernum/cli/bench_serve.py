"""`infernum bench serve`: what a server makes its clients wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infernum.cli import options
from infernum.cli.bench_results import write_results
from infernum.cli.bench_throughput import numbers, quantiles

CONCURRENCIES = (1, 8, 64)
NULL_CONCURRENCIES = (64, 256)


def _read_goodput(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, float]:
    """Limits in milliseconds by name. Raises BadParameter."""
    del ctx
    limits: dict[str, float] = {}
    for part in value.split(",") if value else ():
        name, _, limit = part.partition(":")
        if name not in ("first", "gap") or not limit.replace(".", "", 1).isdecimal():
            raise click.BadParameter(f"{value!r} is not such as first:200,gap:20", param=param)
        limits[name] = float(limit)
    return limits


@click.command("serve", short_help="Time a server: first tokens, gaps and throughput.")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--concurrency",
    "concurrencies",
    callback=numbers(int),
    metavar="N,…",
    help="Requests at once, a new one for each that ends.  [default: 1,8,64 unless --rate is given]",
)
@click.option(
    "--rate",
    "rates",
    callback=numbers(float),
    metavar="R,…",
    help="Requests that come at random, R a second on average.",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    help="Number of requests of each scenario.  [default: 4 for each of --concurrency, at least 16; 64 at a rate]",
)
@click.option(
    "--prompt", type=click.IntRange(1), default=512, show_default=True, help="Number of prompt tokens."
)
@click.option(
    "--tokens", type=click.IntRange(1), default=128, show_default=True, help="Number of output tokens."
)
@click.option("--mixed", is_flag=True, help="Requests of mixed lengths, 64 to 1024 in and 64 to 256 out.")
@click.option("--model", help="The server's name of the model.  [default: the first that it lists]")
@click.option(
    "--api-key", "key", envvar="INFERNUM_API_KEY", metavar="KEY", help="Key that the server asks for."
)
@click.option(
    "--goodput",
    callback=_read_goodput,
    metavar="first:MS,gap:MS",
    help="Also count the requests a second whose first token and mean gap stay within these milliseconds.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the times of --rate.")
@click.option(
    "--null",
    is_flag=True,
    help="Start a server of our own without a model, and measure the CPU time of its front alone.",
)
@options.as_json
@click.option("--output", type=click.Path(path_type=Path), help="File to write the results to, as JSON.")
@options.verbose
def serve(
    url: str,
    concurrencies: tuple[int, ...],
    rates: tuple[float, ...],
    requests: int | None,
    prompt: int,
    tokens: int,
    mixed: bool,
    model: str | None,
    key: str | None,
    goodput: dict[str, float],
    seed: int,
    null: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time the server at URL, any that has OpenAI's /v1/completions.

    Requests are streamed and greedy, and end tokens do not end them. Their prompts are token ids that no request had
    before. A time is one that 50, 90 or 99 % stay within: to the first token, from one event of a stream to the next
    (gap), and between tokens on average over a request (token).

    A few requests ahead of each scenario are not timed.
    """
    try:
        from infernum.lab.measure.serving import ServingRequest, measure_front, measure_serving
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error.name} is not installed; run `pip install infernum[serve]`") from error
    from infernum.cli.console import print_json, print_table, progress_bar

    with progress_bar() as progress:
        if null:
            results = measure_front(concurrencies or NULL_CONCURRENCIES, tokens, requests, progress)
        else:
            request = ServingRequest(
                url=url,
                key=key,
                model=model,
                concurrencies=concurrencies or (() if rates else CONCURRENCIES),
                rates=rates,
                requests=requests,
                prompt=prompt,
                tokens=tokens,
                mixed=mixed,
                goodput=goodput,
                seed=seed,
            )
            results = measure_serving(request, progress)
    write_results(results, output)
    if as_json:
        print_json(results)
    elif null:
        rows = [_front_row(scenario) for scenario in results["scenarios"]]
        columns = ("streams", "pace", "µs a token", "tokens/s", "tokens an event")
        print_table(f"The front of the server alone, on {results['cpu']}", columns, rows, numbers=columns)
    else:
        lines = [line for scenario in results["scenarios"] for line in _lines(scenario)]
        print_table(f"{results['model']} at {results['url']}", ("", ""), lines)


def _front_row(scenario: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(scenario["concurrency"]),
        "held" if scenario["paced"] else "full",
        f"{scenario['server_cpu_us_per_token']:.1f}",
        f"{scenario['output_tokens_per_second']:.0f}",
        f"{scenario['tokens_per_event']:.2f}",
    )


def _lines(scenario: dict[str, Any]) -> list[tuple[str, str]]:
    kind = scenario["scenario"]
    size = scenario[kind]
    name = f"{size} at once" if kind == "concurrency" else f"{size:g} requests/s"
    lines = [
        (
            name,
            f"{scenario['output_tokens_per_second']:.0f} tokens/s out, {scenario['requests']} requests"
            f" in {scenario['seconds']:.1f} s",
        ),
        ("  first token", quantiles(scenario["first_token_ms"])),
        ("  gap", quantiles(scenario["gap_ms"])),
        ("  token", quantiles(scenario["token_ms"])),
    ]
    if scenario["goodput"] is not None:
        lines.append(("  good", f"{scenario['goodput']['requests_per_second']:.2f} requests/s"))
    if scenario["server_cpu_us_per_token"] is not None:
        lines.append(
            ("  server", f"{scenario['server_cpu_us_per_token']:.0f} µs of CPU time for each token out")
        )
    lines += [("  errors", f"{number} × {error}") for error, number in scenario["errors"].items()]
    return lines
