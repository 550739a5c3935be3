"""Options that several commands share, each a decorator of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from infernum import logs
from infernum.sampling_params import GREEDY, PARAMETERS

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
bundle = click.option(
    "--bundle",
    type=path,
    help="A compiled bundle. Default: compile MODEL, and keep the bundle in the cache.",
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to run. auto: on the GPU, or in NumPy without one.",
)
greedy = click.option(
    "--greedy", is_flag=True, help="Always choose the most likely token, as --temperature 0 does."
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
deterministic = click.option(
    "--deterministic",
    is_flag=True,
    help="Compile kernels by which the bits of a token's result do not depend on what else is in the step.",
)
tensor_parallel_size = click.option(
    "--tensor-parallel-size",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Number of GPUs that the model is divided among, 1 to 8. So far only NumPy (--device cpu) runs several ranks.",
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
max_itl_ms = click.option(
    "--max-itl-ms",
    type=float,
    metavar="MS",
    help="Most milliseconds between tokens, by cutting the prompts that are computed beside them.  [default: no limit]",
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


def chosen_sampling(sampling: dict[str, float | None], greedy: bool) -> dict[str, float | None]:
    """The values of the sampling options, those of --greedy included. Raises UsageError."""
    if greedy and sampling["temperature"]:
        raise click.UsageError("--greedy and --temperature exclude each other")
    if not greedy:
        return sampling
    return sampling | {name: value for name, value in GREEDY.items() if sampling[name] is None}


def check_bundle(
    bundle: Path | None, fuse: bool | None, rules: str, deterministic: bool = False, ranks: int = 1
) -> None:
    """Raises UsageError for options of the compiler where a compiled bundle is given."""
    if bundle is not None and (fuse is not None or rules or deterministic or ranks != 1):
        raise click.UsageError(
            "--fuse, --rules, --deterministic and --tensor-parallel-size are for compiling; the bundle that is given"
            " is compiled already"
        )


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
