"""The endpoints by path, and how each request is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infernum.serve import bodies, information
from infernum.serve.chats import ChatTask
from infernum.serve.completions import CompletionTask
from infernum.serve.exchange import Answer
from infernum.serve.messages_request import MessagesRequest
from infernum.serve.messages_task import MessagesTask, count_tokens
from infernum.serve.metrics import CONTENT_TYPE
from infernum.serve.openapi import document
from infernum.serve.page import page
from infernum.serve.problems import Problem, internal, unavailable
from infernum.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from infernum.serve.response_request import ResponsesRequest
from infernum.serve.response_task import ResponseTask
from infernum.serve.served import Served
from infernum.serve.status import status

WATCHING_PATHS = frozenset({"/health", "/ping", "/metrics", "/status"})
"""Paths that are asked for again and again by whoever watches a server, the page among them."""


@dataclass(frozen=True)
class Endpoint:
    """Answers a request: `answer` returns the application that does it. Starlette wraps functions at some cost."""

    answer: Callable[[Request], Awaitable[ASGIApp]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self.answer(Request(scope, receive, send))
        await answer(scope, receive, send)


class App:
    """The endpoints of a server, with a page at / unless `ui` is False.

    Once `draining` is set, no request that generates is taken any more.
    """

    def __init__(self, served: Served, *, stall_seconds: float = 60.0, ui: bool = True) -> None:
        self._served = served
        self._stall_seconds = stall_seconds
        self.draining = False
        self.paths: dict[str, tuple[str, Endpoint]] = {
            "/v1/completions": ("POST", self._posted(CompletionRequest, self._complete)),
            "/v1/chat/completions": ("POST", self._posted(ChatRequest, self._chat)),
            "/v1/responses": ("POST", self._posted(ResponsesRequest, self._respond)),
            "/v1/messages": ("POST", self._posted(MessagesRequest, self._answer_message)),
            "/v1/messages/count_tokens": ("POST", self._posted(MessagesRequest, self._count_tokens)),
            "/v1/models": ("GET", self._got(lambda request: information.models(served))),
            "/v1/models/{id:path}": ("GET", self._got(lambda request: information.model(served, request))),
            "/tokenize": ("POST", self._posted(TokenizeRequest, self._tokenize)),
            "/detokenize": ("POST", self._posted(DetokenizeRequest, self._detokenize)),
            "/tokenizer_info": ("GET", self._got(lambda request: information.tokenizer_info(served))),
            "/health": ("GET", self._got(lambda request: self._health())),
            "/ping": ("GET", self._got(lambda request: self._health())),
            "/version": ("GET", self._got(lambda request: information.version())),
            "/metrics": ("GET", Endpoint(self._measure)),
            "/status": ("GET", self._got(lambda request: status(served, self._trouble()))),
            "/openapi.json": ("GET", self._got(lambda request: msgspec.Raw(document()))),
        }
        if ui:
            self.paths["/"] = ("GET", Endpoint(self._page))

    def asgi(self) -> ASGIApp:
        """The application without its guard. Paths of /v1 are there without it too: some clients leave it out."""
        routes = [
            Route(name, endpoint, methods=[method])
            for path, (method, endpoint) in self.paths.items()
            for name in dict.fromkeys([path, path.removeprefix("/v1")])
        ]
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: self._refused, Problem: _told, Exception: _failed},  # pyright: ignore[reportArgumentType]
        )

    def _posted(self, kind: type[Any], serve: Callable[[Any, Request], Awaitable[ASGIApp]]) -> Endpoint:
        decoder = msgspec.json.Decoder(kind)
        limits = self._served.limits

        async def answer(request: Request) -> ASGIApp:
            return await serve(await bodies.read(request, decoder, limits.body, limits.nesting), request)

        return Endpoint(answer)

    def _got(self, body: Callable[[Request], Any]) -> Endpoint:
        async def answer(request: Request) -> Answer:
            return Answer(body(request))

        return Endpoint(answer)

    async def _complete(self, body: CompletionRequest, request: Request) -> CompletionTask:
        self._check_open()
        return await CompletionTask.of(self._served, body, request.state.identity)

    async def _chat(self, body: ChatRequest, request: Request) -> ChatTask:
        self._check_open()
        return await ChatTask.of(self._served, body, request.state.identity)

    async def _respond(self, body: ResponsesRequest, request: Request) -> ResponseTask:
        self._check_open()
        return await ResponseTask.of(self._served, body, request.state.identity)

    async def _answer_message(self, body: MessagesRequest, request: Request) -> MessagesTask:
        self._check_open()
        return await MessagesTask.of(self._served, body, request.state.identity)

    async def _count_tokens(self, body: MessagesRequest, request: Request) -> Answer:
        return Answer(await count_tokens(self._served, body))

    async def _tokenize(self, body: TokenizeRequest, request: Request) -> Answer:
        return Answer(await information.tokenize(self._served, body))

    async def _detokenize(self, body: DetokenizeRequest, request: Request) -> Answer:
        return Answer(information.detokenize(self._served, body))

    async def _measure(self, request: Request) -> Response:
        return Response(self._served.metrics.text(), media_type=CONTENT_TYPE)

    async def _page(self, request: Request) -> Response:
        return page()

    def _health(self) -> Any:
        self._check_open()
        return information.health(self._served, self._stall_seconds)

    def _trouble(self) -> str | None:
        """Why the server is not healthy."""
        try:
            self._health()
        except Problem as problem:
            return str(problem)
        return None

    def _check_open(self) -> None:
        if self.draining:
            raise unavailable("the server is shutting down")

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        """Starlette's own refusals: a path or a method that is not there."""
        path, method = request.url.path, request.method
        if error.status_code == 405:
            message = f"{path} does not take {method}; it takes {Headers(error.headers).get('allow', 'another method')}"
            problem = Problem(405, message, code="method_not_allowed", headers=error.headers)
        else:
            known = ", ".join(path for path in self.paths if "{" not in path)
            problem = Problem(404, f"there is no {path} here; there are {known}", code="not_found")
        return await _told(request, problem)


async def _failed(request: Request, error: Exception) -> Response:
    del error  # Starlette raises it again, and the log has it
    return await _told(request, internal("the server failed; its log says why"))


async def _told(request: Request, problem: Problem) -> Response:
    del request
    return Response(
        problem.json, status_code=problem.status, headers=problem.headers, media_type="application/json"
    )
