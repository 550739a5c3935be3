"""`infernum profile`: a trace of the kernels that a prompt and the tokens after it run on the GPU."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infernum.cli import options

DEMO_MODEL = "dante"


@click.command("profile", short_help="Write a Perfetto/Chrome trace of kernels by block and step.")
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
    output: Path,
) -> None:
    """Run a prompt and the tokens after it through BUNDLE, and write a trace of its kernels.

    The trace has a track each for steps, blocks and kernels; open it in https://ui.perfetto.dev or chrome://tracing.
    The prompt is random tokens.

    Where the package nvtx is installed, ranges named after steps and blocks surround the launches, for
    `nsys profile infernum profile …` to show.
    """
    from infernum.cli.console import progress_bar, warn
    from infernum.cli.output import write_output
    from infernum.lab.measure.profile import profile
    from infernum.lab.measure.subject import open_subject

    if bundle is None and model is None:
        model = DEMO_MODEL
    with progress_bar() as progress:
        subject = open_subject(
            "profile", bundle, model, load_format=load_format, fuse=fuse, dtype=dtype, progress=progress
        )
        warn(subject.warnings)
        trace = profile(
            subject.bundle, subject.checkpoint, prompt=prompt_tokens, tokens=tokens, progress=progress
        )
    write_output(output, json.dumps(trace, ensure_ascii=False) + "\n", make_folders=True)
    about = trace["otherData"]
    kernels = sum(event.get("cat") == "kernel" for event in trace["traceEvents"])
    steps = sum(event.get("cat") == "step" for event in trace["traceEvents"])
    nvtx = "with NVTX ranges" if about["nvtx"] else "without NVTX ranges (the package nvtx is not installed)"
    click.echo(f"{output}: {kernels} kernels in {steps} steps; {about['time_source']}; {nvtx}", err=True)
