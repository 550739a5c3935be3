"""A conversation in a terminal: messages and commands are read line by line, and Ctrl-C stops an answer."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from infernum.cli.chat_session import Session
from infernum.cli.console import say
from infernum.errors import InfernumError, RequestError
from infernum.sampling_params import PARAMETERS

PROMPT, CONTINUED = "> ", ". "
QUOTES = '"""'
"""Begins and ends a message of several lines."""

PARAMETER_KINDS = {"max_tokens": int} | {parameter.name: parameter.kind for parameter in PARAMETERS}
"""The parameters that /params changes, with their types."""


def converse(session: Session) -> None:
    """Read messages and commands from the terminal, and obey, until the input ends."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` a history and editing of lines
    say(f"{session.llm.source.name} on {session.llm.device}; /help lists the commands", err=True)
    with suppress(EOFError), _ctrl_c_stops(session):
        while True:
            try:
                _obey(session, _read_message(quiet=session.as_json))
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /exit ends the conversation)", err=True)
            except UnicodeDecodeError as error:
                say(f"error: the message is not UTF-8 text (at byte {error.start})", err=True)
            except (InfernumError, OSError) as error:
                say(f"error: {' '.join(str(error).split())}", err=True)


def _obey(session: Session, text: str) -> None:
    """Run a command, or ask the model."""
    name, _, argument = text.strip().partition(" ")
    if name in COMMANDS:
        COMMANDS[name](session, argument.strip())
    elif name.startswith("/"):
        raise RequestError(f"{name} is no command; /help lists the commands")
    elif name:
        session.ask(text)


def _clear(session: Session, _: str) -> None:
    """forget what was said, but not the system message"""
    session.begin(session.system)


def _system(session: Session, text: str) -> None:
    """begin a new conversation with the system message TEXT, or with none"""
    session.begin(text or None)


def _retry(session: Session, _: str) -> None:
    """replace the last answer by another one"""
    session.retry()


def _params(session: Session, argument: str) -> None:
    """show how answers are chosen; with NAME VALUE, change it"""
    name, _, text = argument.partition(" ")
    if not name:
        say(", ".join(f"{name} {getattr(session.params, name)}" for name in PARAMETER_KINDS))
        return
    if name not in PARAMETER_KINDS:
        raise RequestError(f"{name} is no parameter; there are {', '.join(PARAMETER_KINDS)}")
    try:
        value = PARAMETER_KINDS[name](text)
    except ValueError as error:
        raise RequestError(f"{name} cannot be {text!r}; give a number, as in /params {name} 1") from error
    session.params = replace(session.params, **{name: value})


def _save(session: Session, file: str) -> None:
    """write what was said to FILE, as JSON"""
    if not file:
        raise RequestError("a file is needed, as in /save chat.json")
    text = json.dumps(session.messages, ensure_ascii=False, indent=2) + "\n"
    Path(file).write_text(text, encoding="utf-8")


def _exit(session: Session, _: str) -> None:
    """end the conversation, as Ctrl-D does"""
    raise EOFError


def _help(session: Session, _: str) -> None:
    """list the commands"""
    for name, command in COMMANDS.items():
        say(f"{name:8} {command.__doc__}")
    say(f"{QUOTES:8} begins a message of several lines, and ends it")
    say("Ctrl-C   stops the answer; what there is of it stays")


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/clear": _clear,
    "/system": _system,
    "/retry": _retry,
    "/params": _params,
    "/save": _save,
    "/help": _help,
    "/exit": _exit,
}


def _read_message(*, quiet: bool) -> str:
    """A message from the terminal: a line, or the lines between triple quotes. Raises EOFError at the end."""
    line = _read_line(PROMPT, quiet)
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].endswith(QUOTES):
        lines.append(_read_line(CONTINUED, quiet))
    lines[-1] = lines[-1].removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _read_line(prompt: str, quiet: bool) -> str:
    """A line from the terminal. If `quiet`, or if stdout is no terminal, the prompt goes to stderr."""
    if not quiet and sys.stdout.isatty():
        return input(prompt)
    click.echo(prompt, nl=False, err=True)
    return input()


@contextmanager
def _ctrl_c_stops(session: Session) -> Generator[None]:
    """Let the first Ctrl-C stop an answer. Another one, or one between answers, interrupts as elsewhere."""

    def press(number: int, frame: FrameType | None) -> None:
        if not session.answering or session.stopped:
            raise KeyboardInterrupt
        session.stopped = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
