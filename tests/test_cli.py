"""The command line as people use it: what it prints, where, and how fast it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, Tiny, in_shell, processor_seconds

import infernum as package
from infernum.bundle import Bundle
from infernum.models.config import families
from infernum.models.presets import PRESETS

Run = Callable[..., Outcome]

FIRST_LINE = "Midway upon the journey of our life"
NEXT_LINES = "\nI found myself within a forest dark,\nFor the straightforward pathway had been lost.\n\n"
RUN = ("run", FIRST_LINE, "--device", "cpu", "--greedy", "-n", "20")


def python(*args: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    return subprocess.run([sys.executable, *args], capture_output=True, env=environment, check=False, **more)  # type: ignore[call-overload]


def test_help_lists_the_commands_in_less_than_a_third_of_a_second() -> None:
    seconds: list[float] = []
    for _ in range(3):
        begin = processor_seconds()
        done = python("-m", "infernum", "--help")
        seconds.append(processor_seconds() - begin)
        assert done.returncode == 0
        for command in (b"compile", b"run", b"inspect", b"bench", b"doctor"):
            assert command in done.stdout
    assert min(seconds) < 0.3


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, infernum.cli; infernum.cli.run(['--help']);"
        "print({'numpy', 'rich', 'networkx', 'jinja2', 'msgspec', 'tokenizers'} & set(sys.modules))"
    )
    assert python("-c", code).stdout.decode().endswith("set()\n")


@pytest.mark.parametrize("command", ["compile", "run", "chat", "inspect", "doctor", "bench", "bench latency"])
def test_every_command_explains_itself(command: str, infernum: Run) -> None:
    done = infernum(*command.split(), "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: infernum {command}")
    assert done.err == ""


def test_the_version_is_the_packages(infernum: Run) -> None:
    assert infernum("--version").out == f"infernum {package.__version__}\n"


def test_the_demo_continues_the_poem(dante_bundle: Bundle, infernum: Run) -> None:
    done = infernum(*RUN, "--bundle", dante_bundle.folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == NEXT_LINES


def test_the_unfused_bundle_says_the_same(dante_bundle: Bundle, dante_unfused: Bundle, infernum: Run) -> None:
    more = ("run", FIRST_LINE, "--device", "cpu", "--greedy", "-n", "40", "--json", "--bundle")
    texts = [json.loads(infernum(*more, b.folder).out)["tokens"] for b in (dante_bundle, dante_unfused)]
    assert texts[0] == texts[1]


def test_without_arguments_the_demo_says_its_line(dante_bundle: Bundle, infernum: Run) -> None:
    done = infernum("run", "--device", "cpu", "-n", "3", "--bundle", dante_bundle.folder, "--json")
    assert json.loads(done.out)["prompt"] == FIRST_LINE


def test_a_prompt_is_read_from_stdin_less_its_last_newline(dante_bundle: Bundle, infernum: Run) -> None:
    more = ("--device", "cpu", "--greedy", "-n", "20", "--bundle", dante_bundle.folder)
    assert infernum("run", "-", *more, stdin=FIRST_LINE.encode() + b"\n").out == NEXT_LINES


def test_log_probabilities_of_a_prompt_need_no_output(dante_bundle: Bundle, infernum: Run) -> None:
    asking = (
        "--device",
        "cpu",
        "-n",
        "0",
        "--prompt-logprobs",
        "2",
        "--bundle",
        dante_bundle.folder,
        "--json",
    )
    found = json.loads(infernum("run", "Midway", *asking).out)
    first, *others = found["prompt_logprobs"]
    assert first is None and found["tokens"] == [] and found["finish_reason"] == "length"
    assert [each["token"] for each in others] == found["prompt_tokens"][1:]
    assert all(len(each["top"]) == 2 and each["logprob"] <= each["top"][0][1] for each in others)


def test_json_is_one_object_alone_on_stdout(dante_bundle: Bundle, infernum: Run) -> None:
    done = infernum(*RUN, "--json", "--bundle", dante_bundle.folder)
    found = json.loads(done.out)
    assert found["text"] == NEXT_LINES
    assert len(found["tokens"]) == 20
    assert found["finish_reason"] == "length"
    assert found["statistics"]["prompt_tokens"] == len(found["prompt_tokens"])
    assert done.err == ""


def test_statistics_go_to_stderr(dante_bundle: Bundle, infernum: Run) -> None:
    done = infernum(*RUN, "--stats", "--bundle", dante_bundle.folder)
    assert done.out == NEXT_LINES
    assert "tokens/s" in done.err


def test_the_same_seed_gives_the_same_text_and_another_seed_another(
    dante_bundle: Bundle, infernum: Run
) -> None:
    def text(seed: int) -> str:
        more = ("-n", "24", "--temperature", "1.5", "--top-p", "1", "--seed", str(seed))
        return infernum("run", "The", "--device", "cpu", *more, "--bundle", dante_bundle.folder).out

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_generation_ends_before_a_stop_string(dante_bundle: Bundle, infernum: Run) -> None:
    done = infernum(*RUN, "--stop", "forest", "--json", "--bundle", dante_bundle.folder)
    found = json.loads(done.out)
    assert found["text"] == "\nI found myself within a "
    assert found["finish_reason"] == "stop"


def test_generation_ends_at_a_stop_token(dante_bundle: Bundle, infernum: Run) -> None:
    whole = json.loads(infernum(*RUN, "--json", "--bundle", dante_bundle.folder).out)
    more = ("--stop-token-id", "0", "--stop-token-id", str(whole["tokens"][6]))
    stopped = json.loads(infernum(*RUN, *more, "--json", "--bundle", dante_bundle.folder).out)
    assert stopped["tokens"] == whole["tokens"][: whole["tokens"].index(whole["tokens"][6]) + 1]
    assert stopped["finish_reason"] == "stop"
    assert whole["text"].startswith(stopped["text"])


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(
    tiny: Callable[[str], Tiny], infernum: Run
) -> None:
    case = tiny("plain")
    more = (
        "--model",
        case.folder,
        "--bundle",
        case.bundle().folder,
        "--device",
        "cpu",
        "--greedy",
        "--ignore-eos",
    )
    done = infernum("run", "1 15, 27", "--prompt-ids", *more, "-n", "5")
    assert (done.code, done.err) == (0, "")
    assert len([int(word) for word in done.out.split()]) == 5
    assert infernum("run", "--prompt-ids", "1,15,27", *more, "-n", "5").out == done.out
    assert infernum("run", "-", "--prompt-ids", *more, "-n", "5", stdin=b"1 15\n27\n").out == done.out


def test_a_prompt_of_token_ids_is_continued_as_its_text_is(dante_bundle: Bundle, infernum: Run) -> None:
    more = (*RUN[2:], "--bundle", dante_bundle.folder)
    ids = json.loads(infernum(*RUN, "--json", "--bundle", dante_bundle.folder).out)["prompt_tokens"]
    assert infernum("run", ",".join(map(str, ids)), "--prompt-ids", *more).out == NEXT_LINES


def test_whoever_closes_the_pipe_early_sees_no_error(dante_bundle: Bundle) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    command = [sys.executable, "-m", "infernum", *RUN, "-n", "200", "--bundle", str(dante_bundle.folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_an_interrupt_is_quiet_and_ends_with_130(infernum: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("infernum.models.presets.resolve", interrupted)
    done = infernum("run")
    assert done.code == 130
    assert "Traceback" not in done.err


def test_compile_writes_a_bundle_and_says_what_is_in_it(tmp_path: Path, infernum: Run) -> None:
    done = infernum("compile", "dante", "-o", tmp_path / "out", "--dump-passes")
    assert (done.code, done.err) == (0, "")
    for word in ("decoder", "prefill", "kernels before fusion", "registers", "spilled"):
        assert word in done.out
    assert (tmp_path / "out" / "decoder.t1.cu").is_file()
    assert (tmp_path / "out-passes" / "decoder.t1" / "00-traced.ir").is_file()


def test_compiling_twice_gives_the_same_bytes(dante_bundle: Bundle, tmp_path: Path, infernum: Run) -> None:
    done = infernum("compile", "dante", "--arch", "sm_90a", "-o", tmp_path / "again", "--json")
    assert json.loads(done.out)["bundle"] == str(tmp_path / "again")
    for path in dante_bundle.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_inspect_shows_the_manifest_a_block_and_a_kernel(dante_bundle: Bundle, infernum: Run) -> None:
    folder = dante_bundle.folder
    assert "dante (llama), 5 layers" in infernum("inspect", folder).out
    block = infernum("inspect", folder, "--block", "decoder", "--variant", "t64").out
    for word in ("arena of", "model.layers.{layer}.mlp.down_proj.weight", "rules refused"):
        assert word in block
    kernel = dante_bundle.manifest.blocks["decoder"]["t1"].kernels[0].name
    assert "registers" in infernum("inspect", folder, "--kernel", kernel).out
    source = infernum("inspect", folder, "--kernel", kernel, "--source").out
    assert source.count("__global__") == 1 and kernel in source


@pytest.mark.parametrize("variant", ["t1", "prefill", "any"])
def test_inspect_shows_the_one_code_of_a_sampler_whatever_the_variant(
    dante_bundle: Bundle, infernum: Run, variant: str
) -> None:
    asked = ("inspect", dante_bundle.folder, "--block", "greedy", "--source")
    assert infernum(*asked, "--variant", variant).out == infernum(*asked).out != ""
    drawn = infernum("graph", dante_bundle.folder, "greedy", "--variant", variant, "--format", "dot").out
    assert 'digraph "greedy.any, after fusion"' in drawn


def test_inspect_as_json_is_the_manifest(dante_bundle: Bundle, infernum: Run) -> None:
    found = json.loads(infernum("inspect", dante_bundle.folder, "--json").out)
    assert found["model"]["name"] == "dante"
    assert set(found["blocks"]) == {"embed", "decoder", "head", "greedy", "sample", "logprobs"}


def test_doctor_says_what_works_and_passes_without_a_gpu(infernum: Run) -> None:
    done = infernum("doctor", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["works"]["run without a GPU"] is True
    assert found["works"]["compile"] is True
    assert found["versions"]["numpy"]
    assert infernum("doctor").code == 0


def test_models_lists_every_type_and_preset_with_what_it_needs(infernum: Run) -> None:
    listed = json.loads(infernum("models", "--json").out)
    assert [t["model_type"] for t in listed["model_types"]] == list(families())
    presets = {preset["name"]: preset for preset in listed["presets"]}
    assert list(presets) == list(PRESETS)
    eight = presets["llama-3.1-8b"]
    assert (eight["parameters"], eight["weight_bytes"]) == (8_030_261_248, 16_060_522_496)
    assert eight["kv_bytes_per_token"] == 32 * 2 * 8 * 128 * 2
    assert eight["memory_bytes"] == eight["weight_bytes"] + eight["context"] * eight["kv_bytes_per_token"]
    assert presets["dante"]["has_weights"] and not eight["has_weights"]
    table = infernum("models").out
    assert "8.03 B" in table and "16.1 GB" in table and all(name in table for name in PRESETS)


def test_models_lists_the_model_types_of_a_plugin(tmp_path: Path) -> None:
    plugin = tmp_path / "family.py"
    plugin.write_text(NEW_FAMILY)
    listed = json.loads(python("-m", "infernum", "models", "--json", "--plugin", str(plugin)).stdout)
    (added,) = [t for t in listed["model_types"] if t["model_type"] == "novel"]
    assert added["about"] == "A new model"


NEW_FAMILY = """\
from dataclasses import dataclass
from typing import ClassVar
from infernum.models import llama
from infernum.models.config import add_family
from infernum.models.family import Family

@dataclass(frozen=True)
class NovelConfig(llama.LlamaConfig):
    \"\"\"A new model: it is a Llama by another name.\"\"\"

    model_type: ClassVar[str] = "novel"

add_family(Family(configs=(NovelConfig,), first=llama.embed, layer=llama.FAMILY.layer, last=llama.head))
"""


def test_python_has_the_same_entry_points() -> None:
    from infernum.llm import LLM
    from infernum.sampling_params import SamplingParams

    assert package.LLM is LLM
    assert package.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing  # type: ignore[attr-defined]


def test_several_prompts_are_one_ragged_batch(dante_bundle: Bundle) -> None:
    prompts = [FIRST_LINE, "Through me", "I"]
    params = package.SamplingParams(max_tokens=12, temperature=0)
    with package.LLM(device="cpu", bundle=dante_bundle) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate(prompt, params)[0] for prompt in prompts]
    assert [c.tokens for c in together] == [c.tokens for c in alone]


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("inspect", "--help"),
        ("inspect", "BUNDLE"),  # tables, by Rich
        ("explain", "BUNDLE"),  # lines, by Rich
        ("diff", "BUNDLE", "BUNDLE", "--json"),  # by click
        ("graph", "BUNDLE", "decoder"),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_no_error(args: tuple[str, ...], dante_bundle: Bundle) -> None:
    named = [str(dante_bundle.folder) if arg == "BUNDLE" else arg for arg in args]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "infernum", *named], stdout=write, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_importing_the_package_imports_nothing_else() -> None:
    done = python("-c", "import sys, infernum; print('numpy' in sys.modules, 'infernum.llm' in sys.modules)")
    assert done.stdout.split() == [b"False", b"False"]


COMPILE_SIDE = {
    "jinja2",
    "networkx",
    "cuda.bindings.nvrtc",
    "infernum.compiler",
    "infernum.fusion",
    "infernum.codegen",
}
"""What running a bundle on a GPU does not import. The family that reads the config imports `ir` and `ops`."""


def test_what_runs_a_bundle_on_a_gpu_imports_nothing_that_compiles(dante_bundle: Bundle) -> None:
    code = (
        "import sys, infernum.llm, infernum.runtime.executor, infernum.runtime.gemm, infernum.engine.engine\n"
        "from pathlib import Path\n"
        "from infernum.bundle import open_bundle\n"
        "from infernum.models.presets import resolve\n"
        "infernum.opening.check_bundle(open_bundle(Path(sys.argv[1])), resolve('dante'))\n"
        f"print({COMPILE_SIDE} & set(sys.modules))"
    )
    done = python("-c", code, str(dante_bundle.folder))
    assert done.stdout.decode().strip() == "set()", done.stderr.decode()


@pytest.mark.gpu
def test_the_gpu_says_what_numpy_says(infernum: Run) -> None:
    texts = [infernum("run", FIRST_LINE, "--greedy", "-n", "40", "--device", d).out for d in ("cuda", "cpu")]
    assert texts[0] == texts[1]


@pytest.mark.gpu
def test_bench_latency_checks_what_it_measures(infernum: Run, tmp_path: Path) -> None:
    sizes = ("--prompt", "70", "--tokens", "20", "--repeats", "1")
    done = infernum("bench", "latency", "--model", "dante", *sizes, "--json", "--output", tmp_path / "r.json")
    found = json.loads(done.out)
    assert found == json.loads((tmp_path / "r.json").read_text())
    assert 0 < found["error_against_unfused"] <= found["allowed_error"]
    assert 0 < found["fraction_of_bound"] < 1


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--help",),
    ("run", FIRST_LINE, "--bundle", "BUNDLE", "--device", "cpu", "-n", "3", "--stats"),
    ("doctor", "BUNDLE"),
    ("inspect", "BUNDLE"),
    ("explain", "BUNDLE", "decoder.t1"),
    ("diff", "BUNDLE", "BUNDLE"),
    ("graph", "BUNDLE", "decoder"),
    ("report", "BUNDLE", "-o", "OUT.html"),
    ("rebuild", "BUNDLE"),
)
"""Command lines that end with 0, in which BUNDLE and OUT are put."""


def filled(args: tuple[str, ...], bundle: Bundle, out: Path) -> list[str]:
    return [arg.replace("BUNDLE", str(bundle.folder)).replace("OUT", str(out)) for arg in args]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_command_works_with_any_standard_stream_closed(
    args: tuple[str, ...], dante_bundle: Bundle, tmp_path: Path
) -> None:
    named = filled(args, dante_bundle, tmp_path / "out")
    usual = in_shell('"$@"', *named)
    assert usual.returncode == 0, usual.stderr
    for closed in (">&-", "<&- 2>&-"):
        done = in_shell(f'"$@" {closed}', *named)
        assert done.returncode == 0 and b"Error" not in done.stderr, closed
        assert done.stderr.count(b"\n") == (0 if "2>" in closed else usual.stderr.count(b"\n")), closed
        assert done.stdout.count(b"\n") == (0 if closed == ">&-" else usual.stdout.count(b"\n")), closed


def test_a_bundle_compiled_with_closed_streams_is_the_same(dante_bundle: Bundle, tmp_path: Path) -> None:
    done = in_shell('"$@" <&- >&- 2>&-', "compile", "dante", "--arch", "sm_90a", "-o", str(tmp_path / "out"))
    assert done.returncode == 0
    for path in dante_bundle.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_mistake_ends_with_2_with_any_standard_stream_closed(closed: str) -> None:
    done = in_shell(f'"$@" {closed}', "inspect", "nowhere")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == (0 if "2>" in closed else 1)


@pytest.mark.parametrize(("stdin", "reason"), [("<&-", "is closed"), ("0> /dev/null", "cannot be read (")])
def test_a_prompt_on_a_stdin_that_cannot_be_read_is_refused(
    stdin: str, reason: str, dante_bundle: Bundle
) -> None:
    done = in_shell(f'"$@" {stdin}', "run", "-", "--bundle", str(dante_bundle.folder), "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"error: stdin: {reason}") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("args", [args for args in COMMANDS if args[0] != "rebuild"], ids=" ".join)
def test_a_stdout_that_is_full_is_one_line(
    args: tuple[str, ...], dante_bundle: Bundle, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    named = filled(args, dante_bundle, tmp_path / "out")
    done = in_shell('"$@" > /dev/full', *named)
    assert (done.returncode, done.stderr) == (2, b"error: stdout: No space left on device\n")
    done = in_shell('"$@" > /dev/full 2> /dev/full', *named)
    assert (done.returncode, done.stderr) == (2, b"")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("args", [*COMMANDS[1:], ("explain", "BUNDLE", "--json")], ids=" ".join)
def test_what_an_encoding_lacks_is_printed_in_ascii(
    args: tuple[str, ...], encoding: str, dante_bundle: Bundle, tmp_path: Path
) -> None:
    named = filled(args, dante_bundle, tmp_path / "out")
    done = in_shell('"$@"', *named, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"Error" not in done.stderr
    text = done.stdout.decode("utf-8" if args[0] == "graph" and encoding == "ascii" else encoding)  # by click
    if args[0] == "explain" and "--json" not in args:
        assert " > " in text and "?" not in text
    if "--json" in args:
        assert json.loads(text)


def test_the_c_locale_prints_ascii(dante_bundle: Bundle) -> None:
    done = in_shell(
        '"$@"',
        *("explain", str(dante_bundle.folder)),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 0 and done.stdout.isascii()


@pytest.mark.parametrize("what", ["--kernel", "--block"])
def test_inspect_gives_a_source_as_json_too(what: str, dante_bundle: Bundle, infernum: Run) -> None:
    kernel = dante_bundle.manifest.blocks["decoder"]["t1"].kernels[0].name
    chosen = ("--kernel", kernel) if what == "--kernel" else ("--block", "decoder", "--variant", "t1")
    asked = ("inspect", dante_bundle.folder, *chosen, "--source")
    found = json.loads(infernum(*asked, "--json").out)
    assert found["source"] == infernum(*asked).out
    assert found["file"] == "decoder.t1.cu" and found["not_rebuilt"] is False
    assert found["kernel"] == (kernel if what == "--kernel" else None)
