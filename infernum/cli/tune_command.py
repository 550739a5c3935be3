"""`infernum tune`: find the fastest parameters of kernels by timing them on this GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle


@click.command("tune", short_help="Time parameters of kernels on this GPU, and keep the fastest.")
@click.argument("model")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Variant to tune, a class of token counts, such as t1 or prefill. May be repeated.  [default: t1, t8]",
)
@click.option(
    "--context",
    type=int,
    default=512,
    show_default=True,
    help="Positions of each sequence in the timed steps.",
)
@click.option(
    "--prompt",
    "prompts",
    type=int,
    multiple=True,
    help="With --variant prefill: length of a prompt whose library products are timed. May be repeated."
    "  [default: 512, 2048, 4096]",
)
@click.option(
    "--budget",
    type=float,
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop after this time, and keep what was chosen until then.",
)
@click.option(
    "--load-format",
    type=click.Choice(["auto", "dummy"]),
    default="dummy",
    show_default=True,
    help="auto: the weights of the model; dummy: random weights.",
)
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Apply the fusion rules.")
@options.rules
@options.dtype
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle. Default: in the cache."
)
@options.as_json
@options.plugin
@options.verbose
def command(
    model: str,
    variants: tuple[str, ...],
    context: int,
    prompts: tuple[int, ...],
    budget: float,
    load_format: str,
    fuse: bool,
    rules: str,
    dtype: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Time the parameters of MODEL's kernels on the GPU at hand, and keep the fastest.

    Each candidate is timed in the whole step, right after the default. A candidate is chosen if it is faster by more
    than the noise and agrees with NumPy. The choices are written into the bundle and into the cache, where `compile`
    and `run` of the same model on this kind of GPU read them. `infernum explain BUNDLE KERNEL` shows them.
    """
    from infernum.cli.console import print_json, progress_bar, warn
    from infernum.compiler import Options, cached_bundle, compile_model
    from infernum.lab.measure.subject import require_gpu
    from infernum.machine import native_arch, tuned_here
    from infernum.models.config import config_hash
    from infernum.models.presets import resolve

    if prompts and "prefill" not in variants:
        raise click.UsageError("--prompt is for --variant prefill, which is not given")
    source = resolve(model)
    require_gpu("tune")
    from infernum.lab.measure.tune import PROMPTS, VARIANTS, TuneRequest, tune

    warn(source.warnings)
    split = options.split_rules(rules)
    request = TuneRequest(
        source,
        load_format,
        dtype,
        fuse,
        split,
        variants=tuple(dict.fromkeys(variants)) or VARIANTS,
        context=context,
        prompts=prompts or PROMPTS,
        budget=budget,
    )
    with progress_bar() as progress:
        results = tune(request, _check, progress)
        arch = native_arch()
        chosen = Options(arch, dtype, fuse, split, tuned=tuned_here(config_hash(source.config), arch))
        bundle = (
            cached_bundle(source, chosen, progress=progress)
            if output is None
            else compile_model(source, chosen, output, progress=progress)
        )
    results["bundle"] = str(bundle.folder)
    if as_json:
        print_json(results)
    else:
        _print(results)


def _check(
    bundle: Bundle, variant: str, kernels: Collection[tuple[str, str]]
) -> Mapping[tuple[str, str], str]:
    from infernum.lab.verify.bench import open_bench
    from infernum.lab.verify.verdict import wrong_kernels

    with open_bench() as bench:
        return wrong_kernels(bundle, bench, variant, kernels)


def _print(results: dict[str, Any]) -> None:
    from infernum.cli.console import print_table
    from infernum.lab.measure.tuning_result import spelled

    rows = [
        (
            k["variant"],
            f"{k['block']}: {k['kernel']}",
            spelled(k["before"]),
            spelled(k["after"])
            if k["after"] != k["before"]
            else "the same"
            if k["decided"]
            else "not decided",
            f"{k['before_us']:.2f}",
            f"{k['after_us']:.2f}",
            k["candidates"],
            len(k["refused"]),
        )
        for k in results["kernels"]
    ]
    columns = ("variant", "kernel", "default", "now", "µs before", "µs after", "candidates", "refused")
    title = f"{results['model']}, {results['dtype']}, on {results['gpu']}, context {results['context']}"
    print_table(title, columns, rows, numbers=columns[4:])
    if results["products"]:
        products = [
            (
                *(p["m"], p["n"], p["k"]),
                f"{p['before_us']:.1f}",
                f"{p['after_us']:.1f}",
                p["rank"] + 1,
                p["candidates"],
            )
            for p in results["products"]
        ]
        columns = ("rows", "n", "k", "µs before", "µs after", "proposal", "of")
        print_table("Products of cuBLASLt, µs each", columns, products, numbers=columns)
    steps = [
        (
            s["variant"],
            f"{s['before_us']:.1f} µs → {s['after_us']:.1f} µs",
            f"{s['after_us'] / s['before_us'] - 1:+.1%}",
        )
        for s in results["steps"]
    ]
    print_table("The step, as one graph", ("", "", ""), steps)
    if not results["complete"]:
        click.echo(
            f"the budget of {results['budget_seconds']:g} s was used up before everything was timed;"
            " give more by --budget"
        )
    click.echo(
        f"{results['bundle']}: compiled with these; kept for the next compile in {results['kept'] or 'no file'}"
    )
