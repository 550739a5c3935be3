"""`infernum chat`: talks with a model that has a chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from infernum.cli import options
from infernum.cli.streams import read_stdin

DEMO_MODEL = "dante-chat"


@click.command("chat", short_help="Talk with a model.")
@click.argument("model", default=DEMO_MODEL)
@click.option("--system", metavar="TEXT", help="The system message that the conversation begins with.")
@click.option("--chat-template", type=options.path, help="The file of a template, in place of the model's.")
@click.option(
    "--template-args",
    default="{}",
    metavar="JSON",
    help='Further variables of the template, such as {"enable_thinking": false}.',
)
@options.bundle
@options.device
@options.dtype
@options.fuse
@options.rules
@click.option(
    "-n",
    "--max-tokens",
    type=int,
    help="Largest number of tokens of an answer.  [default: what the context has room for]",
)
@options.sampling
@options.greedy
@options.load_format
@options.gpu_memory_utilization
@options.max_model_len
@options.tensor_parallel_size
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a JSON object, one line each.")
@options.plugin
@options.verbose
def command(
    model: str,
    system: str | None,
    chat_template: Path | None,
    template_args: str,
    bundle: Path | None,
    device: str,
    dtype: str,
    fuse: bool | None,
    rules: str,
    max_tokens: int | None,
    seed: int | None,
    greedy: bool,
    load_format: str,
    gpu_memory_utilization: float,
    max_model_len: int | None,
    tensor_parallel_size: int,
    as_json: bool,
    **sampling: float | None,
) -> None:
    """Talk with MODEL, a folder in Hugging Face's format with a chat template.

    /help lists the commands of a conversation. Ctrl-C stops an answer, Ctrl-D ends the conversation. Where stdin is
    no terminal, all of it is one message, and its answer is printed.
    """
    from infernum.chat.files import find_templates
    from infernum.cli.chat_session import Session
    from infernum.cli.chat_terminal import converse
    from infernum.cli.console import progress_bar, warn
    from infernum.engine.tokenizer import has_tokenizer, why_no_tokenizer
    from infernum.errors import RequestError
    from infernum.llm import LLM, default_params
    from infernum.models.presets import resolve

    sampling = options.chosen_sampling(sampling, greedy)
    options.check_bundle(bundle, fuse, rules, ranks=tensor_parallel_size)
    arguments = _template_arguments(template_args)
    source = resolve(model)
    context = source.config.max_position_embeddings
    longest = context if max_tokens is None else max_tokens
    params = default_params(source.generation, max_tokens=longest, seed=seed, **sampling)
    if not has_tokenizer(source.folder):
        raise RequestError(why_no_tokenizer(source.folder, source.name))
    find_templates(source.folder, source.name, chat_template)
    interactive = sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]
    text = None if interactive else read_stdin()
    if text is not None and not text.strip():
        raise RequestError("stdin: is empty; write a message to it, or start the command in a terminal")
    warn(source.warnings)
    with progress_bar() as progress:
        llm = LLM(
            source,
            device,
            dtype,
            fuse is not False,
            bundle,
            load_format=load_format,
            rules=options.split_rules(rules),
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            seed=seed or 0,
            progress=progress,
            chat_template=chat_template,
        )
    with llm:
        session = Session(llm, params, arguments, system=system, as_json=as_json)
        if text is None:
            converse(session)
        else:
            session.ask(text)


def _template_arguments(text: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--template-args: {text!r} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"--template-args: {text!r} is no JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]
