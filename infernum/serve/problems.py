"""What a request can be refused for: OpenAI's form of an error, with a status and headers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from infernum.errors import shown

RETRY_SECONDS = 1
"""Seconds after which a client should try again where the server is full or not ready."""


class ErrorDetail(msgspec.Struct, kw_only=True):
    """The error of a response.

    n_prompt_tokens, n_ctx  where a prompt is too long: its tokens, and those that the context holds, under the names
                            that clients of llama.cpp know
    """

    message: str
    type: str
    param: str | None
    code: str | int | None
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    """The body of every response that is an error, and the event of an error in a stream."""

    error: ErrorDetail


class Problem(Exception):
    """A request that is answered by an error.

    status   the HTTP status
    kind     `type` of the error
    param    the field of the request that is wrong
    code     a word for programs
    retry    True where the same request may succeed a moment later
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | int | None = None,
        retry: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(ErrorDetail(message=shown(message), type=kind, param=param, code=code))
        retrying = {"retry-after": str(RETRY_SECONDS)} if retry else {"x-should-retry": "false"}
        self.headers = {**retrying, **(headers or {})}

    @property
    def json(self) -> bytes:
        """The body of the response."""
        return msgspec.json.encode(self.body)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """A request that no server would answer: 400."""
    return Problem(400, message, param=param, code=code)


def too_long(message: str, prompt_tokens: int, context: int) -> Problem:
    """A prompt that the context cannot hold: 400, with what clients look for."""
    problem = Problem(
        400, message, kind="exceed_context_size_error", param="prompt", code="context_length_exceeded"
    )
    problem.body.error.n_prompt_tokens, problem.body.error.n_ctx = prompt_tokens, context
    return problem


def unavailable(message: str) -> Problem:
    """The engine cannot serve now: 503."""
    return Problem(503, message, kind="service_unavailable_error", code="unavailable", retry=True)


def internal(message: str) -> Problem:
    """A fault of ours: 500."""
    return Problem(500, message, kind="internal_error", code="internal_error")
