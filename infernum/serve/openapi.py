"""The description of the interface, /openapi.json, made from the structs that decode requests and encode responses."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from infernum import __version__
from infernum.serve import responses
from infernum.serve.messages_request import MessagesRequest
from infernum.serve.messages_task import MessageBody, TokenCount
from infernum.serve.problems import ErrorBody
from infernum.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from infernum.serve.response_items import ResponseBody
from infernum.serve.response_request import ResponsesRequest

POSTS: dict[str, tuple[type[Any], type[Any], str]] = {
    "/v1/completions": (CompletionRequest, responses.CompletionResponse, "Continue texts."),
    "/v1/chat/completions": (ChatRequest, responses.ChatResponse, "Answer a conversation."),
    "/v1/responses": (ResponsesRequest, ResponseBody, "Answer a conversation, item by item."),
    "/v1/messages": (MessagesRequest, MessageBody, "Answer a conversation, in Anthropic's form."),
    "/v1/messages/count_tokens": (MessagesRequest, TokenCount, "Count the tokens of a conversation."),
    "/tokenize": (TokenizeRequest, responses.Tokens, "The tokens of a text or a conversation."),
    "/detokenize": (DetokenizeRequest, responses.Text, "The text of tokens."),
}
GETS: dict[str, tuple[type[Any], str]] = {
    "/v1/models": (responses.ModelList, "The names of the model."),
    "/v1/models/{id}": (responses.Model, "One name of the model."),
    "/tokenizer_info": (responses.TokenizerInfo, "The special tokens and the chat template."),
    "/health": (responses.Health, "Whether the engine works."),
    "/status": (responses.Status, "What is served, and what is being computed."),
    "/ping": (responses.Health, "Whether the engine works."),
    "/version": (responses.Version, "The version of Infernum."),
}
STREAMS = {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"}


@cache
def document() -> bytes:
    """The description as JSON."""
    structs = [
        *(part for post in POSTS.values() for part in post[:2]),
        *(get[0] for get in GETS.values()),
        ErrorBody,
    ]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    schema = dict(zip(structs, schemas, strict=True))
    error = {"description": "An error.", "content": {"application/json": {"schema": schema[ErrorBody]}}}
    paths: dict[str, Any] = {}
    for path, (body, answer, summary) in POSTS.items():
        content: dict[str, Any] = {"application/json": {"schema": schema[answer]}}
        if path in STREAMS:
            content["text/event-stream"] = {}  # a stream of events, which no schema of one text describes
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema[body]}}},
                "responses": {"200": {"description": "The answer.", "content": content}, "default": error},
            }
        }
    for path, (answer, summary) in GETS.items():
        content = {"application/json": {"schema": schema[answer]}}
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {"200": {"description": "The answer.", "content": content}, "default": error},
        }
        if "{id}" in path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths[path] = {"get": operation}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Infernum", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }
    )
