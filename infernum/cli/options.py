"""Options that several commands share, each a decorator of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from infernum import logs
from infernum.sampling_params import PARAMETERS

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """Settings of the whole command line. `verbosity` counts the -v before and after the name of the command."""

    verbosity: int = 0


def _raise_verbosity(ctx: click.Context, param: click.Parameter, value: int) -> None:
    del param
    settings = ctx.ensure_object(Settings)
    settings.verbosity += value
    logs.show(logs.channels_at(settings.verbosity))


def _load_plugins(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    """Load the plugins before the command runs, which then knows their ops, rules and families."""
    from infernum import plugins

    del ctx, param
    plugins.load_installed()
    for path in value:
        plugins.load_plugin(path)


path = click.Path(path_type=Path)
verbose = click.option(
    "-v",
    "--verbose",
    count=True,
    is_eager=True,
    expose_value=False,
    callback=_raise_verbosity,
    help="Log passes, and print the traceback of an error. -vv logs rules and the cache too, -vvv kernels too.",
)
plugin = click.option(
    "--plugin",
    multiple=True,
    metavar="FILE",
    expose_value=False,
    callback=_load_plugins,
    help="Load ops, rules, templates and model families from this Python file. May be repeated.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Element type of weights and activations. auto: the type of the stored weights.",
)
fuse = click.option(
    "--fuse/--no-fuse",
    default=None,
    help="Apply the fusion rules when the model is compiled.  [default: fuse]",
)
rules = click.option(
    "--rules",
    default="",
    metavar="+NAME,-NAME…",
    help="Switch single rules on or off; applied after --fuse or --no-fuse.",
)
gpu_memory_utilization = click.option(
    "--gpu-memory-utilization",
    type=float,
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Share of the GPU's memory that weights and KV cache may take.",
)
max_model_len = click.option(
    "--max-model-len",
    type=int,
    metavar="TOKENS",
    help="Longest sequence. Default: the model's context, or less if memory is short.",
)


def _load_format(default: str, help: str) -> Callable[[Command], Command]:
    choice = click.Choice(["auto", "dummy"])
    return click.option("--load-format", type=choice, default=default, show_default=True, help=help)


load_format = _load_format("auto", "auto: the weights of the model; dummy: random weights.")


def subject(function: Command) -> Command:
    """--load-format and --fuse/--no-fuse of a command that measures a bundle, or a model that it compiles."""
    return _load_format("dummy", "auto: the weights of --model; dummy: random weights.")(fuse(function))


def sampling(function: Command) -> Command:
    """An option for each sampling parameter, None where it is not given."""
    for parameter in reversed(PARAMETERS):
        function = click.option(parameter.option, type=parameter.kind, help=parameter.help)(function)
    return function


def measured_sampling(function: Command) -> Command:
    """An option for each sampling parameter that `infernum bench` measures, off where it is not given."""
    for parameter in reversed(PARAMETERS):
        if parameter.bench_help is not None:
            function = click.option(
                parameter.option,
                type=parameter.kind,
                default=parameter.off,
                show_default="[default" not in parameter.bench_help,
                help=parameter.bench_help,
            )(function)
    return function


def split_rules(text: str) -> tuple[str, ...]:
    """The changes in the value of `--rules`; the compiler rejects names that no rule has."""
    return tuple(change.strip() for change in text.split(",")) if text.strip() else ()
