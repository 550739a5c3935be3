"""`infernum profile`: a trace of the kernels of one prompt and its tokens, or of the steps of many requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infernum.cli import options

DEMO_MODEL = "dante"


MIXED = 512
"""Requests of the mixed load unless --requests gives their number."""


@click.command(
    "profile", short_help="Write a Perfetto/Chrome trace of kernels, or of the steps of many requests."
)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    help=f"The bundle's model; without BUNDLE, the model to compile and run.  [default: {DEMO_MODEL}]",
)
@options.subject
@options.dtype
@click.option(
    "--prompt-tokens", type=int, default=64, show_default=True, help="Number of tokens in the prompt."
)
@click.option(
    "--tokens", type=int, default=8, show_default=True, help="Number of steps of one token after the prompt."
)
@click.option(
    "--requests",
    type=int,
    metavar="N",
    help="Trace the engine's steps instead, with N requests of --prompt-tokens in and --tokens out at once.",
)
@click.option("--mixed", is_flag=True, help=f"Trace {MIXED} or --requests requests of mixed lengths at once.")
@click.option("--pages", type=int, help="Most pages of the cache for --requests and --mixed.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("trace.json"),
    show_default=True,
    help="File to write the trace to.",
)
@options.plugin
@options.verbose
def command(
    bundle: Path | None,
    model: str | None,
    load_format: str,
    fuse: bool | None,
    dtype: str,
    prompt_tokens: int,
    tokens: int,
    requests: int | None,
    mixed: bool,
    pages: int | None,
    output: Path,
) -> None:
    """Run a prompt and the tokens after it through BUNDLE, and write a trace of its kernels.

    The trace has a track each for steps, blocks and kernels; open it in https://ui.perfetto.dev or chrome://tracing.
    The prompt is random tokens.

    With --requests or --mixed, the trace has the steps of the engine instead: the sequences of each step, pages,
    preemptions, what was found in the cache, and a track for each request. A table has the time that the GPU was idle
    between steps.

    Where the package nvtx is installed, ranges named after steps and blocks surround the launches, for
    `nsys profile infernum profile …` to show.
    """
    from infernum.cli.console import print_table, progress_bar, warn
    from infernum.cli.output import write_output
    from infernum.lab.measure.load_profile import profile_load
    from infernum.lab.measure.profile import profile
    from infernum.lab.measure.subject import open_subject

    if bundle is None and model is None:
        model = DEMO_MODEL
    lengths = load_lengths(requests, mixed, prompt_tokens, tokens)
    with progress_bar() as progress:
        subject = open_subject(
            "profile", bundle, model, load_format=load_format, fuse=fuse, dtype=dtype, progress=progress
        )
        warn(subject.warnings)
        if lengths is None:
            trace = profile(
                subject.bundle, subject.checkpoint, prompt=prompt_tokens, tokens=tokens, progress=progress
            )
        else:
            trace = profile_load(subject.bundle, subject.checkpoint, lengths, pages=pages, progress=progress)
    write_output(output, json.dumps(trace, ensure_ascii=False) + "\n", make_folders=True)
    about = trace["otherData"]
    if lengths is not None:
        print_table(
            f"{about['model']}, {about['requests']} requests, on {about['gpu']}", ("", ""), rows(about)
        )
        click.echo(f"{output}: {about['time_source']}", err=True)
        return
    kernels = sum(event.get("cat") == "kernel" for event in trace["traceEvents"])
    steps = sum(event.get("cat") == "step" for event in trace["traceEvents"])
    nvtx = "with NVTX ranges" if about["nvtx"] else "without NVTX ranges (the package nvtx is not installed)"
    click.echo(f"{output}: {kernels} kernels in {steps} steps; {about['time_source']}; {nvtx}", err=True)


def load_lengths(requests: int | None, mixed: bool, prompt: int, tokens: int) -> list[tuple[int, int]] | None:
    """Tokens in and out of each request; None where a single prompt is profiled. Raises RequestError."""
    from infernum.errors import RequestError
    from infernum.lab.measure.requests import mixed_lengths

    if requests is None and not mixed:
        return None
    for name, value in (("--prompt-tokens", prompt), ("--tokens", tokens), ("--requests", requests)):
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}; it must be 1 or more")
    if mixed:
        return mixed_lengths(MIXED if requests is None else requests)
    return [(prompt, tokens)] * (requests or 0)


def rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the printed table: what the steps of many requests took."""
    summary = about["summary"]
    masked = summary["masked"]
    lines: list[tuple[str, str]] = []
    for name, kind in summary["kinds"].items():
        steps, idle = (
            f"{kind['steps']} steps of {kind['sequences']:.0f} sequences",
            f"{kind['idle_share']:.1%}",
        )
        times = f"GPU {kind['busy_ms']:.1f} ms, idle between them {kind['idle_ms']:.1f} ms ({idle})"
        lines.append((name, f"{steps}: {times}; host {kind['host_ms']:.3f} ms a step"))
    return [
        *lines,
        ("launched ahead", f"{summary['launched_ahead']:.1%} of the steps{' without masks' * bool(masked)}"),
        *([("masks", f"steps whose samplers waited for the tokens of the last: {masked}")] if masked else []),
        ("sequences", f"at most {summary['most_running']} running, {summary['most_waiting']} waiting"),
        ("pages", f"at most {summary['most_pages']} of {about['pages']}"),
        ("preemptions", str(summary["preemptions"])),
        ("found in the cache", f"{summary['cached_tokens']} of {about['prompt_tokens']} prompt tokens"),
    ]
