"""The files that commands write where they are asked to: whole or not at all, or to a stream such as /dev/stdout."""

from __future__ import annotations

from pathlib import Path

from infernum.errors import InfernumError

_OF_PROCESS = (Path("/dev/stdout"), Path("/dev/stderr"))


def write_output(output: Path, content: str | bytes, *, make_folders: bool = False) -> None:
    """Write a file in place of what is there, which stays where that fails. Raises InfernumError.

    Text becomes UTF-8, and so a question mark where it holds part of a character.
    """
    from infernum.cache import replace_whole

    data = content.encode(errors="replace") if isinstance(content, str) else content
    try:
        if make_folders:
            output.parent.mkdir(parents=True, exist_ok=True)
        if is_stream(output):
            with output.open("ab") as stream:
                stream.write(data)
        else:
            replace_whole(output, data)
    except OSError as error:
        raise InfernumError(f"{output}: cannot be written ({error.strerror})") from error


def is_stream(output: Path) -> bool:
    """Whether a name stands for what is written to as it is: a pipe, a device, or an open file of a process."""
    place = output.absolute()
    of_process = place in _OF_PROCESS or place.parent.resolve().is_relative_to("/proc")
    return of_process or (output.exists() and not output.is_file())
