"""Finds the chat templates of a model: files of its folder, tokenizer_config.json, or a file of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from infernum.errors import ConfigError
from infernum.model_folder.folder import CHAT_TEMPLATE, TOKENIZER_CONFIG
from infernum.model_folder.reading import read_object, read_text

DEFAULT = "default"
"""The name of the template of an ordinary conversation."""

TOOL_USE = "tool_use"
"""The name of the template of a conversation with tools, where the model has one of its own for them."""

MORE_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class TemplateFile:
    """The text of one template, and where it stands, for errors."""

    text: str
    where: str


Templates = Mapping[str, TemplateFile]
"""The templates of a model, by name."""


def find_templates(folder: Path | None, model: str, path: Path | None = None) -> Templates:
    """The templates of a model: the file `path` if it is given, else those of its folder. Raises ConfigError.

    As in transformers, chat_template.jinja and the files of additional_chat_templates, named after their stems, hide
    what tokenizer_config.json has. Its `chat_template` is one template or a list of named ones.
    """
    if path is not None:
        text = read_text(path)
        if text is None:
            raise ConfigError(f"{path}: no such file; give the file of a chat template")
        return {DEFAULT: TemplateFile(text, str(path))}
    templates: Templates = {} if folder is None else templates_in(folder)
    if not templates:
        raise ConfigError(
            f"{folder or model}: has no chat template, so this is no model for conversations;"
            " give one with --chat-template FILE, or use a model with one"
        )
    return templates


def templates_in(folder: Path) -> Templates:
    """The templates of a model folder, none if it has none. Raises ConfigError for one that cannot be read."""
    return _in_files(folder) or _in_config(folder / TOKENIZER_CONFIG)


def _in_files(folder: Path) -> dict[str, TemplateFile]:
    paths = {DEFAULT: folder / CHAT_TEMPLATE}
    paths |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    texts = {name: read_text(path) for name, path in paths.items()}
    return {name: TemplateFile(text, str(paths[name])) for name, text in texts.items() if text is not None}


def _in_config(path: Path) -> dict[str, TemplateFile]:
    value = read_object(path).get("chat_template")
    if value is None:
        return {}
    named = {DEFAULT: value} if isinstance(value, str) else _named(value)
    if not all(isinstance(text, str) for text in named.values()):
        raise ConfigError(
            f"{path}: chat_template must be a text, or a list of objects with name and template"
        )
    return {name: TemplateFile(str(text), f"{path}: chat_template") for name, text in named.items()}


def _named(value: object) -> dict[str, object]:
    """The templates of a list of objects with `name` and `template`, or of an object; else one that is no text."""
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    named: dict[str, object] = {}
    for item in cast("list[object]", value) if isinstance(value, list) else [value]:
        fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
        named[str(fields.get("name"))] = fields.get("template")
    return named
