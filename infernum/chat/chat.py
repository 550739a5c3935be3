"""A conversation as the token ids of a prompt, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypedDict

from infernum.chat.files import Templates
from infernum.chat.messages import joined_parts
from infernum.chat.template import ChatTemplate
from infernum.engine.tokenizer import Tokenizer
from infernum.errors import RequestError
from infernum.sampling_params import SamplingParams

Messages = Sequence[Mapping[str, Any]]
"""The messages of one conversation, each with `role`, `content` and whatever else the chat template reads."""


class ChatOptions(TypedDict, total=False):
    """How a conversation is rendered.

    tools                   JSON schemas of the functions that the model may call:
                            {"type": "function", "function": {"name": …, "description": …, "parameters": …}}
    template_args           further variables of the template, such as {"enable_thinking": False}
    add_generation_prompt   begin an answer of the assistant; None: unless the last message is continued
    continue_final_message  continue the content of the last message; a text: this field of the message
    """

    tools: Sequence[Mapping[str, Any]] | None
    template_args: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | str


class Chat:
    """The chat templates and the tokenizer of a model. Safe for use by several threads."""

    def __init__(self, templates: Templates, tokenizer: Tokenizer) -> None:
        self.template = ChatTemplate(templates, tokenizer.named)
        self._tokenizer = tokenizer

    def encode(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
    ) -> list[int]:
        """The token ids of a conversation; `ChatOptions` has the arguments. Raises RequestError or ConfigError.

        The tokens that the tokenizer puts in front of every text, such as BOS, come first exactly once, whether or
        not the template writes them. Parts of text are joined for a template that knows only whole texts.
        """
        begins = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        text = self.template.render(
            messages if self._takes_parts else joined_parts(messages),
            tools=tools,
            add_generation_prompt=begins,
            continue_final_message=continue_final_message,
            arguments=template_args,
        )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                "the messages are not valid text, but have half a character; give UTF-8"
            ) from error
        return self._tokenizer.encode_chat(text)

    def params(self, params: SamplingParams) -> SamplingParams:
        """`params`, by which generation also ends at the template's end of turn, unless end tokens are ignored."""
        stops = [number for number, text in self._tokenizer.special.items() if text == self.end_of_turn]
        stops = [number for number in stops if number not in params.stop_token_ids]
        if params.ignore_eos or not stops:
            return params
        return replace(params, stop_token_ids=(*params.stop_token_ids, *stops))

    def close(self) -> None:
        """End the process that renders. The next conversation starts it again."""
        self.template.close()

    @cached_property
    def _takes_parts(self) -> bool:
        return self.template.takes_parts()

    @cached_property
    def end_of_turn(self) -> str | None:
        """The special token that the template writes behind an answer; None where it writes none."""
        return self.template.end_of_turn(list(self._tokenizer.special.values()))
