"""`infernum chat`: in a terminal, which is a pseudo-terminal here, and in scripts."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from chat_models import CONTEXT, write_chat_model
from conftest import Outcome

import infernum as package

Run = Callable[..., Outcome]
HINT = "(Ctrl-D or /exit ends the conversation)"


@pytest.fixture(scope="module")
def salve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "Salve!"."""
    return write_chat_model(tmp_path_factory.mktemp("salve"), "Salve!")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "abcabcabc…"."""
    return write_chat_model(tmp_path_factory.mktemp("endless"), "abc", endless=True)


class Terminal:
    """`infernum chat` in a pseudo-terminal. `read_until` and `end` return what was printed since the last call."""

    def __init__(self, *args: str | Path) -> None:
        self.leader, follower = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infernum", "chat", *map(str, args), "--device", "cpu"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            preexec_fn=_own_terminal,
        )
        os.close(follower)
        self.unread = ""

    def send(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def ask(self, text: str) -> str:
        """What is printed up to the next prompt, less the line that the terminal echoes."""
        self.send(text + "\n")
        return self.read_until("\n> ").partition("\n")[2].removesuffix("> ").removesuffix("\n")

    def read_until(self, text: str, again: str = "") -> str:
        """What is printed up to `text`. While nothing comes, `again` is sent each second.

        Python's readline notices a signal only while it waits: one that comes just before that, with the next key.
        """
        deadline = time.monotonic() + 60
        while text not in self.unread:
            assert time.monotonic() < deadline, f"{text!r} does not come; there is {self.unread!r}"
            if not select.select([self.leader], [], [], 1)[0]:
                self.send(again)
            else:
                self.unread += os.read(self.leader, 4096).decode().replace("\r\n", "\n")
        end = self.unread.index(text) + len(text)
        printed, self.unread = self.unread[:end], self.unread[end:]
        return printed

    def close(self) -> int:
        """End the conversation by Ctrl-D, and return the exit code."""
        self.send("\x04")
        return self.process.wait(timeout=60)


def _own_terminal() -> None:
    """Make the pseudo-terminal the one that Ctrl-C comes from."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str | Path) -> Terminal:
        opened.append(Terminal(*args))
        opened[-1].read_until("> ")
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.leader)


def saved(terminal: Terminal, path: Path) -> list[tuple[str, str]]:
    """The messages of the conversation, by /save."""
    assert terminal.ask(f"/save {path}") == ""
    return [(message["role"], message["content"]) for message in json.loads(path.read_text(encoding="utf-8"))]


def test_a_conversation_has_a_history_which_commands_change(
    salve: Path, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    chat = terminal(salve, "--system", "Be brief.")
    file = tmp_path / "chat.json"
    assert chat.ask("Hello") == "Salve!"
    assert chat.ask("And again") == "Salve!"
    answer = ("assistant", "Salve!")
    turns = [("user", "Hello"), answer, ("user", "And again"), answer]
    assert saved(chat, file) == [("system", "Be brief."), *turns]
    assert chat.ask("/retry") == "Salve!"
    assert saved(chat, file) == [("system", "Be brief."), *turns]
    assert chat.ask("/clear") == ""
    assert saved(chat, file) == [("system", "Be brief.")]
    assert chat.ask("/system Be verbose.") == ""
    assert chat.ask("Hello") == "Salve!"
    assert saved(chat, file) == [("system", "Be verbose."), ("user", "Hello"), answer]
    assert chat.ask("/system") == ""
    assert saved(chat, file) == []
    assert chat.close() == 0


def test_a_message_may_have_several_lines(
    salve: Path, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    chat = terminal(salve)
    chat.send('"""\nMidway\n\n')
    chat.read_until(". ")
    assert chat.ask('  upon"""').endswith("Salve!")
    assert saved(chat, tmp_path / "a")[0] == ("user", "Midway\n\n  upon")


def test_commands_explain_themselves_and_parameters_change(
    salve: Path, terminal: Callable[..., Terminal]
) -> None:
    chat = terminal(salve)
    listed = chat.ask("/help")
    for name in ("/clear", "/system", "/save", "/retry", "/params", "/help", "/exit", '"""', "Ctrl-C"):
        assert f"\n{name} " in "\n" + listed
    assert chat.ask("/params temperature 0") == ""
    assert chat.ask("/params max_tokens 3") == ""
    assert "max_tokens 3, temperature 0.0, top_k 0" in chat.ask("/params")
    assert chat.ask("Hello") == "Sal\n(cut here: max_tokens or the context has ended)"
    chat.send("/exit\n")
    assert chat.process.wait(timeout=60) == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(
    endless: Path, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    chat = terminal(endless)
    chat.send("Hello\n")
    chat.read_until("abcabc")
    chat.send("\x03")
    chat.read_until("\n> ")
    messages = saved(chat, tmp_path / "a")
    assert messages[0] == ("user", "Hello") and messages[1][1].startswith("abcabc")
    assert len(messages[1][1]) < CONTEXT / 2
    chat.ask("/params max_tokens 3")
    assert chat.ask("More").startswith("abc")
    chat.send("half a line")
    chat.read_until(
        "half a line"
    )  # readline, which echoes it, waits for more: before that it could miss the signal
    chat.send("\x03")
    assert HINT in chat.read_until("\n> ", again="\x03")
    chat.ask("/clear")
    assert chat.close() == 0


def test_mistakes_are_one_line_and_the_conversation_goes_on(
    salve: Path, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    chat = terminal(salve)
    for line, error in {
        "/quit": "/quit is no command; /help lists the commands",
        "/params heat 3": "heat is no parameter; there are max_tokens, temperature,",
        "/params temperature hot": "temperature cannot be 'hot'; give a number, as in /params temperature 1",
        "/params temperature -1": "temperature is -1.0; it must be 0 (the most likely token) or",
        "/save": "a file is needed, as in /save chat.json",
        f"/save {tmp_path}": "Is a directory",
        "/retry": "there is no answer to replace; ask something first",
        '"""'
        + "word " * CONTEXT
        + '"""': "leaves no room for a new one in the model's context of 1024 tokens",
    }.items():
        (printed,) = chat.ask(line).splitlines()[-1:]
        assert printed.startswith("error: ") and error in printed
    assert chat.ask("   ") == ""
    assert chat.ask("Hello") == "Salve!"
    assert [role for role, _ in saved(chat, tmp_path / "a")] == ["user", "assistant"]


def test_a_template_that_refuses_leaves_the_conversation_as_it_was(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    chat = terminal(
        write_chat_model(tmp_path / "m", "abc", template="inst"), "--system", "No such role here."
    )
    error = "error: the chat template refuses these messages: There are only the roles user and assistant"
    assert chat.ask("Hello") == error
    assert saved(chat, tmp_path / "a") == [("system", "No such role here.")]


def test_nothing_that_a_model_says_is_obeyed_by_the_terminal(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    chat = terminal(write_chat_model(tmp_path, "a\x1b[c"))
    assert chat.ask("Hello") == "a␛[c"


def test_stdin_that_is_no_terminal_is_one_message(salve: Path, infernum: Run) -> None:
    done = infernum("chat", salve, "--device", "cpu", stdin=b"Hello\nthere\n")
    assert (done.code, done.out, done.err) == (0, "Salve!\n", "")


def test_json_is_one_line_for_an_answer(salve: Path, infernum: Run) -> None:
    done = infernum("chat", salve, "--device", "cpu", "--json", "--system", "Be brief.", stdin=b"Hello")
    assert done.out.count("\n") == 1
    answer = json.loads(done.out)
    assert answer == {
        "role": "assistant",
        "content": "Salve!",
        "finish_reason": "stop",
        # a token a character, but "er" and "an" are one; five special tokens, and a newline behind two of them
        "prompt_tokens": len("system\nBe brief.\nuser\nHello\nassistant\n") - 2 + 5,
        "output_tokens": 7,
    }


def test_a_terminal_writes_json_lines_too(salve: Path, terminal: Callable[..., Terminal]) -> None:
    chat = terminal(salve, "--json")
    for _ in range(2):
        assert json.loads(chat.ask("Hello").splitlines()[-1])["content"] == "Salve!"


def test_template_arguments_and_a_template_come_from_the_command_line(
    salve: Path, infernum: Run, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ raise_exception(mood ~ ' ' ~ messages[0].content) }}", encoding="utf-8")
    more = ("--chat-template", file, "--template-args", '{"mood": "good"}')
    done = infernum("chat", salve, "--device", "cpu", *more, stdin=b"Hello")
    assert done.code == 2
    assert done.err == "error: the chat template refuses these messages: good Hello\n"


def test_bad_input_is_one_line_before_any_slow_work(salve: Path, infernum: Run, tmp_path: Path) -> None:
    bare = write_chat_model(tmp_path / "bare", "abc", template=None)
    half = tmp_path / "half.jinja"
    half.write_text("{% for %}", encoding="utf-8")
    for args, stdin, error in (
        ((bare,), b"Hello", f"{bare}: has no chat template, so this is no model for conversations;"),
        (
            (salve, "--chat-template", tmp_path / "none"),
            b"Hello",
            f"{tmp_path / 'none'}: no such file; give the file",
        ),
        ((salve, "--chat-template", half), b"Hello", f"{half}: line 1: Expected an expression"),
        ((salve, "--template-args", "[1]"), b"Hello", "--template-args: '[1]' is no JSON object"),
        ((salve, "--template-args", "{"), b"Hello", "--template-args: '{' is not valid JSON"),
        ((salve,), b" \n", "stdin: is empty; write a message to it"),
        ((salve,), b"\xff", "stdin: the prompt is not UTF-8 text (at byte 0)"),
        ((salve,), b"word " * CONTEXT, "leaves no room for a new one in the model's context"),
        ((salve, "-n", "0"), b"Hello", "max_tokens is 0; it must be an integer of at least 1"),
        (("llama",), b"Hello", "llama: is a preset without a tokenizer"),
    ):
        done = infernum("chat", *args, "--device", "cpu", stdin=stdin)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert done.err.startswith("error: ") and error in done.err


def test_an_interrupt_of_a_script_ends_with_130(tmp_path: Path) -> None:
    """The answer has more characters than the pipe holds, so that the command still writes when it is interrupted."""
    endless = write_chat_model(tmp_path, "abc", endless=True, context=16384)
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "infernum", "chat", endless, "--device", "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        process.stdin.write(b"Hello")
        process.stdin.close()
        assert process.stdout.read(6) == b"abcabc"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=60) == 130
