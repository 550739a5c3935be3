"""What the server does for its clients beside its answers: how it takes their connections."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any, cast

import uvicorn
import uvloop

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
