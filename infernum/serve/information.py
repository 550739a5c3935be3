"""The endpoints that generate nothing: models, tokens, health and version."""

from __future__ import annotations

import time

from starlette.requests import Request

from infernum import __version__
from infernum.errors import InfernumError
from infernum.serve.problems import Problem, invalid, unavailable
from infernum.serve.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from infernum.serve.responses import (
    Health,
    Model,
    ModelList,
    Text,
    TokenizerInfo,
    TokenPiece,
    Tokens,
    Version,
)
from infernum.serve.served import Served


def models(served: Served) -> ModelList:
    """/v1/models"""
    return ModelList(object="list", data=[_model(served, name) for name in served.names])


def model(served: Served, request: Request) -> Model:
    """/v1/models/{id}. Raises Problem."""
    return _model(served, served.check_model(request.path_params["id"]))


def health(served: Served, stall_seconds: float) -> Health:
    """/health and /ping. Raises Problem where the engine has ended, or has work and does none."""
    engine = served.engine
    if engine.death is not None:
        raise unavailable(engine.death)
    silent = time.monotonic() - max(engine.stepped, engine.asked)
    if engine.unfinished and silent > stall_seconds:
        raise unavailable(f"the engine has work and has finished no step for {silent:.0f} seconds")
    return Health("ok")


def version() -> Version:
    """/version"""
    return Version(__version__)


async def tokenize(served: Served, request: TokenizeRequest) -> Tokens:
    """/tokenize. Raises Problem."""
    served.check_model(request.model)
    text = request.content if request.prompt is None else request.prompt
    if (text is None) == (request.messages is None):
        raise invalid("give either prompt or messages", "prompt")
    if request.messages is not None:
        chat = ChatRequest(
            messages=request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=request.tools,
        )
        ids = await served.encode_chat(chat)
    else:
        adds = request.add_special if request.add_special_tokens is None else request.add_special_tokens
        adds = request.prompt is not None if adds is None else adds
        ids = await served.encode(text or "", special=adds)
    tokens = Tokens(tokens=[*ids], count=len(ids), max_model_len=served.ready.longest)
    if request.return_token_strs:
        tokens.token_strs = [served.needed_tokenizer.spelled(token) for token in ids]
    if request.with_pieces:
        tokens.tokens = [_piece(served, token) for token in ids]
    return tokens


def _piece(served: Served, token: int) -> TokenPiece:
    spelled = served.needed_tokenizer.bytes_of(token)
    try:
        return TokenPiece(token, spelled.decode())
    except UnicodeDecodeError:
        return TokenPiece(token, list(spelled))


def detokenize(served: Served, request: DetokenizeRequest) -> Text:
    """/detokenize. Raises Problem."""
    served.check_model(request.model)
    if request.tokens:
        served.check_ids(request.tokens)
    text = served.needed_tokenizer.decode(request.tokens, special=True)
    return Text(prompt=text, content=text)


def tokenizer_info(served: Served) -> TokenizerInfo:
    """/tokenizer_info. Raises Problem."""
    named = served.needed_tokenizer.named
    try:
        template = served.chat.template.default_text
    except (Problem, InfernumError):
        template = None
    return TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=named.get("bos_token"),
        eos_token=named.get("eos_token"),
        pad_token=named.get("pad_token"),
        unk_token=named.get("unk_token"),
        chat_template=template,
        max_model_len=served.ready.longest,
    )


def _model(served: Served, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=served.created,
        owned_by="infernum",
        root=served.source.name,
        parent=None,
        max_model_len=served.ready.longest,
    )
