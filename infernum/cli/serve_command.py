"""`infernum serve`: a model behind an HTTP interface that clients of OpenAI's know."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from infernum.cli import options


@click.command("serve", short_help="Serve a model over HTTP, as OpenAI's interface does.")
@click.argument("model", default="dante-chat")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: every one."
)
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on."
)
@click.option("--uds", metavar="PATH", help="Unix socket to listen on, in place of host and port.")
@click.option(
    "--served-model-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name that clients use. May be repeated.",
)
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    envvar="INFERNUM_API_KEY",
    metavar="KEY",
    help="Key that a request must carry. May be repeated.",
)
@click.option(
    "--allowed-origins",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Site whose pages may read answers; *: all.",
)
@click.option("--root-path", default="", metavar="PATH", help="Path under which a proxy serves this server.")
@click.option("--ssl-certfile", type=options.path, help="Certificate for HTTPS.")
@click.option("--ssl-keyfile", type=options.path, help="Private key for HTTPS.")
@click.option("--chat-template", type=options.path, help="The file of a template, in place of the model's.")
@click.option(
    "--tool-call-parser",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "none", "hermes", "llama3_json", "mistral", "pythonic"]),
    help="How the model writes calls of functions; auto: as its chat template does.",
)
@click.option(
    "--reasoning-parser",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "none", "think"]),
    help="think: answers may begin with <think>…</think>, which is returned as reasoning; auto: as the chat"
    " template does.",
)
@click.option(
    "--metrics-prefix",
    default="infernum",
    show_default=True,
    metavar="NAME",
    help="First part of the names of metrics; vllm: existing dashboards work.",
)
@click.option(
    "--max-queue",
    default=2048,
    show_default=True,
    type=click.IntRange(1),
    help="Most sequences that wait or run.",
)
@click.option(
    "--reader-timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long a client may read nothing of a stream before it is disconnected.",
)
@click.option(
    "--shutdown-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long running answers may take once the server is to stop.",
)
@click.option(
    "--stall-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="How long a step may take before /health says that the engine hangs.",
)
@click.option("--null-token-us", type=click.FloatRange(0), hidden=True)  # for `infernum bench serve --null`
@click.option(
    "--cache-per-key",
    is_flag=True,
    help="Share what the cache holds of prompts only among requests with the same --api-key.",
)
@click.option("--no-ui", is_flag=True, help="Serve no page for browsers at /.")
@click.option("--log-json", is_flag=True, help="Log each request as a line of JSON.")
@options.bundle
@options.device
@options.dtype
@options.fuse
@options.rules
@options.load_format
@options.gpu_memory_utilization
@options.max_model_len
@options.max_itl_ms
@options.deterministic
@options.tensor_parallel_size
@click.option(
    "--max-num-seqs",
    type=int,
    metavar="N",
    help="Most sequences that run at once; others wait.  [default: 1024, or less on the CPU]",
)
@click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    metavar="FILE",
    help="Load ops, rules, templates and model families from this Python file. May be repeated.",
)
@options.verbose
def command(
    model: str,
    host: str,
    port: int,
    uds: str | None,
    names: tuple[str, ...],
    keys: tuple[str, ...],
    origins: tuple[str, ...],
    root_path: str,
    ssl_certfile: Path | None,
    ssl_keyfile: Path | None,
    chat_template: Path | None,
    tool_call_parser: str,
    reasoning_parser: str,
    metrics_prefix: str,
    max_queue: int,
    reader_timeout: float,
    shutdown_timeout: float,
    stall_seconds: float,
    null_token_us: float | None,
    cache_per_key: bool,
    no_ui: bool,
    log_json: bool,
    bundle: Path | None,
    device: str,
    dtype: str,
    fuse: bool | None,
    rules: str,
    load_format: str,
    gpu_memory_utilization: float,
    max_model_len: int | None,
    max_itl_ms: float | None,
    deterministic: bool,
    tensor_parallel_size: int,
    max_num_seqs: int | None,
    plugin_files: tuple[str, ...],
) -> int:
    """Serve MODEL, a folder in Hugging Face's format or a preset, until Ctrl-C.

    docs/serving.md lists endpoints, fields and limits, and says what the server defends.
    """
    from infernum.serve.spawn import spawn
    from infernum.serve.wire import EngineOptions

    options.check_bundle(bundle, fuse, rules, deterministic, tensor_parallel_size)
    if cache_per_key and not keys:
        raise click.UsageError("--cache-per-key needs the keys that it tells apart; give --api-key")
    engine_options = EngineOptions(
        model=model,
        device=device,
        dtype=dtype,
        fuse=fuse is not False,
        bundle=None if bundle is None else str(bundle),
        rules=options.split_rules(rules),
        load_format=load_format,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        max_itl_ms=max_itl_ms,
        deterministic=deterministic,
        tensor_parallel_size=tensor_parallel_size,
        max_num_seqs=max_num_seqs,
        plugins=plugin_files,
        null_token_us=null_token_us,
    )
    # The engine loads the model while this process imports its own half.
    spawned = click.get_current_context().with_resource(spawn(engine_options))
    try:
        import uvloop

        from infernum.serve.server import ServerOptions, serve
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error.name} is not installed; run `pip install infernum[serve]`") from error
    from infernum import plugins
    from infernum.cli.console import progress_bar
    from infernum.models.presets import resolve
    from infernum.serve.app import WATCHING_PATHS
    from infernum.serve.guards import Exchanged
    from infernum.serve.parsers import Parsers
    from infernum.serve.served import Limits, Served

    plugins.load_installed()
    for file in plugin_files:
        plugins.load_plugin(file)
    source = resolve(model)
    server_options = ServerOptions(
        names=names,
        host=host,
        port=port,
        uds=uds,
        keys=keys,
        origins=origins,
        root_path=root_path,
        ssl_certfile=None if ssl_certfile is None else str(ssl_certfile),
        ssl_keyfile=None if ssl_keyfile is None else str(ssl_keyfile),
        metrics_prefix=metrics_prefix,
        chat_template=chat_template,
        parsers=Parsers(tool_call_parser, reasoning_parser),
        shutdown_seconds=shutdown_timeout,
        stall_seconds=stall_seconds,
        ui=not no_ui,
        limits=Limits(queue=max_queue, reader=reader_timeout, cache_per_key=cache_per_key),
    )

    def ready(served: Served, address: str) -> None:
        click.echo(
            f"{served.names[0]} is served at {address}, on {served.ready.device}; Ctrl-C stops it", err=True
        )

    def ended(exchanged: Exchanged) -> None:
        if exchanged.path in WATCHING_PATHS and exchanged.status == 200:
            return
        if log_json:
            line = json.dumps({"time": time.time(), **vars(exchanged)})
        else:
            line = (
                f"{exchanged.client} {exchanged.method} {exchanged.path} {exchanged.status}"
                f" {exchanged.seconds:.3f}s {exchanged.identity}"
            )
        sys.stderr.write(line + "\n")

    with progress_bar() as progress:
        return uvloop.run(
            serve(
                source,
                spawned,
                server_options,
                on_loading=progress or (lambda what, done, total: None),
                on_ready=ready,
                on_end=ended,
            )
        )
