"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from infernum import logs
from infernum.sampling_params import PARAMETERS

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for the whole program."""

    verbosity: int = 0


def _note_verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    del param
    settings = ctx.ensure_object(Settings)
    settings.verbosity += value
    logs.show(logs.channels_at(settings.verbosity))


def verbose(function: Command) -> Command:
    """-v, which adds the traceback to an error, and shows more log channels the more often it is given."""
    return click.option(
        "-v",
        "--verbose",
        count=True,
        is_eager=True,
        expose_value=False,
        callback=_note_verbose,
        help="Log passes, and print the traceback of an error. -vv logs rules and the cache too, -vvv kernels too.",
    )(function)


def as_json(function: Command) -> Command:
    """--json, a single object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)


def load_format(function: Command) -> Command:
    """--load-format auto|dummy."""
    return click.option(
        "--load-format",
        type=click.Choice(["auto", "dummy"]),
        default="auto",
        show_default=True,
        help="auto: the weights of the model; dummy: random weights.",
    )(function)


def subject(function: Command) -> Command:
    """--load-format and --fuse/--no-fuse of what is measured: a bundle, or a model to be compiled for it."""
    function = click.option(
        "--fuse/--no-fuse",
        default=None,
        help="Apply the fusion rules when the model is compiled.  [default: fuse]",
    )(function)
    return click.option(
        "--load-format",
        type=click.Choice(["auto", "dummy"]),
        default="dummy",
        show_default=True,
        help="auto: the weights of --model; dummy: random weights.",
    )(function)


def dtype(function: Command) -> Command:
    """--dtype of weights and activations."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
        default="auto",
        show_default=True,
        help="Element type of weights and activations. auto: the type of the stored weights.",
    )(function)


def rules(function: Command) -> Command:
    """--rules=+name,-name."""
    return click.option(
        "--rules",
        default="",
        metavar="+NAME,-NAME…",
        help="Switch single rules on or off; applied after --fuse or --no-fuse.",
    )(function)


def sampling(function: Command) -> Command:
    """An option for each sampling parameter; None where it is not given."""
    for parameter in reversed(PARAMETERS):
        function = click.option(parameter.option, type=parameter.kind, help=parameter.help)(function)
    return function


def measured_sampling(function: Command) -> Command:
    """An option for each sampling parameter that can be measured; off where it is not given."""
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


def _load_plugins(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    from infernum import plugins

    del ctx, param
    plugins.load_installed()
    for path in value:
        plugins.load_plugin(path)


def plugin(function: Command) -> Command:
    """--plugin, Python files that register ops, rules and families; loaded before the command runs."""
    return click.option(
        "--plugin",
        multiple=True,
        metavar="FILE",
        expose_value=False,
        callback=_load_plugins,
        help="Load ops, rules, templates and model families from this Python file. May be repeated.",
    )(function)


def split_rules(text: str) -> tuple[str, ...]:
    """The changes that `--rules` asks for; each is checked where the rules are known."""
    return tuple(change.strip() for change in text.split(",")) if text.strip() else ()


def gpu_memory_utilization(function: Command) -> Command:
    """--gpu-memory-utilization, a share of the GPU's memory."""
    return click.option(
        "--gpu-memory-utilization",
        type=float,
        default=0.9,
        show_default=True,
        metavar="SHARE",
        help="Share of the GPU's memory that weights and KV cache may take.",
    )(function)


def max_model_len(function: Command) -> Command:
    """--max-model-len, in tokens."""
    return click.option(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="Longest sequence. Default: the model's context, or less if memory is short.",
    )(function)
