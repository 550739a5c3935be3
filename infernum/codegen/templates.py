"""The CUDA templates: Jinja, strict about names, with overrides for an architecture in `sm_<arch>/`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
)

from infernum.errors import CompileError
from infernum.renamed import advice
from infernum.resources import templates_folder

SUFFIX = ".cu.j2"


FOLDERS: list[Path] = []
"""Folders of plugins, in the order they were added."""


def add_folder(folder: Path) -> None:
    """Look for templates and include files in `folder` too, before the package's own."""
    if folder not in FOLDERS:
        FOLDERS.append(folder)


def render(template_name: str, context: Mapping[str, Any], *, arch: int) -> str:
    """The CUDA that `<template_name>.cu.j2` gives for `context` (the suffix may be written or left out).

    Looked for in the folders of plugins, then in the package's own; in each first under `sm_<arch>`, as are the
    templates that it includes or imports. Raises CompileError naming the template and where it was looked for, or
    the file, line and variable that is not defined.
    """
    return _found(
        template_name, arch, lambda environment, name: environment.get_template(name).render(context)
    )


def source_of(template_name: str, *, arch: int) -> str:
    """The text of a template as it is written, found as `render` finds it. Raises CompileError."""

    def source(environment: Environment, name: str) -> str:
        assert environment.loader is not None, "templates are loaded from folders"
        return environment.loader.get_source(environment, name)[0]

    return _found(template_name, arch, source)


def _found(template_name: str, arch: int, read: Callable[[Environment, str], str]) -> str:
    name = template_name if template_name.endswith(".j2") else f"{template_name}{SUFFIX}"
    searched = _searched(arch)
    try:
        return read(_environment(searched), name)
    except TemplateNotFound as error:
        looked = ", ".join(map(str, searched))
        raise CompileError(
            f"template {error.name} does not exist; save it beside the plugin that uses it (looked in {looked})"
        ) from error
    except TemplateSyntaxError as error:
        raise CompileError(f"{error.filename or error.name}:{error.lineno}: {error.message}") from error
    except TemplateError as error:
        message = error.message or ""
        raise CompileError(f"{_line(error, name)}: {message}{advice(message)}") from error


def include_text(name: str) -> str:
    """The text of the CUDA header `include/<name>`, of a plugin or the package's own.

    Raises CompileError naming it and where it was looked for.
    """
    candidates = [folder / "include" / name for folder in (*FOLDERS, templates_folder())]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        looked = ", ".join(str(path.parent) for path in candidates)
        raise CompileError(f"include file {name} does not exist; looked in {looked}")
    return path.read_text(encoding="utf-8")


def _searched(arch: int) -> tuple[Path, ...]:
    return tuple(
        place for folder in (*FOLDERS, templates_folder()) for place in (folder / f"sm_{arch}", folder)
    )


class _Templates(FileSystemLoader):
    """Files whose names end in .j2: those are part of what tells one state of a plugin from another."""

    def get_source(self, environment: Environment, template: str) -> Any:
        if not template.endswith(".j2"):
            raise CompileError(f"template {template}: its name does not end in .j2; rename it")
        return super().get_source(environment, template)


@lru_cache
def _environment(searched: tuple[Path, ...]) -> Environment:
    return Environment(
        loader=_Templates(searched),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _line(error: TemplateError, name: str) -> str:
    """`file:line` of the innermost template in an error's traceback, where Jinja shows them as Python."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name
