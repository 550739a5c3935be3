"""Two ranks on GPUs: of one host where there are two, and otherwise both on one GPU, whose kernels then run at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from oracle.golden import relative_error

from infernum import LLM, SamplingParams
from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.compiler import Options, compile_model
from infernum.dtypes import dtype as dtype_named
from infernum.engine.engine import Engine
from infernum.machine import default_arch
from infernum.models.presets import resolve
from infernum.runtime.driver import gpu_count
from infernum.runtime.ranks import RanksExecutor
from infernum.step import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DTYPES = ("float32", "bfloat16", "float16")
TOKENS = np.random.default_rng(8).integers(10, 4000, 150).tolist()


def bundle_of(dtype: str, folder: Path) -> Bundle:
    options = Options(arch=default_arch(), dtype=dtype, ranks=2)
    return compile_model(resolve("dante"), options, folder / dtype)


def opened(bundle: Bundle) -> RanksExecutor:
    source = resolve("dante")
    assert source.folder is not None
    places = [0, 1] if gpu_count() > 1 else [0, 0]
    checkpoint = Checkpoint.open(source.folder)
    return RanksExecutor.open(bundle, checkpoint, device_indices=places, max_pages_total=200)


@pytest.fixture(scope="module", params=DTYPES)
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RanksExecutor]:
    with opened(bundle_of(request.param, tmp_path_factory.mktemp("ranks"))) as executor:
        yield executor


def step_of(tokens: list[int], new: int) -> Batch:
    """A step of the last `new` tokens of a sequence, with the logits of each."""
    count = len(tokens)
    positions = np.arange(count - new, count, dtype=np.int32)
    rows, zeros = np.arange(new, dtype=np.int32), np.zeros(new, np.int32)
    pages = np.arange(-(-count // 64), dtype=np.int32)[None]
    return Batch(
        np.array(tokens[-new:], np.int32), positions, zeros, np.array([0, new], np.int32), pages, rows
    )


def test_the_logits_of_two_ranks_are_those_of_numpy_in_every_variant(ranks: RanksExecutor) -> None:
    with LLM("dante", "cpu", "float32", tensor_parallel_size=2) as llm:
        expected = llm.logits(TOKENS)
    for new in (150, 40, 8, 3, 1):
        ranks.logits(step_of(TOKENS[:-new], len(TOKENS) - new)) if new < len(TOKENS) else None
        found = ranks.logits(step_of(TOKENS, new))
        tolerance = dtype_named(
            {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[ranks.dtype]
        ).tolerance
        assert relative_error(found, expected[-new:]) < 4 * tolerance, new
        assert np.array_equal(ranks.logits(step_of(TOKENS, new)), found)


def test_both_ranks_have_the_same_bits(ranks: RanksExecutor) -> None:
    found = ranks.logits(step_of(TOKENS, 150))
    second = ranks._ranks[1]
    second.synchronize()
    other = np.empty_like(found)
    second._device.activate()
    second._stream.download(other.ctypes.data, second._loaded.logits, other.nbytes)
    second.synchronize()
    assert np.array_equal(other, found)


def test_sequences_that_come_and_go_are_generated_alike_each_time(ranks: RanksExecutor) -> None:
    """Prompts, decodes by CUDA graphs, mixed steps, greedy and sampled."""
    bundle = ranks._ranks[0]._bundle
    engine = Engine(ranks, bundle.manifest.model, ())
    params = [
        SamplingParams(max_tokens=40 + 7 * i, temperature=i % 2, seed=i, ignore_eos=True) for i in range(12)
    ]
    prompts = [TOKENS[i : i + 5 + 9 * i] for i in range(12)]
    first, again = ([completion.tokens for completion in engine.generate(prompts, params)] for _ in range(2))
    assert first == again and all(len(set(tokens)) > 3 for tokens in first)


SILENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gpu.test_ranks import TOKENS, bundle_of, opened, step_of
from infernum.errors import DeviceError
executor = opened(bundle_of("bfloat16", Path(sys.argv[2])))
executor.logits(step_of(TOKENS, 150))
print("begun", flush=True)
try:
    executor._ranks[0].logits(step_of(TOKENS, 1))
except DeviceError as error:
    print(error, flush=True)
"""


def test_a_rank_whose_peer_begins_no_step_is_an_error_within_two_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SILENT, str(Path(__file__).parents[1]), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        begin = time.monotonic()
        assert "the GPU context is lost" in process.stdout.readline()
        assert time.monotonic() - begin < 2
        process.wait(20)
