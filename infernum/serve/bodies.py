"""Reads the body of a request: not too long, JSON, of the right fields."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from infernum.serve.exchange import ClientGone
from infernum.serve.problems import Problem, invalid
from infernum.serve.requests import ChatRequest, Generating

Body = TypeVar("Body")

LONG_BODY = 1 << 16
"""Bytes from which on a body is decoded beside the event loop."""

_STRINGS_AND_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|([\[{])|([\]}])', re.DOTALL)
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


async def read(request: Request, decoder: msgspec.json.Decoder[Body], longest: int, nesting: int) -> Body:
    """The body of a request. Raises Problem, and ClientGone."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            415,
            f"the content type is {kind or 'missing'}; send JSON with `content-type: application/json`",
            code="unsupported_media_type",
        )
    body = await _bytes(request, longest)
    decode = lambda: _decoded(body, decoder, nesting)  # noqa: E731
    decoded = decode() if len(body) < LONG_BODY else await asyncio.to_thread(decode)
    if isinstance(decoded, Generating):
        check_supported(decoded)
    return decoded


async def _bytes(request: Request, longest: int) -> bytes:
    length = request.headers.get("content-length", "")
    parts = bytearray()
    if not (length.isdigit() and int(length[:20]) > longest):
        try:
            async for part in request.stream():
                parts += part
                if len(parts) > longest:
                    break
            else:
                return bytes(parts)
        except ClientDisconnect as error:
            raise ClientGone from error
    raise Problem(
        413,
        f"the body is longer than {longest} bytes; send less",
        code="body_too_long",
        headers={"connection": "close"},
    )


def _decoded(body: bytes, decoder: msgspec.json.Decoder[Body], nesting: int) -> Body:
    depth = 0
    for match in _STRINGS_AND_BRACKETS.finditer(body):
        depth += (match[1] is not None) - (match[2] is not None)
        if depth > nesting:
            raise invalid(f"the body has more than {nesting} brackets within brackets; send flatter JSON")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _FIELD.search(text)
        field = re.split(r"[.\[]", place[1])[0] if place else None
        missing = re.search(r"required field `([^`]*)`", text)
        where = field or (missing[1] if missing else None)
        said = text[: place.start()] if place else text
        raise invalid(f"{place[1]}: {said}" if place and place[1] else said, where or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON ({error})") from error


def check_supported(request: Generating) -> None:
    """Raises Problem for a field that is set and not supported, and for fields that contradict each other."""
    for name, reason in request.UNSUPPORTED.items():
        value: Any = getattr(request, name)
        if value not in (None, False, [], {}):
            raise invalid(f"{name}: {reason}", name, "unsupported_parameter")
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs needs logprobs; set logprobs to true", "top_logprobs")
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs are not for streams; leave out stream", "prompt_logprobs")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only for streams; set stream to true", "stream_options")
