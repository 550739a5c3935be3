"""/v1/completions: text that goes on from a prompt."""

from __future__ import annotations

from infernum.serve.chunks import ChunkedTask
from infernum.serve.generation import Piece
from infernum.serve.logprobs import Offsets, Place
from infernum.serve.problems import invalid
from infernum.serve.requests import MOST_CHOICES, CompletionRequest
from infernum.serve.responses import CompletionChoice, CompletionResponse, Usage
from infernum.serve.served import Served

DEFAULT_TOKENS = 16
"""max_tokens of a request that has none, as in OpenAI's interface."""


class CompletionTask(ChunkedTask[CompletionRequest]):
    """One request of /v1/completions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._offsets: dict[int, Offsets] = {}
        """Where the tokens of each choice are in its text, from its first piece on."""
        if self.request.echo:
            self._in_full = set(range(len(self.wishes)))

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
        if request.echo:
            _ = served.needed_tokenizer
        most = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        grammar = await served.grammar(request)
        wishes = served.wishes(request, prompts, most, chat=False, grammar=grammar)
        return cls(served, request, f"cmpl-{identity}", model, prompts, wishes)

    def response(self, pieces: list[Piece], usage: Usage) -> CompletionResponse:
        return self._response([self._choice(piece) for piece in pieces], usage)

    def chunk(self, piece: Piece | None, usage: Usage | None) -> CompletionResponse:
        return self._response([] if piece is None else [self._choice(piece)], usage)

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

    def _choice(self, piece: Piece) -> CompletionChoice:
        """The choice of a piece, with the prompt in the first piece where it is to be echoed."""
        speller, tokens, places = self.served.speller, piece.tokens, list[Place | None](piece.logprobs)
        text, offsets = piece.text, self._offsets.get(piece.index)
        if offsets is None:
            shows_special = self.request.skip_special_tokens is False
            offsets = self._offsets[piece.index] = speller.offsets(shows_special=shows_special)
            if self.request.echo:
                text = self._prompt_text(piece.index) + text
                if self.request.logprobs is not None and piece.prompt is not None:
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

    def _prompt_text(self, index: int) -> str:
        prompt = self.prompts[index * len(self.prompts) // len(self.wishes)]
        return self.served.needed_tokenizer.decode(prompt)


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
