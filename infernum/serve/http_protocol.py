"""uvicorn's HTTP protocol, with limits on the head of a request and errors of OpenAI's form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infernum.serve.problems import Problem

LONGEST_HEAD = 64 << 10
"""Bytes of a request line and its headers."""

MOST_HEADERS = 100

HEAD_SECONDS = 30.0
"""How long a client may take to send them."""


CONNECTION = "connection"
"""Where the state of an ASGI scope has the `HttpProtocol`."""


class HttpProtocol(HttpToolsProtocol):
    """One connection of a client, which is cut when the client reads nothing of an answer for `reader_seconds`."""

    def __init__(self, *arguments: Any, reader_seconds: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._reader_seconds = reader_seconds
        self._reader: asyncio.TimerHandle | None = None
        self._head_bytes: int | None = 0
        self._deadline: asyncio.TimerHandle | None = None
        self.is_full = False
        """True while the client reads more slowly than the server writes."""
        self.on_reading: Callable[[], None] | None = None
        """Called when the client reads again, after `is_full`."""

    def write_part(self, body: bytes) -> None:
        """Write a part of a body of unknown length, the head of which ASGI has sent."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        self._forget_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client; the connection is closed when a head is too long."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if (
            self._head_bytes is not None
            and self._head_bytes > LONGEST_HEAD
            and not self.transport.is_closing()
        ):
            self._refuse(431, f"the headers are longer than {LONGEST_HEAD} bytes; send less")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("state", {})[CONNECTION] = self
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_has_come()
        if len(self.headers) > MOST_HEADERS:
            self._refuse(431, f"the request has more than {MOST_HEADERS} headers; send less")
        else:
            super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than the server writes."""
        super().pause_writing()
        self.is_full = True
        self._watch_reader(0)

    def resume_writing(self) -> None:
        self._forget_reader()
        self.is_full = False
        super().resume_writing()
        if self.on_reading is not None:
            self.on_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser has not understood."""
        if not self.transport.is_closing():
            self._refuse(400, f"this is no HTTP request that the server understands ({msg})")

    def _await_head(self) -> None:
        if self._deadline is None:
            self._head_bytes = 0
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._time_out)

    def _head_has_come(self) -> None:
        self._head_bytes = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(408, f"the headers did not come within {HEAD_SECONDS:.0f} seconds")

    def _watch_reader(self, unread: int) -> None:
        """Cut the connection where, `reader_seconds` later, the client still has so many bytes to read."""
        now_unread = self.transport.get_write_buffer_size()
        if now_unread == unread:
            self.transport.abort()
            return
        self._reader = self.loop.call_later(self._reader_seconds, self._watch_reader, now_unread)

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _refuse(self, status: int, message: str) -> None:
        body = Problem(status, message).json
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
