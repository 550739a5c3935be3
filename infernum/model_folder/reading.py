"""Reads text and JSON files of a model's folder; a file that cannot be read is a ConfigError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from infernum.errors import ConfigError
from infernum.model_folder.folder import find_file
from infernum.model_folder.problems import Problem


def read_text(path: Path) -> str | None:
    """The text of a file, None where there is none. Raises ConfigError for a file that cannot be read as text."""
    file = find_file(path)
    if isinstance(file, Problem):
        raise ConfigError(str(file))
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); download it again") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (at byte {error.start}); download it again") from error


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; an empty one where there is no file. Raises ConfigError."""
    content = read_text(path)
    if content is None:
        return {}
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid JSON ({first_line(error)}); download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no JSON object; download it again")
    return cast("dict[str, object]", value)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]
