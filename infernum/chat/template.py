"""Renders a conversation as the text that a model was trained on, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from infernum.chat.files import DEFAULT, TOOL_USE, TemplateFile, Templates
from infernum.chat.messages import REASONING, Message, as_fields, as_list, read_messages, read_tools
from infernum.chat.process import TemplateProcess
from infernum.engine.request import shown
from infernum.errors import ConfigError, RequestError

RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template")
"""Names that no template argument has: what a call sets, and a template, which never comes from a request."""

END = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of a message that is to be continued, as in transformers, since a template sees it. A template that
trims the message drops the space.
"""

PROBE = "PROBE"


class ChatTemplate:
    """The chat templates of a model.

    special_tokens  the texts of the special tokens by name, such as `bos_token`: variables of the templates

    Rendering gives what transformers 5.24 gives. Safe for use by several threads.
    """

    def __init__(self, templates: Templates, special_tokens: Mapping[str, str]) -> None:
        self._templates = templates
        self._special_tokens = dict(special_tokens)
        self._process = TemplateProcess()

    @property
    def default_text(self) -> str | None:
        """The template of ordinary conversations, as it was written; None where there is none."""
        file = self._templates.get(DEFAULT)
        return None if file is None else file.text

    def text_for(self, *, tools: bool) -> str:
        """The template of conversations with tools or without, as it was written. Raises ConfigError."""
        return self._choose([] if tools else None).text

    def render(
        self,
        messages: object,
        *,
        tools: object = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        arguments: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The text of a conversation, with the tokens that the template writes. Raises RequestError or ConfigError.

        messages                mappings with `role`, `content` and what else the template reads
        tools                   JSON schemas of the functions that the model may call
        add_generation_prompt   end with what an answer of the assistant begins with
        continue_final_message  end with the content of the last message, which the model continues; a text: with
                                this field of the last message
        arguments               further variables of the template, such as `enable_thinking`
        now                     the time that the template sees; None: the present
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other: a message is continued or begun"
            )
        schemas = read_tools(tools)
        file = self._choose(schemas)
        read = read_messages(messages)
        last = _mark_end(read, continue_final_message, file) if continue_final_message else None
        text = self._process.render(
            file.text,
            file.where,
            {
                "messages": read,
                "tools": schemas,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **self._special_tokens,
                **_checked(arguments or {}),
            },
            (now or datetime.now()).isoformat(),
        )
        return text if last is None else _cut(text, last)

    def close(self) -> None:
        """End the process that renders."""
        self._process.close()

    def end_of_turn(self, special: Sequence[str]) -> str | None:
        """The special token, among their texts, that the template writes right after what the assistant says."""
        turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
        try:
            behind = self.render(turn).rpartition(PROBE)[2].lstrip()
        except RequestError:  # the template wants other messages
            return None
        return max((text for text in special if text and behind.startswith(text)), key=len, default=None)

    def takes_parts(self) -> bool:
        """True where the template writes the text of a message whose content is a list of parts."""
        parts = [{"type": "text", "text": PROBE}]
        try:
            text = self.render([{"role": "user", "content": parts}])
        except RequestError:
            return False
        return PROBE in text and "'text'" not in text

    def _choose(self, tools: object) -> TemplateFile:
        name = TOOL_USE if tools is not None and TOOL_USE in self._templates else DEFAULT
        file = self._templates.get(name)
        if file is None:
            where = next(iter(self._templates.values())).where
            raise ConfigError(
                f"{where}: none of the chat templates {', '.join(sorted(self._templates))} is called {DEFAULT};"
                " give one with --chat-template FILE"
            )
        return file


def _checked(arguments: object) -> Mapping[str, Any]:
    """The template arguments. Raises RequestError."""
    fields = as_fields(arguments)
    if fields is None:
        raise RequestError(f"template_args is {shown(arguments)}; give names with values")
    for name in fields:
        if name in RESERVED:
            raise RequestError(f"template_args: {name} is no argument of a template; leave it out")
    return fields


def _mark_end(messages: list[Message], field: bool | str, file: TemplateFile) -> str:
    """Append END to the text of the last message that is to be continued, and return the text. Raises RequestError."""
    name = field if isinstance(field, str) else "content"
    last = messages[-1]
    value = last.get(name)
    names = [other for other in REASONING if last.get(other) == value] if name in REASONING else [name]
    if value is not None and not any(other in file.text for other in names):
        raise RequestError(f"continue_final_message: {file.where} writes no {name} of a message")
    if isinstance(value, str):
        last |= dict.fromkeys(names, value + END)
        return value
    parts = as_list(value) or []
    for place, part in reversed(list(enumerate(parts))):
        fields = as_fields(part)
        if fields is not None and isinstance(text := fields.get("text"), str):
            parts[place] = {**fields, "text": text + END}
            last[name] = parts
            return text
    raise RequestError(
        f"continue_final_message: the last message has no {name} to continue, but {shown(value)}; give a text"
    )


def _cut(text: str, last: str) -> str:
    """`text` up to the mark behind `last`, the text to be continued. Raises RequestError."""
    mark = END.strip()
    if mark not in text or last.strip() not in text:
        raise RequestError(
            "continue_final_message: the chat template does not write the whole last message; begin a new one instead"
        )
    place = text.rindex(mark)
    return text[:place] if text.startswith(END, place) else text[:place].rstrip()
