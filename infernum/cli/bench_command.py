"""`infernum bench`: what a model costs on this GPU, next to what it must cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infernum.cli import options


@click.group("bench", short_help="Measure latency on the GPU, next to the bound that its memory sets.")
def command() -> None:
    """Measure a model on the GPU, next to the bound that its memory sets."""


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
    from infernum.errors import DeviceError, RequestError
    from infernum.models.presets import resolve
    from infernum.runtime.driver import describe

    source = resolve(model)
    try:
        describe()
    except DeviceError as error:
        raise DeviceError(f"bench latency measures a GPU: {error}; see `infernum doctor`") from error
    from infernum.cli.latency import Request, measure

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
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f"{output}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json(results)
    else:
        print_table(_title(results), ("", ""), _rows(results))


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
