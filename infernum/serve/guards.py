"""What every request passes before an endpoint sees it: keys, hosts, origins, and the id that its answer carries."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infernum.serve.exchange import CLIENT_GONE, ClientGone, send_body
from infernum.serve.problems import Problem, internal

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/version"})
"""Paths that need no key. The page at / holds no data: it asks for the key, and sends it with each of its requests."""

KEY_HASH = "infernum.key_hash"
"""Where a request's scope has the hash of the key that it carried, in hex."""

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Exchanged:
    """A request that was answered, for the log and for metrics. `seconds` from its first byte to its last.

    `path` is the one behind `--root-path`.
    """

    method: str
    path: str
    status: int
    seconds: float
    identity: str
    client: str


@dataclass(frozen=True)
class Guard:
    """The outermost part of the server.

    keys      SHA-256 of each key, one of which a request must carry; none: no key is needed
    hosts     names that a request's Host may have; None: any. Protects a server that only this machine can reach from
              pages whose host name was bound to this machine
    origins   pages of other sites that may read answers; ("*",): all
    on_end    called with each request that was answered
    """

    app: ASGIApp
    keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] | None = None
    origins: Sequence[str] = ()
    on_end: Callable[[Exchanged], None] = field(default=lambda exchanged: None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = Headers(scope=scope)
        proposed = headers.get("x-request-id", "")
        identity = proposed if _REQUEST_ID.fullmatch(proposed) else secrets.token_hex(16)
        scope.setdefault("state", {})["identity"] = identity
        origin = headers.get("origin")
        status = CLIENT_GONE
        begun = False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = identity
                if origin is not None and self._allows(origin):
                    answered["access-control-allow-origin"] = origin
                    answered.add_vary_header("Origin")
            await send(message)

        try:
            await self._passed(scope, headers, receive, sending)
        except ClientGone:
            status = CLIENT_GONE
        except Problem as problem:
            await send_body(sending, problem.status, problem.json, problem.headers)
        except Exception:
            if not begun:
                problem = internal("the server failed; its log says why")
                await send_body(sending, problem.status, problem.json, problem.headers)
            raise
        finally:
            client = scope.get("client")
            self.on_end(
                Exchanged(
                    scope["method"],
                    _path(scope),
                    status,
                    time.perf_counter() - begin,
                    identity,
                    client[0] if client else "-",
                )
            )

    async def _passed(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise Problem(403, f"this server is not {host!r}; address it as localhost", code="wrong_host")
        if scope["method"] == "OPTIONS":
            await self._preflight(headers, send)
            return
        if self.keys and _path(scope) not in OPEN_PATHS:
            scope[KEY_HASH] = self._checked_key(headers)
        await self.app(scope, receive, send)

    def _checked_key(self, headers: Headers) -> str:
        """The hash of the key that a request carries. Raises Problem where it is none of `keys`."""
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        key = credential.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        hashed = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(hashed, known) for known in self.keys]  # all, whichever fits
        if not any(matches):
            raise Problem(
                401,
                "the key is wrong; send `Authorization: Bearer KEY`"
                if key
                else "send `Authorization: Bearer KEY`",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return hashed.hex()

    async def _preflight(self, headers: Headers, send: Send) -> None:
        allowed: dict[str, str] = {"allow": "GET, POST, OPTIONS"}
        if self._allows(headers.get("origin", "")):
            asked = headers.get("access-control-request-headers", "authorization, content-type")
            allowed |= {"access-control-allow-methods": "GET, POST, OPTIONS", "access-control-max-age": "600"}
            allowed["access-control-allow-headers"] = asked
        await send_body(send, 200, b"", allowed)

    def _allows(self, origin: str) -> bool:
        return origin in self.origins or "*" in self.origins


def local_hosts(host: str) -> frozenset[str] | None:
    """The names that requests may give a server bound to `host`: those of this machine; None: any."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return LOCAL_NAMES | {host} if local else None


def hashed_keys(keys: Sequence[str]) -> tuple[bytes, ...]:
    """Keys as a `Guard` knows them."""
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def _path(scope: Scope) -> str:
    """The path as routes know it: uvicorn puts the path that a proxy has taken off in front of it again."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
