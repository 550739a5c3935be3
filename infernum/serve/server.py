"""Starts the engine and the HTTP server, and stops them in order."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from infernum.errors import InfernumError
from infernum.models.presets import ModelSource
from infernum.serve.app import App
from infernum.serve.engine_client import EngineClient, OnLoading
from infernum.serve.guards import Exchanged, Guard, hashed_keys, local_hosts
from infernum.serve.http_protocol import HttpProtocol
from infernum.serve.metrics import Metrics
from infernum.serve.parsers import Parsers
from infernum.serve.served import Limits, Served
from infernum.serve.spawn import Spawned
from infernum.step import NO_TOKEN

POLL_SECONDS = 0.05
"""How often a server that shuts down looks whether the last sequence has ended."""

ACCEPTS = 16
"""New connections that one turn of the event loop accepts. A turn takes milliseconds where many streams run."""

UNSENT_BYTES = 1 << 16
"""Bytes of a connection that the kernel takes before the client is ready for them. Megabytes are its own choice, and
hide for as long that a client reads nothing."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is reached, and what it defends.

    uds                path of a Unix socket, in place of host and port
    keys               keys, one of which a request must carry; none: no key is needed
    origins            pages of other sites that may read answers
    shutdown_seconds   how long running answers may take once the server is to stop
    stall_seconds      how long the engine may work on a step before /health says so
    ui                 serve the page at /
    """

    names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    root_path: str = ""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    metrics_prefix: str = "infernum"
    chat_template: Path | None = None
    parsers: Parsers = field(default_factory=Parsers)
    shutdown_seconds: float = 30.0
    stall_seconds: float = 60.0
    ui: bool = True
    limits: Limits = field(default_factory=Limits)


class HttpServer(uvicorn.Server):
    """uvicorn, which on the first signal drains: running answers go on, new requests are refused."""

    def __init__(self, config: uvicorn.Config, app: App, served: Served, seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._served = served
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.on_started: Callable[[], None] = lambda: None
        """Called once connections are accepted."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # pyright: ignore[reportArgumentType]
        if not self.config.uds:
            await self._listen_again(self._loop)
        if self.started:
            self.on_started()

    async def _listen_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop accept several connections in a turn: uvloop accepts one for each listening descriptor."""
        protocol = partial(
            self.config.http_protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for listening in [each for server in self.servers for each in server.sockets]:
            with socket.fromfd(listening.fileno(), listening.family, listening.type) as shared:
                shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            for _ in range(ACCEPTS - 1):
                again = socket.fromfd(listening.fileno(), listening.family, listening.type)
                self.servers.append(
                    await loop.create_server(
                        protocol, sock=again, ssl=self.config.ssl, backlog=self.config.backlog
                    )
                )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._loop is None or self._app.draining:
            self.should_exit = True
            self._served.engine.stop("the server is shutting down")
            return
        self._app.draining = True
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._seconds
        while self._served.engine.unfinished and time.monotonic() < deadline and not self.should_exit:
            await asyncio.sleep(POLL_SECONDS)
        self._served.engine.stop("the server is shutting down")
        await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True


async def serve(
    source: ModelSource,
    spawned: Spawned,
    options: ServerOptions,
    *,
    on_loading: OnLoading,
    on_ready: Callable[[Served, str], None],
    on_end: Callable[[Exchanged], None],
) -> int:
    """Load the model, serve until a signal comes, and return the exit code. Raises InfernumError."""
    engine = EngineClient(spawned)
    try:
        ready = await engine.ready(on_loading)
        names = options.names or (source.name,)
        metrics = Metrics(options.metrics_prefix, names[0])
        served = Served(
            source, names, engine, ready, options.limits, metrics, options.chat_template, options.parsers
        )
        engine.on_step = lambda stepped, first, gaps: metrics.stepped(
            stepped.load, ready, len(stepped.tokens) - stepped.tokens.count(NO_TOKEN), first, gaps
        )
        app = App(served, stall_seconds=options.stall_seconds, ui=options.ui)
        server = HttpServer(_config(app, options, on_end), app, served, options.shutdown_seconds)
        server.on_started = lambda: on_ready(served, _address(server))
        gc.collect()
        gc.freeze()  # what the start has made, collections need not look at again
        await server.serve()
        return 0 if server.started else 1
    finally:
        await engine.close()


def _config(app: App, options: ServerOptions, on_end: Callable[[Exchanged], None]) -> uvicorn.Config:
    guard = Guard(
        app.asgi(),
        keys=hashed_keys(options.keys),
        hosts=None if options.uds else local_hosts(options.host),
        origins=options.origins,
        on_end=on_end,
    )
    try:
        config = uvicorn.Config(
            guard,
            host=options.host,
            port=options.port,
            uds=options.uds,
            root_path=options.root_path,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            http=partial(HttpProtocol, reader_seconds=options.limits.reader),  # pyright: ignore[reportArgumentType]
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        config.load()
    except (OSError, ValueError) as error:
        raise InfernumError(f"the server cannot start: {error}") from error
    return config


def _address(server: HttpServer) -> str:
    """Where the server can be reached; the port is the real one where the options have 0."""
    config = server.config
    if config.uds:
        return f"unix:{config.uds}"
    host, port, *_ = server.servers[0].sockets[0].getsockname()
    return f"{'https' if config.is_ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
