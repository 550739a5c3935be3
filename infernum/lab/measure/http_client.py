"""An HTTP client that costs little: one connection, one request at a time, and the moment at which each event came."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from infernum.errors import RequestError

CONNECT_SECONDS = 10.0
"""How long the connection to a server may take."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and what every request to it carries. `path` stands in front of the paths of requests."""

    host: str
    port: int
    path: str
    secure: bool
    headers: Mapping[str, str]

    @classmethod
    def of(cls, url: str, key: str | None) -> Address:
        """The address of a URL, with or without /v1 at its end. Raises RequestError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise RequestError(
                f"{url!r} is no URL ({error}); give one such as http://127.0.0.1:8000"
            ) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(f"{url!r} is no URL of a server; give one such as http://127.0.0.1:8000")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        headers = {"host": parts.netloc.rpartition("@")[2], "content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return cls(parts.hostname, port or (443 if secure else 80), path, secure, headers)


@dataclass
class Answer:
    """What has come for one request.

    status  of HTTP; 0: no answer came
    body    of an answer that is no stream
    times   when each event with text came, in seconds of `time.perf_counter`
    tokens  generated, as the server counts them; where it does not, one for each event
    error   why there is no whole answer
    """

    status: int = 0
    body: bytes = b""
    times: list[float] = field(default_factory=list[float])
    tokens: int = 0
    error: str | None = None


class Connection(asyncio.Protocol):
    """One connection to a server, opened by `connect`. `closed` is True once it can send no more requests."""

    def __init__(self, address: Address) -> None:
        self.closed = False
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._answer = Answer()
        self._streams = False
        self._line = b""
        self._done: asyncio.Future[Answer] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request, and return its whole answer."""
        assert self._transport is not None, "`connect` makes connections"
        head = f"{method} {self._address.path}{path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._address.headers.items())
        self._answer, self._line, self._streams = Answer(), b"", False
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode("latin-1") + b"\r\n" + body)
        return await self._done

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end(f"the server closed the connection{f' ({exc})' if exc else ''}")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"the server does not speak HTTP ({error})")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if name.lower() == b"content-type":
            self._streams = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self._streams:
            self._answer.body += body
            return
        now = time.perf_counter()
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take_event(line[5:].strip(), now)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._answer.status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        self._end(None)

    def _take_event(self, event: bytes, now: float) -> None:
        answer = self._answer
        if event == b"[DONE]":
            return
        if event.startswith(b'{"error"'):
            answer.error = str(json.loads(event)["error"])
        elif b'"choices":[]' in event or b'"choices": []' in event:
            answer.tokens = json.loads(event)["usage"]["completion_tokens"]
        else:
            answer.times.append(now)

    def _end(self, error: str | None) -> None:
        if self._done is None or self._done.done():
            return
        answer = self._answer
        answer.error = answer.error or error
        answer.tokens = answer.tokens or len(answer.times)
        self._done.set_result(answer)


async def connect(address: Address) -> Connection:
    """Open a connection. Raises RequestError."""
    secure = ssl.create_default_context() if address.secure else None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(address), address.host, address.port, ssl=secure
            )
    except (OSError, TimeoutError) as error:
        raise RequestError(
            f"{address.host}:{address.port} cannot be reached ({error or 'no answer'}); is the server running?"
        ) from error
    return connection
