"""`infernum rebuild`: kernels edited by hand, compiled and put in their place."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.bundle import Bundle
    from infernum.lab.rebuild.edited import KernelChange, Rebuild


@click.command("rebuild", short_help="Compile the kernels of a bundle that were edited.")
@click.argument("bundle", type=options.path)
@click.option(
    "--run",
    "prompt",
    metavar="PROMPT",
    help="Then generate text: `infernum run PROMPT --bundle BUNDLE`.",
)
@click.option("--model", help="For --run: the bundle's model. Default: the preset that it was compiled from.")
@click.argument("run_options", nargs=-1, metavar="[-- OPTIONS OF RUN]")
@options.as_json
@options.plugin
@options.verbose
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    prompt: str | None,
    model: str | None,
    run_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile the `.cu` files in BUNDLE that were edited, and record the edits in its manifest.

    Nothing is written unless all of them compile and still fit the launches in the manifest. Options after `--` are
    those of `infernum run`, as in `--run "Midway upon" -- -n 20 --greedy`.
    """
    from infernum.bundle import open_kernels
    from infernum.cache import cache_folder
    from infernum.cli.console import print_json, warn
    from infernum.lab.rebuild.edited import rebuild_bundle

    if prompt is None and (model is not None or run_options):
        raise click.UsageError("--model and options of run are for --run PROMPT, which is not given")
    opened = open_kernels(bundle)
    arguments = None if prompt is None else _run_arguments(opened, prompt, model, run_options)
    if arguments is not None:  # while NVRTC works, which holds no lock of Python
        Thread(target=_import_what_runs, daemon=True).start()
    outcome = rebuild_bundle(opened, cache=cache_folder())
    warn(outcome.warnings)
    if as_json:
        run = {} if arguments is None else {"run": _run_for_json(arguments, context.obj)}
        print_json(_as_json(outcome) | run)
        return
    _print(outcome)
    if arguments is not None:
        sys.stdout.flush()
        _run(arguments, context.obj)


def _import_what_runs() -> None:
    """Import modules that the run needs later; their errors are reported when they are used."""
    with suppress(Exception):
        import_module("infernum.llm")
        if import_module("infernum.runtime.driver").gpu_available():
            import_module("infernum.runtime.executor")
            import_module("nvmath.bindings.cublasLt")


def _run_arguments(bundle: Bundle, prompt: str, model: str | None, more: tuple[str, ...]) -> list[str]:
    from infernum.models.presets import PRESETS

    name = model or bundle.manifest.model.name
    if model is None and name not in PRESETS:
        raise click.UsageError(
            f"--run needs --model FOLDER: the bundle was compiled for {name}, which is no preset"
        )
    return ["--model", name, "--bundle", str(bundle.folder), *more, "--", prompt]


def _run(arguments: list[str], settings: object) -> None:
    from infernum.cli.run_command import command as run

    run.main(args=arguments, prog_name="infernum run", standalone_mode=False, obj=settings)


def _run_for_json(arguments: list[str], settings: object) -> Any:
    """What `infernum run --json` prints."""
    with redirect_stdout(io.StringIO()) as printed:
        _run(["--json", *arguments], settings)
    return json.loads(printed.getvalue())


def _as_json(outcome: Rebuild) -> dict[str, object]:
    import msgspec

    return {
        "bundle": str(outcome.bundle.folder),
        "rebuilt": [
            {
                "file": file.file,
                "restored": file.restored,
                "seconds": round(file.seconds, 3),
                "kernels": [_change(change) for change in file.changes],
            }
            for file in outcome.files
        ],
        "edits": msgspec.to_builtins(outcome.bundle.manifest.edits),
        "warnings": list(outcome.warnings),
    }


def _resources(change: KernelChange) -> dict[str, tuple[int, int]]:
    """The resources of a kernel by name, before and after."""
    names = ("registers", "stack_bytes", "spill_bytes", "static_shared_bytes")
    return {name: (getattr(change.before, name), getattr(change.after, name)) for name in names}


def _change(change: KernelChange) -> dict[str, object]:
    numbers = {name: {"before": a, "after": b} for name, (a, b) in _resources(change).items()}
    return {"name": change.after.name, "edited": change.edited, **numbers}


def _print(outcome: Rebuild) -> None:
    from infernum.cli.console import print_table

    if not outcome.files:
        click.echo(f"{outcome.bundle.folder}: no .cu file was edited since it was compiled; nothing to do")
        return
    rows = [
        (
            "" if i else file.file,
            change.after.name,
            "edited" if change.edited else "as emitted",
            *(f"{a} → {b}" for name, (a, b) in _resources(change).items() if name != "stack_bytes"),
            "" if i else f"{file.seconds:.2f} s",
        )
        for file in outcome.files
        for i, change in enumerate(file.changes)
    ]
    columns = ("file", "kernel", "source", "registers", "spilled bytes", "static shared", "time")
    print_table(f"{outcome.bundle.folder}: rebuilt", columns, rows, numbers=columns[3:])
