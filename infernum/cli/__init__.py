"""The command line: one file per command, imported when the command runs; errors are printed on one line.

Exit codes: 0 for success, 1 for a check that failed, 2 for a mistake that the user can mend, 130 when interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from infernum import __version__, logs
from infernum.cli.options import Settings, verbose
from infernum.cli.streams import open_streams, silence
from infernum.errors import CompileError, InfernumError, shown

COMMANDS = (
    "compile",
    "tune",
    "run",
    "chat",
    "serve",
    "explain",
    "inspect",
    "diff",
    "verify",
    "rebuild",
    "report",
    "graph",
    "bench",
    "profile",
    "models",
    "doctor",
)

USAGE = 2
INTERRUPTED = 130


class ReaderGone(Exception):
    """The reader of the output has closed the pipe, as `head` does."""


@contextmanager
def _while_somebody_reads() -> Generator[None]:
    """Turn a closed pipe into ReaderGone. click would exit with code 1, as Rich does already."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise ReaderGone from error
        raise


class LazyGroup(click.Group):
    """A group that imports command NAME, `infernum.cli.NAME_command.command`, when it is looked up."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _while_somebody_reads():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _while_somebody_reads():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"infernum.cli.{cmd_name}_command").command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@verbose
def cli() -> None:
    """Infernum compiles language models ahead of time, to CUDA that a person can read, and runs them.

    Try: infernum run "Midway upon the journey of our life"
    """


def main() -> None:
    """The entry point of the command `infernum`; does not return."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    settings = Settings()
    open_streams()
    try:
        with logs.on_stderr():
            result: object = cli.main(
                args=list(args), prog_name="infernum", standalone_mode=False, obj=settings
            )
        with _while_somebody_reads():
            sys.stdout.flush()
    except click.ClickException as error:
        return _fail(_with_hint(error), settings)
    except InfernumError as error:
        return _fail(str(error), settings, whole=isinstance(error, CompileError))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ReaderGone:
        silence()
        return 0
    except OSError as error:  # a path that no command has checked, or a full disk
        where = "stdout" if error.filename is None else os.fsdecode(error.filename)
        return _fail(f"{where}: {error.strerror or error}", settings)
    return result if isinstance(result, int) else 0


def _with_hint(error: click.ClickException) -> str:
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "infernum"
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def _fail(message: str, settings: Settings, *, whole: bool = False) -> int:
    """Print an error on one line, or `whole` where it has the log of a compiler; with -v the traceback first."""
    trace = traceback.format_exc() if settings.verbosity else ""
    text = message.strip() if whole else " ".join(message.split())
    with suppress(OSError):
        click.echo(f"{shown(trace)}error: {shown(text)}", err=True)
    silence()
    return USAGE
