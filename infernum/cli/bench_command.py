"""`infernum bench`: what a model costs on this GPU, next to what it must cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.llm import Progress


BURSTS = (
    "the steps ran slower one behind another, as graphs, than with pauses: at its power limit a GPU lowers its clock. "
    "What short kernels seem to take in place is then as uncertain as that; see alone"
)
"""Why the parts of a step may come to more than the step."""


@click.group("bench", short_help="Measure latency or single kernels on the GPU, next to their bounds.")
def command() -> None:
    """Measure a model on the GPU, next to the bound that its memory sets."""


@command.command("kernels", short_help="Time every kernel of a step in its place.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model", help="Of the bundle; without one, what is compiled and measured: a preset or a folder."
)
@click.option(
    "--variant", help="The class of token counts to measure, such as t1, t8, t64 or prefill.  [default: t1]"
)
@click.option("--tokens", type=int, help="Tokens of the step, instead of --variant.")
@click.option(
    "--context",
    type=int,
    default=512,
    show_default=True,
    help="Positions of each sequence, new ones included.",
)
@options.subject
@options.dtype
@click.option(
    "--repeats", type=int, default=10, show_default=True, help="Rounds, of which the fastest counts."
)
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print the kernels as CSV.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the results there, as JSON.")
@options.plugin
@options.verbose
def kernels(
    bundle: Path | None,
    model: str | None,
    variant: str | None,
    tokens: int | None,
    context: int,
    load_format: str,
    fuse: bool | None,
    dtype: str,
    repeats: int,
    as_json: bool,
    as_csv: bool,
    output: Path | None,
) -> None:
    """Time every kernel of a step of BUNDLE in its place.

    Next to it stands the bound, measured in the same run; kernels are sorted by what they would gain there. What of a
    step no kernel accounts for is said as well. Every kernel of the variant is verified first: when one is wrong, no
    number is given.

    The time of a kernel in place is what the step takes longer when it is cut after this kernel rather than before;
    its time alone is given next to it.
    """
    from infernum.cli.console import print_json, progress_bar, warn
    from infernum.measure.kernels import Request, measure_kernels
    from infernum.measure.subject import open_subject

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    with progress_bar() as progress:
        subject = open_subject(
            "bench kernels", bundle, model, load_format=load_format, fuse=fuse, dtype=dtype, progress=progress
        )
        warn(subject.warnings)
        request = Request(variant, tokens, context, repeats)

        def check(opened: Bundle, measured: str) -> None:
            _check_kernels(opened, measured, progress)

        results = measure_kernels(subject.bundle, subject.checkpoint, request, check, progress)
    _write(results, output)
    if as_json:
        print_json(results)
    elif as_csv:
        _print_csv(results["kernels"])
    else:
        _print_kernels(results)


def _check_kernels(bundle: Bundle, variant: str, progress: Progress | None) -> None:
    """Raises DeviceError unless every kernel of a variant computes what it should."""
    from infernum.errors import DeviceError
    from infernum.verify.gpu import open_bench
    from infernum.verify.verdict import verify_bundle

    with open_bench() as bench:
        verdicts = verify_bundle(bundle, bench, variant=variant, timed=False, progress=progress)
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


def _print_kernels(results: dict[str, Any]) -> None:
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
    title = f"{_title(results)}: {results['variant']}, {results['tokens']} token(s) at context {results['context']}"
    print_table(title, columns, rows, numbers=columns[1:])
    rate = results["flops_per_second"]
    speeds = f"{results['read_bandwidth_gb_s']:.0f} GB/s" + (f", {rate / 1e12:.0f} TFLOP/s" if rate else "")
    wall, graph = 1e3 * results["ms_per_step"], 1e3 * results["graph_ms"]
    sums = [
        ("step, wall clock", f"{wall:.1f} µs"),
        ("kernels", f"{graph:.1f} µs, all of them as one graph, which is the sum over the table"),
        ("unaccounted", f"{results['unaccounted_us']:.1f} µs ({results['unaccounted_share']:.1%}):"
         " starting graphs, copying tokens, the host"),
        ("bounds", f"{speeds}, measured in this run; µs, alone and bound are of one launch, gain is of the step"),
    ]  # fmt: skip
    if results["unaccounted_us"] < 0:
        sums.append(("note", BURSTS))
    print_table("Where a step's time goes", ("", ""), sums)


@command.command("latency", short_help="Time a prompt and the tokens that follow it.")
@click.option(
    "--model", default="llama", show_default=True, help="A preset or a folder in Hugging Face's format."
)
@options.load_format
@click.option("--prompt", type=int, default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--tokens", type=int, default=256, show_default=True, help="Tokens to generate.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at once.")
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Apply the fusion rules.")
@options.rules
@options.dtype
@click.option(
    "--repeats", type=int, default=3, show_default=True, help="Medians are over so many generations."
)
@options.as_json
@click.option("--output", type=click.Path(path_type=Path), help="Write the results there, as JSON.")
@options.plugin
@options.verbose
def latency(
    model: str,
    load_format: str,
    prompt: int,
    tokens: int,
    batch: int,
    fuse: bool,
    rules: str,
    dtype: str,
    repeats: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time a prompt and the tokens that follow it: the whole loop, greedy, at the given sizes.

    The results are checked before they are printed: finite logits, tokens that are the most likely ones, and logits
    that the unfused path computes again. The bound is what a step must read, over the bandwidth measured in this run.
    """
    from infernum.cli.console import print_json, print_table, progress_bar, warn
    from infernum.errors import DeviceError
    from infernum.models.presets import resolve
    from infernum.runtime.driver import describe

    source = resolve(model)
    try:
        describe()
    except DeviceError as error:
        raise DeviceError(f"bench latency measures a GPU: {error}; see `infernum doctor`") from error
    from infernum.measure.latency import Request, measure

    warn(source.warnings)
    request = Request(
        source,
        load_format,
        prompt,
        tokens,
        batch,
        fuse,
        options.split_rules(rules),
        dtype,
        repeats,
    )
    with progress_bar() as progress:
        results = measure(request, progress)
    _write(results, output)
    if as_json:
        print_json(results)
    else:
        print_table(_title(results), ("", ""), _rows(results))


def _write(results: dict[str, Any], output: Path | None) -> None:
    """Keep the results as JSON. Raises RequestError when the file cannot be written."""
    from infernum.errors import RequestError

    if output is None:
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{output}: cannot be written ({error.strerror})") from error


def _title(results: dict[str, Any]) -> str:
    how = "fused" if results["fuse"] else "not fused"
    return f"{results['model']}, {results['dtype']}, {how}, on {results['gpu']}"


def _rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    read = results["bytes_per_step"]
    return [
        ("batch, prompt, output", f"{results['batch']}, {results['prompt_tokens']}, {results['output_tokens']} tokens"),
        ("prompt", f"{results['prompt_ms']:.2f} ms"),
        ("token", f"{results['ms_per_token']:.4f} ms ({results['tokens_per_second']:.1f} tokens/s)"),
        ("bound", f"{results['floor_ms_per_token']:.4f} ms: {read['weights'] / 1e9:.3f} GB of weights and"
         f" {read['kv'] / 1e9:.3f} GB of cache at {results['read_bandwidth_gb_s']:.0f} GB/s, measured in this run"),
        ("fraction of the bound", f"{results['fraction_of_bound']:.1%}"),
        ("error against unfused", f"{results['error_against_unfused']:.2e} (allowed {results['allowed_error']:.2e})"),
    ]  # fmt: skip
