"""`infernum bench latency`: time a prompt and the tokens after it, next to the bound and to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infernum.cli import options
from infernum.cli.bench_results import title_of, write_results
from infernum.sampling_params import EXCLUDING, SamplingParams, listed

HELP = f"""Time a prompt and the tokens that follow it: the whole loop at the given sizes, greedy or with sampling.

The results are checked before they are printed. Logits are finite, and the unfused path computes the same ones.
Tokens are the most likely ones, or ones that {listed((parameter.label for parameter in EXCLUDING), "and")} allow, and
are the same in every generation. The bound is the bytes that a step must read, weights and cache, over the bandwidth
measured in this run.

With sampling, rounds of greedy decoding alternate with rounds of sampling, to measure the cost of sampling. --against
transformers runs transformers afterwards, in this process and over the same weights, and compares its logits.
"""


@click.command("latency", short_help="Time a prompt and the tokens that follow it.", help=HELP)
@click.option(
    "--model", default="llama", show_default=True, help="A preset or a folder in Hugging Face's format."
)
@options.load_format
@click.option("--prompt", type=int, default=512, show_default=True, help="Number of tokens in the prompt.")
@click.option("--tokens", type=int, default=256, show_default=True, help="Number of tokens to generate.")
@click.option("--batch", type=int, default=1, show_default=True, help="Number of sequences in the batch.")
@options.measured_sampling
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Apply the fusion rules.")
@options.rules
@options.dtype
@click.option(
    "--repeats",
    type=int,
    default=3,
    show_default=True,
    help="Number of generations; times are their medians.",
)
@click.option(
    "--identical",
    type=int,
    default=0,
    metavar="N",
    help="Generate N more times, and fail unless all tokens and logits are the same, bit for bit.",
)
@click.option(
    "--against",
    type=click.Choice(["transformers"]),
    help="Time transformers too: static cache, torch.compile, the same weights and prompts.",
)
@options.as_json
@click.option("--output", type=click.Path(path_type=Path), help="File to write the results to, as JSON.")
@options.plugin
@options.verbose
def latency(
    model: str,
    load_format: str,
    prompt: int,
    tokens: int,
    batch: int,
    seed: int,
    fuse: bool,
    rules: str,
    dtype: str,
    repeats: int,
    identical: int,
    against: str | None,
    as_json: bool,
    output: Path | None,
    **sampling: Any,
) -> None:
    from infernum.cli.console import print_json, print_table, progress_bar, warn
    from infernum.errors import RequestError
    from infernum.lab.measure.subject import require_gpu
    from infernum.models.presets import resolve

    if sampling["temperature"] == 0 and any(sampling[p.name] != p.off for p in EXCLUDING):
        names = listed((parameter.option for parameter in EXCLUDING), "and")
        raise RequestError(f"{names} are for sampling; give --temperature above 0 as well")
    params = SamplingParams(seed=seed, **sampling)
    source = resolve(model)
    require_gpu("bench latency")
    from infernum.lab.measure.latency import LatencyRequest, measure

    warn(source.warnings)
    request = LatencyRequest(
        source,
        load_format,
        dtype,
        fuse,
        options.split_rules(rules),
        seed,
        prompt=prompt,
        tokens=tokens,
        batch=batch,
        repeats=repeats,
        sampling=params,
        identical=identical,
        against=against,
    )
    with progress_bar() as progress:
        results = measure(request, progress)
    write_results(results, output)
    if as_json:
        print_json(results)
    else:
        print_table(title_of(results), ("", ""), rows(results))


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the printed table."""
    read = results["bytes_per_step"]
    least, most = results["prompt_ms_range"]
    lines = [
        (
            "batch, prompt, output",
            f"{results['batch']}, {results['prompt_tokens']}, {results['output_tokens']} tokens",
        ),
        ("prompt", f"{results['prompt_ms']:.2f} ms ({least:.2f} to {most:.2f})"),
    ]
    least, most = results["ms_per_token_range"]
    lines += [
        ("token", f"{results['ms_per_token']:.4f} ms ({least:.4f} to {most:.4f}),"
         f" {results['tokens_per_second']:.1f} tokens/s"),
        ("bound", f"{results['floor_ms_per_token']:.4f} ms: {read['weights'] / 1e9:.3f} GB of weights and"
         f" {read['kv'] / 1e9:.3f} GB of cache at {results['read_bandwidth_gb_s']:.0f} GB/s, measured in this run"),
        ("fraction of the bound", f"{results['fraction_of_bound']:.1%}"),
        ("error against unfused", f"{results['error_against_unfused']:.2e} (allowed {results['allowed_error']:.2e})"),
        ("the same tokens", f"in {results['identical_generations']} generations"),
    ]  # fmt: skip
    if results["sampling"] is not None:
        chosen = ", ".join(f"{name} {value}" for name, value in results["sampling"].items())
        lines.append(("sampling", chosen))
        lines.append(
            (
                "greedy",
                f"{results['greedy_ms_per_token']:.4f} ms a token; sampling costs {results['sampling_cost']:+.2%}",
            )
        )
    if theirs := results.get("against"):
        versions = ", ".join(f"{name} {version}" for name, version in theirs["versions"].items())
        lines += [
            (theirs["name"], f"{theirs['ms_per_token']:.4f} ms a token, prompt {theirs['prompt_ms']:.2f} ms;"
             f" {versions}"),
            ("", theirs["how"]),
            ("speed-up, greedy", f"{theirs['speedup']:.2f}× a token, {theirs['prompt_speedup']:.2f}× the prompt"),
            ("error against ours", f"{theirs['error_against_ours']:.2e} (allowed {theirs['allowed_error']:.2e});"
             f" the first {theirs['tokens_that_agree']} greedy tokens are the same"),
        ]  # fmt: skip
        if theirs["cuda_graph_skips"]:
            lines.append(
                ("note", "torch made no CUDA graph of the compiled step: the comparison is not fair to it")
            )
    return lines
