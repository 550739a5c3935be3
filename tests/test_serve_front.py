"""What the server does for its clients beside its answers: how it takes their connections."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
import uvloop

from infernum.serve import exchange
from infernum.serve.http_protocol import HttpProtocol
from infernum.serve.server import ACCEPTS, HttpServer


async def turns_to_accept(connections: int) -> int:
    """Turns of the event loop until a server has so many connections that wait for it."""
    config = uvicorn.Config(
        cast("Any", None),
        port=0,
        http=cast("Any", partial(HttpProtocol, reader_seconds=1.0)),
        lifespan="off",
        ws="none",
        log_config=None,
    )
    config.load()
    server = HttpServer(config, cast("Any", None), cast("Any", None), 0.0)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    place = server.servers[0].sockets[0].getsockname()
    clients = [socket.create_connection(place) for _ in range(connections)]
    turns = 0
    while len(server.server_state.connections) < connections:
        await asyncio.sleep(0)
        turns += 1
    for client in clients:
        client.close()
    while server.server_state.connections:
        await asyncio.sleep(0)
    for listening in server.servers:
        listening.close()
        await listening.wait_closed()
    return turns


def test_a_burst_of_connections_is_accepted_in_a_few_turns() -> None:
    assert uvloop.run(turns_to_accept(2 * ACCEPTS)) < ACCEPTS


def test_a_stream_that_is_quiet_for_long_has_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "QUIET_SECONDS", 0.02)
    written: list[bytes] = []
    connection = SimpleNamespace(is_full=False, write_part=written.append, on_reading=None)
    generation = SimpleNamespace(unfinished=1, on_news=None)
    texts = iter([b"one", b"", b"two", b"three"])

    async def quiet_in_the_middle() -> None:
        writing = asyncio.create_task(
            exchange._write(cast("Any", generation), lambda: next(texts), cast("Any", connection))  # pyright: ignore[reportPrivateUsage]
        )
        await asyncio.sleep(0.07)
        generation.on_news()
        generation.on_news()
        generation.unfinished = 0
        generation.on_news()
        await writing

    asyncio.run(quiet_in_the_middle())
    assert written[0] == b"one" and written[-2:] == [b"two", b"three"]
    assert set(written[1:-2]) == {exchange.COMMENT} and 1 <= len(written[1:-2]) <= 4
