"""Bundles for NumPy: graphs and nothing else, made in a moment where neither a GPU nor NVRTC is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, processor_seconds

import infernum as package
from infernum.bundle import Bundle
from infernum.errors import BundleError, CompileError
from infernum.graph_bundle import cached_graphs, trace_model
from infernum.llm import LLM
from infernum.manifest import ANY
from infernum.models.presets import resolve
from infernum.runtime.layout import check_arch
from infernum.sampling_params import SamplingParams

Run = Callable[..., Outcome]

BAD_INPUT = 2
"""The exit code of a user's mistake."""

FIRST_LINE = "Midway upon the journey of our life"
WIDE_HEADS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 512,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return trace_model(resolve("dante"), tmp_path_factory.mktemp("numpy") / "dante")


@pytest.fixture
def wide_heads(tmp_path: Path) -> Path:
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WIDE_HEADS))
    return folder


def test_it_holds_graphs_and_no_architecture(graphs: Bundle) -> None:
    blocks = ["decoder", "embed", "greedy", "head", "logprobs", "sample"]
    files = sorted(path.name for path in graphs.folder.iterdir())
    assert files == sorted(["checksums.txt", "manifest.json", *(f"{name}.traced.ir" for name in blocks)])
    manifest = graphs.manifest
    assert (manifest.arch, manifest.nvrtc, manifest.fuse, manifest.rules) == (None, None, False, [])
    assert [variant.name for variant in manifest.variants] == [ANY]
    for variants in manifest.blocks.values():
        (block,) = variants.values()
        assert (block.source, block.cubin, block.steps, block.kernels) == ("", "", [], [])


def test_blocks_take_and_give_the_same_tensors_as_those_of_a_bundle_for_a_gpu(
    graphs: Bundle, dante_unfused: Bundle
) -> None:
    for name, variants in graphs.manifest.blocks.items():
        (traced,) = variants.values()
        compiled = next(iter(dante_unfused.manifest.blocks[name].values()))
        assert (traced.batch, traced.state, traced.stream_in) == (
            compiled.batch,
            compiled.state,
            compiled.stream_in,
        )
        assert [(t.dtype, t.shape) for t in traced.stream_out] == [
            (t.dtype, t.shape) for t in compiled.stream_out
        ]
        assert traced.weights.keys() == compiled.weights.keys()


def test_its_text_is_that_of_a_bundle_for_a_gpu(graphs: Bundle, dante_bundle: Bundle) -> None:
    drawn = SamplingParams(max_tokens=20, seed=3, repetition_penalty=1.2)
    prompts = [FIRST_LINE, "The"]
    texts: list[list[str]] = []
    for bundle in (graphs, dante_bundle):
        with LLM(device="cpu", bundle=bundle) as llm:
            texts.append([completion.text for completion in llm.generate(prompts, drawn)])
    assert texts[0] == texts[1]


def test_the_first_token_comes_within_two_seconds_where_nothing_is_cached_and_there_is_no_nvrtc(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\n"
        "for name in ('cuda', 'nvmath', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "from infernum.cli import run\n"
        f"run(['run', {FIRST_LINE!r}, '--greedy', '-n', '1'])\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    seconds: list[float] = []
    for attempt in range(3):
        environment["INFERNUM_CACHE"] = str(tmp_path / str(attempt))
        begin = processor_seconds()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
        seconds.append(processor_seconds() - begin)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == b"\n"  # the poem's first token is the end of the line
    assert min(seconds) < 2


def test_the_cache_holds_one_for_each_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path))
    folders = [cached_graphs(resolve("dante"), dtype).folder for dtype in ("auto", "float16", "auto")]
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize(
    "command",
    [
        ("verify",),
        ("rebuild",),
        ("explain",),
        ("explain", "decoder"),
        ("inspect", "--source", "--block", "decoder"),
        ("inspect", "--kernel", "gemv_o_proj"),
        ("report",),
    ],
    ids=" ".join,
)
def test_what_needs_kernels_refuses_in_one_line(
    command: tuple[str, ...], graphs: Bundle, infernum: Run
) -> None:
    name, *more = command
    done = infernum(name, graphs.folder, *more)
    assert done.code == BAD_INPUT
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "holds graphs for NumPy and no kernels" in done.err
    assert "infernum compile dante" in done.err


def test_a_gpu_does_not_run_it(graphs: Bundle) -> None:
    with pytest.raises(BundleError, match=r"holds graphs for NumPy and no kernels; run it with --device cpu"):
        check_arch(graphs, (9, 0), "a GPU")


def test_it_can_be_looked_at(graphs: Bundle, infernum: Run) -> None:
    overview = infernum("inspect", graphs.folder)
    assert overview.code == 0
    assert "NumPy, bf16, graphs only" in overview.out
    assert infernum("inspect", graphs.folder, "--block", "decoder").code == 0
    assert "<svg" in infernum("graph", graphs.folder, "decoder").out
    health = infernum("doctor", graphs.folder)
    assert "graphs for NumPy" in health.out
    assert infernum("doctor", graphs.folder, "--json").code == health.code == 0


def test_compile_makes_one_where_the_architecture_is_numpy(tmp_path: Path, infernum: Run) -> None:
    out = tmp_path / "made"
    done = infernum("compile", "dante", "--arch", "numpy", "-o", out, "--json")
    assert json.loads(done.out)["arch"] is None
    again = infernum("compile", "dante", "--arch", "numpy", "-o", out)
    assert "6 graphs for NumPy" in again.out
    ran = infernum("run", FIRST_LINE, "--device", "cpu", "--greedy", "-n", "1", "--bundle", out)
    assert (ran.code, ran.out) == (0, "\n")


@pytest.mark.parametrize("option", ["--fuse", "--rules=-attend", "--dump-passes"])
def test_there_are_no_rules_to_choose_for_numpy(option: str, tmp_path: Path, infernum: Run) -> None:
    done = infernum("compile", "dante", "--arch", "numpy", option, "-o", tmp_path / "made")
    assert (done.code, done.err.count("\n")) == (BAD_INPUT, 1)
    assert "--arch numpy" in done.err
    assert not (tmp_path / "made").exists()


def test_rules_are_refused_where_numpy_runs() -> None:
    with pytest.raises(CompileError, match="no rule is applied in NumPy"):
        LLM("dante", device="cpu", rules=["+attend"])


def test_numpy_runs_heads_that_no_kernel_serves(wide_heads: Path, tmp_path: Path, infernum: Run) -> None:
    with LLM(wide_heads, device="cpu", load_format="dummy") as llm:
        assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))[0].tokens) == 4
    refused = infernum("compile", wide_heads, "-o", tmp_path / "made", "--arch", "sm_90a")
    assert refused.code == BAD_INPUT
    assert "head size 512" in refused.err
