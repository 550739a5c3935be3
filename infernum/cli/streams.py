"""The standard streams of the process: there is always one, and it prints what its encoding lacks in ASCII."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from contextlib import suppress

from infernum.errors import RequestError

_SPELLED = str.maketrans("→×µ·–−‖│├┤─▼╮╭╯╰┼▌●", ">xu.--||||-v....+|o")


def open_streams() -> None:
    """Put /dev/null in the place of each standard stream that is closed, so that no other file takes its number.

    What is printed to a closed stream is lost, as where nobody reads a pipe. A closed stdin stays None.
    """
    codecs.register_error("infernum", _in_ascii)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            if name != "stdin":
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="infernum")


def write(text: str) -> None:
    """Write text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_stdin() -> str:
    """The prompt on stdin, less one newline at its end. Raises RequestError."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # Python's for one that is closed
        raise RequestError("stdin: is closed; open it, or give the prompt as an argument")
    try:
        raw = sys.stdin.buffer.read()
    except OSError as error:
        raise RequestError(f"stdin: cannot be read ({error.strerror})") from error
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"stdin: the prompt is not UTF-8 text (at byte {error.start}); convert it first"
        ) from error


def silence() -> None:
    """Let the last flush of a stream that cannot be written go nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a stream without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_utf8() -> bool:
    """Whether stdout takes every character."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        os.dup2(opened, number)
        if opened != number:
            os.close(opened)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What Python prints instead of characters that an encoding lacks: the nearest in ASCII, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_SPELLED)
    spelled = (unicodedata.normalize("NFKD", character) for character in lacking)
    return "".join(text.encode("ascii", "ignore").decode() or "?" for text in spelled), error.end
