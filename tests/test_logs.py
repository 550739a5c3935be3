"""What the command line says beside its results: log channels, warnings, colours, and nothing in the way of JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import Outcome
from safetensors.numpy import save_file

from infernum import logs
from infernum.bundle import Bundle, open_bundle
from infernum.cli import COMMANDS
from infernum.cli.console import progress_bar
from infernum.codegen import nvrtc
from infernum.compiler import Options, cached_bundle, emit_sources, prepare
from infernum.errors import InfernumError
from infernum.lab.rebuild.edited import rebuild_bundle
from infernum.models.presets import resolve
from infernum.resources import demo_folder

Run = Callable[..., Outcome]

ROOT = Path(nvrtc.__file__).parents[2]
KERNEL = 'extern "C" __global__ void k(float* out) { out[0] = 1.0f; }\n'
UNUSED = 'extern "C" __global__ void k(float* out) {\n    int unused = 1;\n    out[0] = 1.0f;\n}\n'


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stderr_on_terminal(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Terminal:
    """Stderr, from now on a terminal that shows colours, outside of any CI, but for what `environment` says."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | environment).items():
        monkeypatch.setenv(name, value)
    return stream


def channels_of(text: str) -> set[str]:
    """The words before the first colon of every line."""
    return {line.split(":")[0] for line in text.splitlines()}


@pytest.fixture
def compiled(tmp_path: Path, infernum: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`infernum … compile dante …`, for steps of one token only."""
    monkeypatch.delenv(logs.VARIABLE, raising=False)

    def compile_dante(before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Outcome:
        return infernum(
            *before, "compile", "dante", "--max-batch-tokens", "1", "-o", tmp_path / "out", *after
        )

    return compile_dante


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ((), (), set()),
        (("-v",), (), {"passes"}),
        ((), ("-v",), {"passes"}),
        (("-vv",), (), {"passes", "rules", "cache"}),
        (("-v",), ("-v",), {"passes", "rules", "cache"}),
        ((), ("-vvv",), {"passes", "rules", "cache", "kernels"}),
        (("-vvv",), ("-vv",), {"passes", "rules", "cache", "kernels"}),
    ],
)
def test_more_vs_show_more_channels_before_the_command_and_after_it(
    compiled: Callable[..., Outcome], before: tuple[str, ...], after: tuple[str, ...], shown: set[str]
) -> None:
    done = compiled(before, after)
    assert done.code == 0
    assert channels_of(done.err) == shown


@pytest.mark.parametrize("chosen", ["rules", "passes", "kernels", "cache", "rules, kernels", "all", "", ","])
def test_the_environment_chooses_channels_and_one_run_leaves_none_on(
    compiled: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("INFERNUM_LOGS", chosen)
    wanted = (
        logs.CHANNELS if chosen == "all" else [name.strip() for name in chosen.split(",") if name.strip()]
    )
    assert channels_of(compiled().err) == set(wanted)
    monkeypatch.delenv("INFERNUM_LOGS")
    assert compiled().err == ""


def test_an_unknown_channel_is_one_line_that_lists_the_known_ones(
    infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNUM_LOGS", "rules,kernel")
    done = infernum("doctor")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: INFERNUM_LOGS: there is no channel 'kernel'; "
        "the channels are rules, passes, kernels, cache, or all\n"
    )
    with pytest.raises(InfernumError, match="no channel 'Rules'"):
        logs.channels_named("Rules")


LINES = {
    "rules": [
        r"decoder\.t1: into_prologue fired at rms_norm_1, \w+ -> \w+",
        r"decoder\.t64: attend refused at append_1, attention_1: attend_cluster: a block holds the new keys of .*",
    ],
    "passes": [
        r"decoder: trace \d+\.\d ms, 21 nodes",
        r"decoder\.t1: merge_products \d+\.\d ms, 21 -> 23 nodes",
        r"decoder\.t1: (plan|emit|nvrtc) \d+\.\d ms",
    ],
    "kernels": [
        r"decoder\.t1: attend_cluster: attend_cluster chosen; \d+ registers, 0 bytes spilled",
        r"decoder\.t1: gemv_mma_o_proj: gemv_mma chosen; \d+ registers, 0 bytes spilled",
    ],
    "cache": [r"decoder\.t1\.cu hit [0-9a-f]{16}"],
}


@pytest.mark.parametrize("channel", LINES)
def test_a_channel_says_what_happened_on_one_line(
    compiled: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    more = ("--max-batch-tokens", "64")  # at one token, no rule is refused
    compiled(after=more)  # fills the cache
    monkeypatch.setenv("INFERNUM_LOGS", channel)
    lines = compiled(after=more).err.splitlines()
    for pattern in LINES[channel]:
        assert any(re.fullmatch(f"{channel}: {pattern}", line) for line in lines), pattern


def test_the_cache_says_what_it_had_and_what_was_compiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "infernum.cache"):
        for _ in range(2):
            nvrtc.compile_cuda(KERNEL, name="k.cu", arch="sm_90a", cache=tmp_path)
    first, second = caplog.messages
    assert re.fullmatch(r"k\.cu miss, compiled in \d+\.\d\d s", first)
    assert re.fullmatch(r"k\.cu hit [0-9a-f]{16}", second)


def test_the_cache_says_whether_it_had_the_bundle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    monkeypatch.setattr("infernum.bundle_cache._own_sources", lambda: b"the code as it is")

    def said() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "infernum.cache"):
            made.append(cached_bundle(resolve("dante"), Options(max_batch_tokens=1)))
        return [message for message in caplog.messages if "bundle" in message]

    made: list[Bundle] = []
    missed, hit = said(), said()
    folder = made[0].folder
    assert (missed, hit) == ([f"bundle miss, compiling {folder}"], [f"bundle hit {folder}"])
    (folder / "manifest.json").write_text("{}")
    damaged = said()
    assert damaged[0].startswith("the bundle is damaged and made anew: ")
    assert [*damaged[1:], *said()] == [*missed, *hit]
    graph = folder / "decoder.t1.ir"
    graph.write_bytes(graph.read_bytes()[:-5])
    assert said()[0].startswith(f"the bundle is damaged and made anew: {graph}")
    graph.unlink()
    assert said()[0].startswith(f"the bundle is damaged and made anew: {graph}")
    (folder / "manifest.json").unlink()
    assert [*said(), *said()] == [*missed, *hit]


def test_a_cached_bundle_whose_kernels_were_edited_is_used_and_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    monkeypatch.setattr("infernum.bundle_cache._own_sources", lambda: b"the code as it is")
    options = Options(max_batch_tokens=1)
    made = cached_bundle(resolve("dante"), options)
    assert not caplog.messages
    with (made.folder / "decoder.t1.cu").open("a", encoding="utf-8") as file:
        file.write("// looked at\n")
    rebuild_bundle(open_bundle(made.folder), cache=tmp_path)
    assert cached_bundle(resolve("dante"), options).manifest.edits
    (said,) = caplog.messages
    assert said.startswith(f"{made.folder}: its kernels were edited by hand, and that is what runs")


def test_nothing_is_formatted_while_no_channel_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*args: object, **more: object) -> logging.LogRecord:
        raise AssertionError("a record was made")

    monkeypatch.setattr(logging.Logger, "makeRecord", made)
    emit_sources(resolve("dante"), Options(max_batch_tokens=1))
    with logs.on_stderr():
        logs.show(["rules"])
        with pytest.raises(AssertionError, match="a record was made"):
            emit_sources(resolve("dante"), Options(max_batch_tokens=1))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


FROM_PYTHON = """\
import logging
from infernum.codegen.nvrtc import compile_cuda
CONFIGURE
compile_cuda(SOURCE, name="k.cu", arch="sm_90a", cache=None)
"""


def test_a_program_that_uses_the_library_hears_only_warnings_until_it_asks() -> None:
    code = FROM_PYTHON.replace("SOURCE", repr(UNUSED))
    quiet = python(code.replace("CONFIGURE", ""), INFERNUM_LOGS="all")
    assert quiet.stdout == ""
    assert quiet.stderr.startswith("k.cu:2: warning") and "miss" not in quiet.stderr
    asked = python(code.replace("CONFIGURE", "logging.basicConfig(level=logging.INFO)"))
    assert asked.stderr.count("INFO:infernum.cache:k.cu miss") == 1
    assert asked.stderr.count("WARNING:infernum.codegen.nvrtc:k.cu:2: warning") == 1


def test_a_warning_of_the_package_reaches_the_user_once(
    infernum: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles(model: str) -> None:
        nvrtc.compile_cuda(UNUSED, name="k.cu", arch="sm_90a", cache=None)
        raise InfernumError("enough")

    monkeypatch.setattr("infernum.models.presets.resolve", compiles)
    lines = infernum("compile", "dante").err.splitlines()
    assert lines[0].startswith("warning: k.cu:2: warning #177-D")
    assert lines[-1] == "error: enough"
    assert sum("#177-D" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({}, "\x1b[36mrules\x1b[0m: said"),
        ({"NO_COLOR": "1"}, "rules: said"),
        ({"NO_COLOR": ""}, "\x1b[36mrules\x1b[0m: said"),
        ({"TERM": "dumb"}, "rules: said"),
    ],
)
def test_the_name_of_a_channel_is_coloured_only_for_who_wants_colours(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], start: str
) -> None:
    terminal = stderr_on_terminal(monkeypatch, environment)
    with logs.on_stderr():
        logs.show(["rules"])
        logs.channel("rules").info("%s\nin two lines", "said")
        logs.channel("passes").info("unheard")
    assert terminal.getvalue() == f"{start} in two lines\n"


@pytest.mark.parametrize(
    ("environment", "drawn"), [({}, True), ({"TERM": "dumb"}, False), ({"CI": "true"}, False)]
)
def test_a_progress_bar_is_drawn_only_where_someone_watches(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], drawn: bool
) -> None:
    terminal = stderr_on_terminal(monkeypatch, environment)
    with progress_bar() as progress:
        assert (progress is not None) is drawn
        if progress:
            progress("loading", 1, 2)
    assert ("loading" in terminal.getvalue()) is drawn


def test_no_progress_bar_is_drawn_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    with progress_bar() as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


def on_terminal(*args: str | Path, **environment: str) -> str:
    """What a command prints on a terminal, both streams together."""
    unset = {"NO_COLOR", "CI", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "infernum", *map(str, args)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | environment,
    ) as process:
        os.close(theirs)
        said = b"".join(_read(ours))
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux says EIO when nobody writes any more
            return
        if not chunk:
            return
        yield chunk


def test_no_color_leaves_no_escape_code_in_tables_and_logs(dante_bundle: Bundle) -> None:
    inspect = ("inspect", dante_bundle.folder)
    styled, plain = on_terminal(*inspect), on_terminal(*inspect, NO_COLOR="1")
    assert "\x1b[1m" in styled
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", styled) == plain


def test_a_command_on_a_terminal_colours_its_log_unless_told_not_to(tmp_path: Path) -> None:
    command = ("-v", "compile", "dante", "--max-batch-tokens", "1", "-o", tmp_path / "out")
    coloured, plain = on_terminal(*command, CI="1"), on_terminal(*command, CI="1", NO_COLOR="1")
    assert "\x1b[36mpasses\x1b[0m: decoder.t1: plan" in coloured
    assert "passes: decoder.t1: plan" in plain and "\x1b" not in plain


def json_commands() -> list[str]:
    """Every command and subcommand that has --json."""
    found: list[str] = []

    def look(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                look(f"{path} {name}", inner)
        elif any("--json" in option.opts for option in command.params):
            found.append(path)

    for name in COMMANDS:
        look(name, import_module(f"infernum.cli.{name}_command").command)
    return found


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "compile": ("dante", "-o", "OUT", "--dump-passes"),
    "run": ("Midway", "--device", "cpu", "--greedy", "-n", "2"),
    "chat": ("dante", "--chat-template", "TEMPLATE", "--device", "cpu", "--greedy", "-n", "2"),
    "inspect": ("BUNDLE",),
    "doctor": (),
    "models": (),
    "rebuild": ("BUNDLE",),
    "explain": ("BUNDLE",),
    "diff": ("BUNDLE", "BUNDLE"),
    "verify": ("BUNDLE", "--rule", "merge_products"),
    "bench engine": ("--null", "--seqs", "4", "--steps", "20"),
    "bench serve": ("--null", "--concurrency", "1", "--requests", "2", "--tokens", "4"),
    "bench throughput": (
        *(
            "--model",
            "dante",
            "--device",
            "cpu",
            "--batch",
            "2",
            "--prompt",
            "8",
            "--tokens",
            "4",
            "--repeats",
            "1",
        ),
    ),
}
"""By command, what it is given; BUNDLE is a compiled model, OUT a folder to write, TEMPLATE a chat template."""

TEMPLATE = Path(__file__).parent / "oracle" / "chat_templates" / "trimmed_answers.jinja"

NEEDS_A_GPU = {"bench latency", "bench kernels", "profile", "tune"}


@pytest.mark.parametrize("command", sorted(set(json_commands()) - NEEDS_A_GPU))
def test_json_is_alone_on_stdout_however_much_is_logged(
    command: str, dante_bundle: Bundle, infernum: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command in ARGUMENTS, f"say in ARGUMENTS what `infernum {command} --json` is given here"
    monkeypatch.setenv("INFERNUM_LOGS", "all")
    places = {"BUNDLE": str(dante_bundle.folder), "OUT": str(tmp_path / "out"), "TEMPLATE": str(TEMPLATE)}
    arguments = [places.get(argument, argument) for argument in ARGUMENTS[command]]
    done = infernum("-vvv", *command.split(), *arguments, "--json", "-vvv", stdin=b"Midway")
    assert isinstance(json.loads(done.out), dict), done.err
    assert "Traceback" not in done.err
    if command == "compile":
        assert channels_of(done.err) == set(logs.CHANNELS)


@pytest.mark.parametrize(
    ("changes", "dtype", "said"),
    [
        ({"torch_dtype": None, "dtype": None}, "auto", "float16, as most bytes of the weights are stored"),
        ({"dtype": "bfloat16"}, "auto", "bfloat16, as config.json says"),
        ({"dtype": "bfloat16"}, "float32", "float32, as --dtype says"),
    ],
)
def test_the_dtype_is_logged_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], dtype: str, said: str
) -> None:
    fields = json.loads((demo_folder() / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"all": np.zeros(8, np.float16)}, tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO, "infernum.passes"):
        sources = prepare(resolve(str(tmp_path)), Options(dtype=dtype))
    assert said.startswith(sources.program.dtype.long_name)
    assert said in caplog.text
