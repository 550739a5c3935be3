"""One HTTP exchange whose answer is generated: as one body, or as a stream of events, until the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from infernum.serve.generation import Generation
from infernum.serve.http_protocol import CONNECTION, HttpProtocol
from infernum.serve.problems import Problem, internal

Result = TypeVar("Result")

QUIET_SECONDS = 15.0
"""A stream in which nothing was written for so long gets a comment, so that no proxy takes it for dead: text may be
withheld while it may yet begin a call.
"""

COMMENT = b": the answer goes on\n\n"
"""What every reader of server-sent events skips."""

CLIENT_GONE = 499
"""The status in the log where the client did not wait for the answer. Nobody receives it."""


class ClientGone(Exception):
    """The client has closed the connection, or the server has, because the client read nothing for too long."""


@dataclass
class Answer:
    """An answer with a JSON body, for Starlette."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send_body(send, self.status, msgspec.json.encode(self.body), self.headers)


async def send_body(
    send: Send,
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> None:
    """Send a whole response."""
    pairs = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def whole(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """The result of `work`, which is cancelled when the client goes. Raises ClientGone then."""
    return await _while_connected(work, receive)


async def stream(
    generation: Generation,
    events: Callable[[], bytes],
    ending: Callable[[Problem | None], bytes],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Send the events that a generation has for the client, and `ending` behind them, or behind a problem.

    `events` are those that have come since its last call. The first are awaited before the response begins, so that a
    request that fails at once has its status. Raises ClientGone when the client goes.
    """
    await _while_connected(_send_events(generation, events, ending, scope, send), receive)


async def _send_events(
    generation: Generation,
    events: Callable[[], bytes],
    ending: Callable[[Problem | None], bytes],
    scope: Scope,
    send: Send,
) -> None:
    await generation.news()
    body = events()
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    headers += [(b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        await _write(generation, events, scope["state"][CONNECTION])
        last = ending(None)
    except Problem as problem:
        last = ending(problem)
    except Exception:
        last = ending(internal("the server failed"))
        await send({"type": "http.response.body", "body": last, "more_body": False})
        raise
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _write(generation: Generation, events: Callable[[], bytes], connection: HttpProtocol) -> None:
    """Write events, at once when they come, or later and together, when the client reads again.

    Neither ASGI nor a task is between the engine's message and the socket, which is most of what an event would cost.
    """
    ended = asyncio.get_running_loop().create_future()
    quiet = True

    def write() -> None:
        nonlocal quiet
        if ended.done() or connection.is_full:
            return
        try:
            body = events()
        except Exception as error:  # for the task that waits
            ended.set_exception(error)
            return
        if body:
            quiet = False
            connection.write_part(body)
        if not generation.unfinished:
            ended.set_result(None)

    generation.on_news = connection.on_reading = write
    try:
        write()
        while not ended.done():
            quiet = True
            await asyncio.wait([ended], timeout=QUIET_SECONDS)
            if quiet and not ended.done() and not connection.is_full:
                connection.write_part(COMMENT)
        ended.result()
    finally:
        generation.on_news = connection.on_reading = None


async def _while_connected(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
