"""The class LLM: a model that is ready to generate, compiled if necessary, on the GPU or in host memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

import numpy as np
import numpy.typing as npt

from infernum.bundle import Bundle, open_bundle
from infernum.chat.chat import Chat, ChatOptions, Messages
from infernum.chat.files import find_templates
from infernum.engine.engine import Completion, Engine, Event, Statistics
from infernum.engine.request import (
    read_grammars,
    read_params,
    read_prompts,
    read_texts,
    read_token_ids,
    shown,
)
from infernum.engine.sequence import MakeMask
from infernum.engine.tokenizer import Tokenizer, load_tokenizer, why_no_tokenizer
from infernum.errors import DeviceError, RequestError
from infernum.grammar import Grammar
from infernum.machine import Device, choose_device
from infernum.model_folder.folder import TOKENIZER
from infernum.models.config import GenerationDefaults
from infernum.models.presets import ModelSource, resolve
from infernum.opening import (
    Progress,
    check_bundle,
    check_claims,
    check_limits,
    compile_for,
    edit_warnings,
    load_executor,
    open_checkpoint,
)
from infernum.roofline import MOST_DECODES
from infernum.sampling_params import LARGEST_SEED, SamplingParams, is_integer, is_number
from infernum.step import Float32

if TYPE_CHECKING:
    from infernum.engine.grammars import Grammars

__all__ = ["LLM", "Completion", "Event", "Grammar", "SamplingParams", "default_params"]

log = logging.getLogger(__name__)

MOST_ITL_MS = 1_000_000
"""Largest `max_itl_ms`."""

Ids = Iterable[int] | npt.NDArray[np.integer[Any]]
"""The token ids of one prompt: a list, or an array of one dimension."""

Prompts = str | Ids | Iterable[str | Ids]
"""One text, the token ids of one prompt, or several prompts; an array of two dimensions is several prompts."""

Params = SamplingParams | Iterable[SamplingParams]
"""Parameters for all prompts, or a list with one for each prompt."""

Forms = Grammar | Iterable[Grammar | None]
"""The grammar of all outputs, or a list with that of each prompt; None: any output."""


class LLM:
    """A language model on one device.

    model                   a folder in Hugging Face's format, or a preset such as "dante", the demo
    device                  "auto": the GPU where there is one; "cuda" or "cpu"
    dtype                   "auto": the stored type of the weights; "bfloat16", "float16" or "float32"
    fuse, rules             rules that the compiler applies (see `infernum compile`); without effect on a compiled
                            bundle, and in NumPy, which runs the graphs as they were traced
    bundle                  a compiled bundle of this model; None: compile the model, or take its bundle from the cache
    load_format             "auto": the weights of the model; "dummy": random weights, generated from `seed`
    gpu_memory_utilization  share of the GPU's memory that weights and KV cache may take
    max_model_len           longest sequence in tokens; None: the model's context, or less if memory is short
    max_pages_total         most pages of 64 tokens in a group of the KV cache; None: as many as fit
    max_itl_ms              most milliseconds between tokens, which prompts of other sequences are cut to keep to: a
                            step with both computes as many of their tokens as are predicted to fit, but at least 64;
                            None: no limit
    max_num_seqs            most sequences that run at once, while others wait; None: as many as a step has room for
    tensor_parallel_size    number of ranks that the model is divided among, 1 to 8; in NumPy they run in lockstep.
                            Without effect on a compiled bundle
    deterministic           compile kernels by which the bits of a token's result do not depend on what else is in the
                            step (Hopper, in 16 bits); without effect on a compiled bundle and in NumPy, which always is
    warm_graphs             on a GPU, capture the CUDA graphs of decodes now, not at the second step of each size
    progress                called while the model is compiled and loaded
    chat_template           the file of a chat template, in place of those of the model

    Raises a subclass of InfernumError that names the kind of mistake, where possible before any slow work.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSource = "dante",
        device: str = "auto",
        dtype: str = "auto",
        fuse: bool = True,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        load_format: str = "auto",
        rules: Sequence[str] = (),
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_pages_total: int | None = None,
        max_itl_ms: float | None = None,
        max_num_seqs: int | None = None,
        tensor_parallel_size: int = 1,
        seed: int = 0,
        warm_graphs: bool = False,
        deterministic: bool = False,
        progress: Progress | None = None,
        chat_template: str | os.PathLike[str] | None = None,
    ) -> None:
        dtype = str(dtype)  # as torch's types are written, too
        self.source = (
            model
            if isinstance(model, ModelSource)
            else resolve(_path(model, "model", "a folder or a preset"))
        )
        self.device: Device = choose_device(device)
        check_limits(
            self.source.config.max_position_embeddings,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            max_pages_total=max_pages_total,
        )
        if max_itl_ms is not None and (max_itl_ms == 0 or not is_number(max_itl_ms, 0, MOST_ITL_MS)):
            raise RequestError(
                f"max_itl_ms is {shown(max_itl_ms)}; it must be a number of milliseconds above 0, at most {MOST_ITL_MS}"
            )
        if max_num_seqs is not None and not is_integer(max_num_seqs, 1, MOST_DECODES):
            raise RequestError(
                f"max_num_seqs is {shown(max_num_seqs)}; it must be an integer from 1 to {MOST_DECODES}"
            )
        if not is_integer(seed, 0, LARGEST_SEED):
            raise RequestError(f"seed is {shown(seed)}; it must be an integer from 0 to {LARGEST_SEED}")
        rules = read_texts(rules, "rules")
        checkpoint = open_checkpoint(self.source, load_format)
        if bundle is None and checkpoint is not None:
            check_claims(self.source, checkpoint)
        self.tokenizer = _tokenizer(self.source)
        self._chat_template = (
            None
            if chat_template is None
            else Path(_path(chat_template, "chat_template", "the file of a chat template"))
        )
        if bundle is None:
            self.bundle = compile_for(
                self.source,
                self.device,
                dtype,
                fuse,
                rules,
                progress,
                deterministic=deterministic,
                tensor_parallel_size=tensor_parallel_size,
            )
        else:
            self.bundle = (
                bundle
                if isinstance(bundle, Bundle)
                else open_bundle(Path(_path(bundle, "bundle", "the folder of a compiled bundle")))
            )
            check_bundle(self.bundle, self.source, dtype)
            for warning in edit_warnings(self.bundle, self.device):
                log.warning(warning)
        self._executor = load_executor(
            self.bundle,
            checkpoint,
            self.device,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            max_pages_total=max_pages_total,
            seed=seed,
            warm_graphs=warm_graphs,
            progress=progress,
        )
        self._engine = Engine(
            self._executor,
            self.bundle.manifest.model,
            self.source.generation.eos_token_ids,
            self.tokenizer,
            max_model_len,
            max_itl_ms,
            max_num_seqs,
        )

    @property
    def engine(self) -> Engine:
        """The engine, for servers: sequences are added, cancelled and advanced one by one."""
        return self._engine

    @property
    def statistics(self) -> Statistics:
        """Counts of tokens and seconds since the model was loaded."""
        return replace(self._engine.statistics)

    def generate(
        self, prompts: Prompts, params: Params | None = None, *, grammar: Forms | None = None
    ) -> list[Completion]:
        """Generate for all prompts as one ragged batch. Returns one completion for each prompt, in order.

        `params` is one object for all prompts or one for each; None: the defaults of the model. `grammar` is the form
        of all outputs, or a list with that of each (None: any); it needs llguidance, of the extra `serve`. Raises
        RequestError, and LogitsError when the logits of a prompt are not finite, for example when a float16 model
        overflows.
        """
        return self._engine.generate(*self._request(prompts, params, grammar))

    def stream(
        self, prompts: Prompts, params: Params | None = None, *, grammar: Forms | None = None
    ) -> Iterator[Event]:
        """Generate as `generate` does, and yield events as they come. `Event.sequence` is the index of the prompt."""
        return self._engine.stream(*self._request(prompts, params, grammar))

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        **options: Unpack[ChatOptions],
    ) -> Completion:
        """Generate the answer to a conversation, which the model's chat template renders.

        messages  [{"role": "user", "content": "Hello"}, …]; a content is a text or a list of parts
        params    None: the defaults of the model, and as many tokens as its context has room for
        grammar   the form of the answer, as of `generate`
        options   tools, template_args and others: see `ChatOptions`

        The answer also ends at the token that the template writes behind an answer. Raises RequestError, and
        ConfigError for a model without a chat template.
        """
        prompt, own = self.encode_chat(messages, **options), self._chat_params(params)
        return self._engine.generate([prompt], own, self._masks([grammar], [own]))[0]

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        **options: Unpack[ChatOptions],
    ) -> Iterator[Event]:
        """Generate as `chat` does, and yield events as they come."""
        prompt, own = self.encode_chat(messages, **options), self._chat_params(params)
        return self._engine.stream([prompt], own, self._masks([grammar], [own]))

    def encode_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> list[int]:
        """The token ids of the prompt of `chat`. Raises RequestError or ConfigError."""
        self._engine.require_open()
        return self._chat.encode(messages, **options)

    def logits(self, token_ids: Ids) -> Float32:
        """The logits after each of the given tokens, float32 [tokens, vocab]: row t predicts token t + 1.

        NaN and infinity are returned as the model computes them. Raises RequestError.
        """
        return self._engine.logits(read_token_ids(token_ids))

    def encode(self, prompts: Prompts) -> list[list[int]]:
        """The token ids of each prompt. Raises RequestError, also for text when the model has no tokenizer."""
        return [
            self._encode_one(prompt) if isinstance(prompt, str) else prompt
            for prompt in read_prompts(prompts)
        ]

    def close(self) -> None:
        """Free the device's memory, as garbage collection of the model does.

        Generating afterwards raises RequestError. Closing again does nothing.
        """
        if "_chat" in self.__dict__:
            self._chat.close()
        self._engine.close()

    def __enter__(self) -> Self:
        self._engine.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first error is the one to report.
        with suppress(DeviceError) if error is not None else nullcontext():
            self.close()

    @cached_property
    def _chat(self) -> Chat:
        if self.tokenizer is None:
            raise RequestError(why_no_tokenizer(self.source.folder, self.source.name))
        templates = find_templates(self.source.folder, self.source.name, self._chat_template)
        return Chat(templates, self.tokenizer)

    def _chat_params(self, params: SamplingParams | None) -> SamplingParams:
        if params is None:
            params = default_params(self.source.generation, max_tokens=self.bundle.manifest.model.context)
        return self._chat.params(read_params(params, 1)[0])

    def _encode_one(self, prompt: str) -> list[int]:
        if self.tokenizer is None:
            raise RequestError(why_no_tokenizer(self.source.folder, self.source.name))
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt is not valid text (at character {error.start}); give UTF-8"
            ) from error
        return self.tokenizer.encode(prompt)

    def _request(
        self, prompts: Prompts, params: Params | None, grammar: Forms | None
    ) -> tuple[list[list[int]], list[SamplingParams], list[MakeMask | None]]:
        """The token ids, the parameters and what makes the mask of each prompt. Raises RequestError."""
        self._engine.require_open()
        encoded = self.encode(prompts)
        chosen = read_params(
            default_params(self.source.generation) if params is None else params, len(encoded)
        )
        return encoded, chosen, self._masks(read_grammars(grammar, len(encoded)), chosen)

    def _masks(
        self, grammars: Sequence[Grammar | None], params: Sequence[SamplingParams]
    ) -> list[MakeMask | None]:
        """What makes the mask of each prompt's sequences. Raises RequestError for a grammar that is none."""
        if not any(grammars):
            return []
        compiler = self._compiler
        return [
            grammar and compiler.maker(grammar, own.stop_token_ids)
            for grammar, own in zip(grammars, params, strict=True)
        ]

    @cached_property
    def _compiler(self) -> Grammars:
        if self.source.folder is None or self.tokenizer is None:
            raise RequestError(
                f"a grammar needs a tokenizer: {why_no_tokenizer(self.source.folder, self.source.name)}"
            )
        try:
            from infernum.engine.grammars import Grammars
        except ModuleNotFoundError as error:
            raise RequestError(
                f"a grammar needs {error.name}, which is not installed; run `pip install infernum[serve]`"
            ) from error
        tokens = self.bundle.manifest.model.vocab_size, self._engine.end_tokens
        compiler = Grammars(self.source.folder / TOKENIZER, *tokens)
        self._engine.prepare_masks = compiler.prepare
        return compiler


def _path(value: object, name: str, expected: str) -> str:
    """The argument called `name` as a path. Raises RequestError when it is no path."""
    path: object = os.fspath(cast("str | os.PathLike[str]", value)) if hasattr(value, "__fspath__") else value
    if isinstance(path, str):
        return path
    raise RequestError(f"{name} is {shown(value)}; give {expected}")


def default_params(generation: GenerationDefaults, **chosen: Any) -> SamplingParams:
    """The parameters `chosen`; those that are None or missing from the model's defaults, then SamplingParams'."""
    theirs: dict[str, Any] = dict(generation.sampling)
    if generation.do_sample is False:
        theirs["temperature"] = 0.0
    return SamplingParams(**theirs | {name: value for name, value in chosen.items() if value is not None})


def _tokenizer(source: ModelSource) -> Tokenizer | None:
    return (
        load_tokenizer(source.folder, source.generation.bos_token_id) if source.folder is not None else None
    )
