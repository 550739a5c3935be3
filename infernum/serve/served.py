"""What the server serves: the model with its names and limits, and what a request asks of the engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from infernum.chat.chat import Chat
from infernum.chat.files import find_templates
from infernum.chat.messages import with_argument_objects
from infernum.chat.reader import AnswerForm
from infernum.engine.tokenizer import Tokenizer, load_tokenizer, why_no_tokenizer
from infernum.errors import InfernumError, RequestError
from infernum.model_folder.folder import TOKENIZER
from infernum.models.presets import ModelSource
from infernum.sampling_params import LARGEST_SEED, SamplingParams, derived_seed
from infernum.serve.engine_client import EngineClient
from infernum.serve.generation import Generation, Wish
from infernum.serve.grammar_check import GrammarCheck, GrammarSource
from infernum.serve.logprobs import Speller
from infernum.serve.metrics import Metrics
from infernum.serve.parsers import Parsers
from infernum.serve.problems import Problem, invalid, too_long
from infernum.serve.requests import MOST_BIASES, ChatRequest, Generating
from infernum.serve.structured import source_of
from infernum.serve.tools import for_template
from infernum.serve.wire import Ready

LONG_TEXT = 4096
"""Characters from which on a text is tokenized beside the event loop."""

OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""The defaults of OpenAI's interface, where the model's generation_config.json has none."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    queue          sequences that may be unfinished at once
    body           bytes of a request's body
    nesting        brackets within brackets in a body
    reader         seconds that a client may read nothing of a stream
    cache_per_key  share what the cache holds of prompts only among requests with one key
    """

    queue: int = 2048
    body: int = 32 << 20
    nesting: int = 64
    reader: float = 60.0
    cache_per_key: bool = False


@dataclass
class Served:
    """A model that is ready, under the names that clients may use; the first one is in answers."""

    source: ModelSource
    names: tuple[str, ...]
    engine: EngineClient
    ready: Ready
    limits: Limits
    metrics: Metrics
    chat_template: Path | None = None
    parsers: Parsers = field(default_factory=Parsers)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        folder = self.source.folder
        self.tokenizer: Tokenizer | None = (
            None if folder is None else load_tokenizer(folder, self.source.generation.bos_token_id)
        )

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of answers: with another one, the same request may have another answer."""
        return f"bundle-{self.ready.origin[:12]}"

    @cached_property
    def speller(self) -> Speller:
        """Spells the tokens of log-probabilities."""
        return Speller(self.tokenizer)

    @cached_property
    def chat(self) -> Chat:
        """The template and the tokenizer of chats. Raises Problem where the model has none."""
        try:
            templates = find_templates(self.source.folder, self.source.name, self.chat_template)
        except InfernumError as error:
            raise invalid(str(error)) from error
        return Chat(templates, self.needed_tokenizer)

    @cached_property
    def _grammars(self) -> GrammarCheck | None:
        folder = self.source.folder
        if folder is None or self.tokenizer is None:
            return None
        return GrammarCheck(folder / TOKENIZER, self.ready.vocab_size)

    @cached_property
    def has_chat(self) -> bool:
        """True where the model has a template for chats."""
        try:
            return bool(self.chat)
        except (Problem, InfernumError):
            return False

    @property
    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises Problem where the model has none."""
        if self.tokenizer is None:
            raise invalid(why_no_tokenizer(self.source.folder, self.source.name), "prompt")
        return self.tokenizer

    def check_model(self, name: str | None) -> str:
        """The name that an answer carries. Raises Problem for a model that is not served."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise Problem(
                404,
                f"the model {name!r} is not served here; use {' or '.join(map(repr, self.names))}",
                param="model",
                code="model_not_found",
            )
        return name

    def check_queue(self, sequences: int) -> None:
        """Raises Problem where the server has no room for so many more sequences."""
        if self.engine.unfinished + sequences > self.limits.queue:
            raise Problem(
                429,
                f"{self.engine.unfinished} sequences are waiting or running, and at most {self.limits.queue} may"
                " be: try again",
                kind="rate_limit_error",
                code="queue_full",
                retry=True,
            )

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a prompt, with the special tokens around it or without. Raises Problem."""
        tokenizer = self.needed_tokenizer
        encode = tokenizer.encode if special else tokenizer.encode_plain
        try:
            text.encode()
            return encode(text) if len(text) < LONG_TEXT else await asyncio.to_thread(encode, text)
        except UnicodeEncodeError as error:
            raise invalid("the prompt has half a character; give UTF-8", "prompt") from error
        except RequestError as error:
            raise invalid(str(error), "prompt") from error

    async def encode_chat(self, request: ChatRequest) -> list[int]:
        """The token ids of a conversation. Raises Problem."""
        offered = request.offered_tools
        arguments = dict(request.chat_template_kwargs or {})
        if "chat_template" in arguments:
            raise invalid("chat_template_kwargs: a request may not bring a template", "chat_template_kwargs")
        if request.reasoning_effort is not None:
            arguments.setdefault("reasoning_effort", request.reasoning_effort)
        try:
            return await asyncio.to_thread(
                self.chat.encode,
                with_argument_objects(request.messages),
                tools=for_template(offered) if offered else None,
                template_args=arguments,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message or False,
            )
        except InfernumError as error:
            raise invalid(str(error), "messages") from error

    async def grammar(self, request: Generating) -> str | None:
        """The grammar of the answer that a request asks for; None: any text. Raises Problem."""
        source = source_of(request.response_format, request.structured_outputs)
        return None if source is None else await self.checked_grammar(source, request)

    async def checked_grammar(self, source: GrammarSource, request: Generating) -> str:
        """The grammar of a source, for `wishes`. Raises Problem where it is none."""
        if request.ignore_eos:
            raise invalid(
                f"ignore_eos and {source.param} exclude each other: a grammar ends the answer", "ignore_eos"
            )
        if self._grammars is None:
            raise invalid(why_no_tokenizer(self.source.folder, self.source.name), source.param)
        return await self._grammars.grammar(source)

    def wishes(
        self,
        request: Generating,
        prompts: list[list[int]],
        max_tokens: int | None,
        *,
        chat: bool,
        form: AnswerForm | None = None,
        grammar: str | None = None,
    ) -> list[Wish]:
        """The sequences that a request asks for: n for each prompt, prompt after prompt. Raises Problem."""
        count = request.n or 1
        if request.best_of not in (None, count):
            raise invalid(f"best_of is {request.best_of}; it must equal n, which is {count}", "best_of")
        self.check_queue(count * len(prompts))
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        if stop:
            _ = self.needed_tokenizer
        wishes: list[Wish] = []
        for prompt in prompts:
            shortened = self._truncated(request, prompt)
            params = self._params(request, self._room(shortened, max_tokens))
            params = self.chat.params(params) if chat else params
            for _ in range(count):
                seed = None if params.seed is None else derived_seed(params.seed, len(wishes))
                wishes.append(
                    Wish(
                        shortened,
                        params if seed is None else replace(params, seed=seed),
                        stop,
                        tuple(request.stop_token_ids or ()),
                        includes_stop=bool(request.include_stop_str_in_output),
                        shows_special=request.skip_special_tokens is False,
                        priority=-(request.priority or 0),
                        salt=request.cache_salt or "",
                        form=form,
                        grammar=grammar,
                    )
                )
        return wishes

    def generate(self, wishes: list[Wish], key: str, request: str) -> Generation:
        """Queue the sequences of a request with this id; `key` is the hash of its key. Raises Problem."""
        if self.limits.cache_per_key:
            wishes = [replace(wish, salt=f"{key} {wish.salt}") for wish in wishes]
        self.metrics.request_n.observe(len(wishes))
        return Generation(self.engine, self.tokenizer, wishes, self.metrics, request)

    def check_ids(self, ids: list[int]) -> list[int]:
        """The token ids of a prompt, as they are. Raises Problem for an empty prompt and unknown tokens."""
        if not ids:
            raise invalid("the prompt is empty; give at least one token", "prompt")
        unknown = next((token for token in ids if token >= self.ready.vocab_size), None)
        if unknown is not None:
            raise invalid(
                f"the prompt has the token {unknown}; the model's tokens are 0 to {self.ready.vocab_size - 1}",
                "prompt",
            )
        return ids

    def _truncated(self, request: Generating, prompt: list[int]) -> list[int]:
        most = request.truncate_prompt_tokens
        if most is None:
            return prompt
        most = self.ready.longest - 1 if most == -1 else most
        if most == 0:
            raise invalid("truncate_prompt_tokens is 0, which leaves no prompt", "truncate_prompt_tokens")
        return prompt[-most:]

    def _room(self, prompt: list[int], max_tokens: int | None) -> int:
        """The new tokens that a prompt has room for, at most `max_tokens`. Raises Problem."""
        room = self.ready.longest - len(prompt)
        if room < 1 or (max_tokens is not None and max_tokens > room):
            asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
            raise too_long(
                f"this model holds at most {self.ready.longest} tokens of prompt and answer together; the prompt has"
                f" {len(prompt)}{asked}. Shorten it, or ask for less",
                len(prompt),
                self.ready.longest,
            )
        return room if max_tokens is None else max_tokens

    def _params(self, request: Generating, max_tokens: int) -> SamplingParams:
        """The sampling of a request: its fields, else the model's defaults, else OpenAI's. Raises Problem."""
        generation = self.source.generation
        chosen: dict[str, Any] = OPENAI_DEFAULTS | dict(generation.sampling)
        if generation.do_sample is False:
            chosen["temperature"] = 0.0
        fields = (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        for name in (*fields, "top_k", "ignore_eos", "min_tokens"):
            value = getattr(request, name)
            if value is not None:
                chosen[name] = value
        if chosen["temperature"] < 0.001:
            chosen["temperature"] = 0.0
        if chosen.get("top_k") == -1:
            chosen["top_k"] = 0
        if request.logit_bias:
            chosen["logit_bias"] = self._biases(request.logit_bias)
        seed = None if request.seed is None else (request.seed ^ request.seed >> 32) & LARGEST_SEED
        tokens = tuple(dict.fromkeys(request.stop_token_ids or ()))
        unknown = next((token for token in tokens if token >= self.ready.vocab_size), None)
        if unknown is not None:
            raise invalid(
                f"stop_token_ids has {unknown}; the model's tokens are 0 to {self.ready.vocab_size - 1}",
                "stop_token_ids",
            )
        try:
            return SamplingParams(
                max_tokens=max_tokens,
                seed=seed,
                stop_token_ids=tokens,
                logprobs=request.most_likely,
                prompt_logprobs=request.most_likely_in_prompt,
                **chosen,
            )
        except RequestError as error:
            raise invalid(str(error), str(error).split(" ", 1)[0]) from error

    def _biases(self, biases: dict[str, float]) -> dict[int, float]:
        if len(biases) > MOST_BIASES:
            raise invalid(
                f"logit_bias has {len(biases)} entries; at most {MOST_BIASES} are allowed", "logit_bias"
            )
        tokens = self.ready.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size
        read: dict[int, float] = {}
        for name, value in biases.items():
            if not name.isascii() or not name.isdigit() or len(name) > 10 or int(name) >= tokens:
                raise invalid(
                    f"logit_bias has the key {name!r}; its keys are token ids from 0 to {tokens - 1}",
                    "logit_bias",
                )
            read[int(name)] = value
        return read
