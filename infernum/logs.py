"""What Infernum says about its work while it works: log channels, chosen by INFERNUM_LOGS or by -v.

    rules     where each rule fired, and where it was refused and why
    passes    the dtype that was chosen and why; what each pass that did something took, and what it did to the number
              of nodes
    kernels   the template of each kernel, what was passed over for it, its registers and spills
    cache     what was found in the cache, and what had to be compiled

A channel is the logger `infernum.NAME`, which speaks at LEVEL, INFO. A program that uses the library attaches
handlers to these as to any logger, or shows them with `on_stderr`; until then nothing is formatted, and only warnings
are printed, as Python does of itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from infernum.errors import InfernumError, shown

CHANNELS = ("rules", "passes", "kernels", "cache")

VARIABLE = "INFERNUM_LOGS"
"""The environment variable that names channels, separated by commas; `all` stands for all of them."""

LEVEL = logging.INFO
"""At which channels speak."""

_BY_VERBOSITY = ((), ("passes",), ("passes", "rules", "cache"), CHANNELS)
_PACKAGE = logging.getLogger("infernum")


def channel(name: str) -> logging.Logger:
    """The logger of a channel."""
    assert name in CHANNELS, f"{name} is none of {CHANNELS}"
    return logging.getLogger(f"infernum.{name}")


def channels_named(text: str) -> tuple[str, ...]:
    """The channels of a list such as "rules,cache". Raises InfernumError for an unknown one."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    unknown = next((name for name in named if name not in (*CHANNELS, "all")), None)
    if unknown is not None:
        raise InfernumError(
            f"{VARIABLE}: there is no channel {unknown!r}; the channels are {', '.join(CHANNELS)}, or all"
        )
    return CHANNELS if "all" in named else tuple(named)


def channels_at(verbosity: int) -> tuple[str, ...]:
    """The channels that so many -v show."""
    return _BY_VERBOSITY[min(verbosity, len(_BY_VERBOSITY) - 1)]


def show(names: Iterable[str]) -> None:
    """Switch channels on."""
    for name in names:
        channel(name).setLevel(LEVEL)


@contextmanager
def on_stderr() -> Generator[None]:
    """Until the end of the block, show warnings, the channels of INFERNUM_LOGS and those of `show` on stderr."""
    levels = {name: channel(name).level for name in CHANNELS}
    handler = _Lines()
    _PACKAGE.addHandler(handler)
    try:
        show(channels_named(os.environ.get(VARIABLE, "")))
        yield
    finally:
        _PACKAGE.removeHandler(handler)
        for name, level in levels.items():
            channel(name).setLevel(level)


class _Lines(logging.Handler):
    """Writes `channel: message` on one line, or `warning: message` as it is.

    To what is stderr at the moment: while a progress bar is drawn, that puts lines above it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        message = shown(record.getMessage())
        if record.levelno > LEVEL:
            line = f"{record.levelname.lower()}: {message}"
        else:
            name = record.name.rpartition(".")[2]
            line = f"{_CYAN.format(name) if _coloured() else name}: {' '.join(message.split())}"
        sys.stderr.write(line + "\n")


_CYAN = "\x1b[36m{}\x1b[0m"


def _coloured() -> bool:
    """A terminal that shows colours, and nobody who wants none (no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
