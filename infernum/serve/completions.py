"""/v1/completions: text that goes on from a prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from infernum.serve.exchange import Answer, stream, whole
from infernum.serve.generation import Gathered, Generation, Piece, Wish
from infernum.serve.logprobs import Offsets, Place
from infernum.serve.problems import invalid
from infernum.serve.requests import MOST_CHOICES, CompletionRequest
from infernum.serve.responses import (
    TEXT,
    CompletionChoice,
    CompletionResponse,
    PromptDetails,
    Usage,
    around_text,
    encode,
    event,
)
from infernum.serve.served import Served

DEFAULT_TOKENS = 16
"""max_tokens of a request that has none, as in OpenAI's interface."""


@dataclass
class CompletionTask:
    """One request of /v1/completions that was read and found right."""

    served: Served
    request: CompletionRequest
    id: str
    model: str
    prompts: list[list[int]]
    echoed: list[str]
    wishes: list[Wish]
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    async def of(cls, served: Served, request: CompletionRequest, identity: str) -> CompletionTask:
        """Read a request. Raises Problem."""
        model = served.check_model(request.model)
        prompts = [
            served.check_ids(prompt if isinstance(prompt, list) else await served.encode(prompt))
            for prompt in _prompts(request)
        ]
        if request.max_tokens == 0 and not request.echo:
            raise invalid("max_tokens is 0; ask for one token at least, or echo the prompt", "max_tokens")
        most = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        wishes = served.wishes(request, prompts, most, chat=False)
        count = len(wishes) // len(prompts)
        echoed = [
            served.needed_tokenizer.decode(prompt) if request.echo else ""
            for prompt in prompts
            for _ in range(count)
        ]
        return cls(served, request, f"cmpl-{identity}", model, prompts, echoed, wishes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.request.stream:
            await stream(self._events(), receive, send)
        else:
            answer = await whole(self._whole(), receive)
            await Answer(answer)(scope, receive, send)

    async def _whole(self) -> CompletionResponse:
        texts = [Gathered() for _ in self.wishes]
        with closing(self.served.generate(self.wishes)) as generation:
            while generation.unfinished:
                for piece in await generation.next_pieces():
                    texts[piece.index].take(piece)
            usage = self._usage(generation)
        return self._response(
            [self._choice(text.piece(index), self._offsets()) for index, text in enumerate(texts)], usage
        )

    async def _events(self) -> AsyncIterator[bytes]:
        options = self.request.stream_options
        always = bool(options and options.continuous_usage_stats)
        plain = [
            around_text(
                self._response(
                    [self._choice(Piece(index, TEXT, [], []), self._offsets(), echoes=False)], None
                )
            )
            for index in range(len(self.wishes))
        ]
        with closing(self.served.generate(self.wishes)) as generation:
            begun = [not self.request.echo] * len(self.wishes)
            offsets = [self._offsets() for _ in self.wishes]
            while generation.unfinished:
                body = b""
                for piece in await generation.next_pieces():
                    echoes = not begun[piece.index]
                    begun[piece.index] = True
                    if piece.finish_reason is None and not (piece.logprobs or always or echoes):
                        if piece.text:
                            front, behind = plain[piece.index]
                            body += front + encode(piece.text) + behind
                    else:
                        usage = self._usage(generation) if always else None
                        choice = self._choice(piece, offsets[piece.index], echoes=echoes)
                        body += event(self._response([choice], usage))
                yield body
            if options and options.include_usage:
                yield event(self._response([], self._usage(generation)))

    def _response(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
        response = CompletionResponse(
            id=self.id,
            object="text_completion",
            created=self.created,
            model=self.model,
            system_fingerprint=self.served.fingerprint,
            choices=choices,
        )
        if usage is not None:
            response.usage = usage
        return response

    def _offsets(self) -> Offsets:
        return self.served.speller.offsets(shows_special=self.request.skip_special_tokens is False)

    def _choice(self, piece: Piece, offsets: Offsets, *, echoes: bool = True) -> CompletionChoice:
        """The choice of a piece, with the prompt where it is to be echoed and `echoes`."""
        speller, tokens, places = self.served.speller, piece.tokens, list[Place | None](piece.logprobs)
        text = piece.text
        if echoes:
            text = self.echoed[piece.index] + text
            if self.request.echo and self.request.logprobs is not None and piece.prompt is not None:
                tokens, places = self.wishes[piece.index].prompt + tokens, [*piece.prompt, *places]
        choice = CompletionChoice(
            index=piece.index,
            text=text,
            logprobs=speller.completion(places, tokens, offsets) if places else None,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
        )
        if self.request.prompt_logprobs is not None and piece.prompt is not None:
            choice.prompt_logprobs = speller.prompt(piece.prompt)
        return choice

    def _usage(self, generation: Generation) -> Usage:
        return usage_of(self.prompts, generation)


def usage_of(prompts: list[list[int]], generation: Generation) -> Usage:
    """The numbers of tokens so far."""
    count = sum(map(len, prompts))
    output = generation.output_tokens
    return Usage(
        prompt_tokens=count,
        completion_tokens=output,
        total_tokens=count + output,
        prompt_tokens_details=PromptDetails(cached_tokens=generation.cached_tokens),
    )


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a request: a text, texts, token ids, or lists of them. Raises Problem."""
    prompt = request.prompt
    if isinstance(prompt, str):
        prompts: list[str | list[int]] = [prompt]
    elif prompt and all(isinstance(item, int) for item in prompt):
        prompts = [[item for item in prompt if isinstance(item, int)]]
    else:
        prompts = [item for item in prompt or () if not isinstance(item, int)]
        if len(prompts) != len(prompt or ()):
            raise invalid(
                "prompt mixes token ids with texts or lists; give one list of token ids, or a list of prompts",
                "prompt",
            )
    if not prompts:
        raise invalid("prompt is missing or empty; give a text, token ids, or a list of either", "prompt")
    if len(prompts) > MOST_CHOICES:
        raise invalid(f"prompt has {len(prompts)} prompts; at most {MOST_CHOICES} are allowed", "prompt")
    return prompts
