"""`infernum run`: generates text that continues a prompt."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options
from infernum.cli.streams import read_stdin, write

if TYPE_CHECKING:
    from infernum.grammar import Grammar
    from infernum.llm import LLM
    from infernum.sampling_params import SamplingParams

DEMO_MODEL = "dante"
DEMO_PROMPT = "Midway upon the journey of our life"
LONGEST_ID = 10
"""Digits of a token id."""


@click.command("run", short_help="Generate text that continues a prompt.")
@click.argument("prompt", required=False)
@click.option("--prompt-ids", is_flag=True, help="Read PROMPT as token ids, such as 1,15,27.")
@click.option(
    "--model", default=DEMO_MODEL, show_default=True, help="A folder in Hugging Face's format, or a preset."
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
    default=128,
    show_default=True,
    help="Largest number of tokens to generate.",
)
@options.sampling
@options.greedy
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. May be repeated.")
@click.option(
    "--stop-token-id",
    "stop_token_ids",
    type=int,
    multiple=True,
    metavar="ID",
    help="Stop after this token. May be repeated.",
)
@click.option("--ignore-eos", is_flag=True, help="Do not stop at the model's end-of-sequence tokens.")
@click.option(
    "--min-tokens", type=int, default=0, metavar="N", help="No end token before so many tokens are generated."
)
@click.option(
    "--logprobs",
    type=int,
    metavar="K",
    help="With --json: log-probabilities of each token and of the K most likely ones, at most 20.",
)
@click.option(
    "--prompt-logprobs",
    type=int,
    metavar="K",
    help="With --json: the same for each token of the prompt; --max-tokens may then be 0.",
)
@click.option(
    "--json-schema", type=options.path, metavar="FILE", help="Generate JSON that the schema in FILE allows."
)
@click.option(
    "--regex", metavar="PATTERN", help="Generate text that a regular expression matches from end to end."
)
@options.load_format
@options.gpu_memory_utilization
@options.max_model_len
@options.max_itl_ms
@options.deterministic
@options.tensor_parallel_size
@click.option("--stats", is_flag=True, help="Print speeds on stderr after the text.")
@options.as_json
@options.plugin
@options.verbose
def command(
    prompt: str | None,
    prompt_ids: bool,
    model: str,
    bundle: Path | None,
    device: str,
    dtype: str,
    fuse: bool | None,
    rules: str,
    max_tokens: int,
    seed: int | None,
    greedy: bool,
    stop: tuple[str, ...],
    stop_token_ids: tuple[int, ...],
    ignore_eos: bool,
    min_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    json_schema: Path | None,
    regex: str | None,
    load_format: str,
    gpu_memory_utilization: float,
    max_model_len: int | None,
    max_itl_ms: float | None,
    deterministic: bool,
    tensor_parallel_size: int,
    stats: bool,
    as_json: bool,
    **sampling: float | None,
) -> None:
    """Generate text that continues PROMPT; "-" reads the prompt from stdin.

    One newline at the end of stdin is dropped. Sampling options that are not given have the values of the model's
    generation_config.json. A model without a tokenizer needs --prompt-ids, and its output is token ids too.
    """
    from infernum.cli.console import progress_bar, warn
    from infernum.engine.tokenizer import has_tokenizer, why_no_tokenizer
    from infernum.errors import RequestError
    from infernum.grammar import Grammar
    from infernum.llm import LLM, default_params
    from infernum.models.presets import resolve

    sampling = options.chosen_sampling(sampling, greedy)
    options.check_bundle(bundle, fuse, rules, deterministic, tensor_parallel_size)
    if json_schema is not None and regex is not None:
        raise click.UsageError("--json-schema and --regex exclude each other")
    if prompt is None and (prompt_ids or model != DEMO_MODEL):
        raise click.UsageError("a PROMPT is needed; - reads it from stdin")
    source = resolve(model)
    params = default_params(
        source.generation,
        max_tokens=max_tokens,
        seed=seed,
        stop=stop,
        stop_token_ids=stop_token_ids,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        **sampling,
    )
    text = read_stdin() if prompt == "-" else DEMO_PROMPT if prompt is None else prompt
    ids = _token_ids(text) if prompt_ids else None
    if ids is None and not has_tokenizer(source.folder):
        raise RequestError(why_no_tokenizer(source.folder, source.name))
    grammar = None if regex is None else Grammar.regex(regex)
    if json_schema is not None:
        grammar = Grammar.json(_schema(json_schema))
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
            max_itl_ms=max_itl_ms,
            deterministic=deterministic,
            tensor_parallel_size=tensor_parallel_size,
            seed=seed or 0,
            progress=progress,
        )
    with llm:
        _generate(llm, text, ids, params, grammar, stats=stats, as_json=as_json)


def _schema(file: Path) -> str:
    from infernum.errors import RequestError

    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"--json-schema {file}: cannot be read ({why}); give a file of JSON") from error


def _generate(
    llm: LLM,
    text: str,
    ids: list[int] | None,
    params: SamplingParams,
    grammar: Grammar | None,
    *,
    stats: bool,
    as_json: bool,
) -> None:
    from infernum.cli.console import print_json

    prompt = llm.encode(text)[0] if ids is None else ids
    pieces: list[str] = []
    tokens: list[int] = []
    reason = ""
    logprobs: list[dict[str, object]] = []
    of_prompt: list[dict[str, object] | None] = []
    for event in llm.stream([prompt], params, grammar=grammar):
        piece = event.text if llm.tokenizer else "".join(f"{token} " for token in event.tokens)
        pieces.append(piece)
        tokens.extend(event.tokens)
        reason = event.finish_reason or reason
        logprobs += [asdict(each) for each in event.logprobs or ()]
        of_prompt += [each and asdict(each) for each in event.prompt_logprobs or ()]
        if piece and not as_json:
            write(piece)
    if as_json:
        result = {
            "model": llm.source.name,
            "device": llm.device,
            "prompt": text,
            "prompt_tokens": prompt,
            "text": "".join(pieces) if llm.tokenizer else None,
            "tokens": tokens,
            "finish_reason": reason,
            **({} if params.logprobs is None else {"logprobs": logprobs}),
            **({} if params.prompt_logprobs is None else {"prompt_logprobs": of_prompt}),
            "statistics": {name: round(value, 6) for name, value in asdict(llm.statistics).items()},
        }
        print_json(result)
    elif not "".join(pieces).endswith("\n"):
        write("\n")
    if stats:
        _print_statistics(llm)


def _token_ids(text: str) -> list[int]:
    from infernum.errors import RequestError

    words = text.replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) <= LONGEST_ID):
            raise RequestError(f"--prompt-ids: {word!r} is no token id; give integers, such as 1,2,3")
    return [int(word) for word in words]


def _print_statistics(llm: LLM) -> None:
    counts = llm.statistics
    prompt = f"prompt {counts.prompt_tokens} tokens in {1e3 * counts.prompt_seconds:.1f} ms"
    decode = f"output {counts.output_tokens} tokens"
    if counts.decoded_tokens and counts.decode_seconds:
        seconds = counts.decode_seconds / counts.decoded_tokens
        decode += f", {1e3 * seconds:.2f} ms each ({1 / seconds:.1f} tokens/s)"
    click.echo(f"{llm.source.name} on {llm.device}: {prompt}, {decode}", err=True)
