"""What tests share: bundles and checkpoints made once, the command line run in this process, and GPU tests skipped."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from oracle.checkpoints import write_checkpoint
from oracle.configs import OracleCase, case
from oracle.weights import random_weights

import infernum as package
from infernum.bundle import Bundle, write_bundle
from infernum.codegen.cubin import Cubin, KernelResources
from infernum.codegen.steps import KernelStep
from infernum.compiler import Options, compile_model, describe, emit_sources, texts
from infernum.models.presets import ModelSource, resolve
from infernum.runtime.driver import gpu_available

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

hypothesis.settings.register_profile("infernum", deadline=None)  # a busy machine is no mistake
hypothesis.settings.load_profile("infernum")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew instead of comparing"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("gpu") for item in items) and not gpu_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def processor_seconds() -> float:
    """The processor time of all ended children of this process, which tests that run beside it do not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when golden files are to be written anew."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def dante_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model, compiled with all rules."""
    return compile_model(resolve("dante"), Options(), tmp_path_factory.mktemp("bundles") / "dante")


@pytest.fixture(scope="session")
def dante_unfused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model, compiled without any rule."""
    out = tmp_path_factory.mktemp("bundles") / "dante-nofuse"
    return compile_model(resolve("dante"), Options(fuse=False), out)


def graphs_only(source: ModelSource, options: Options, out: Path) -> Bundle:
    """A bundle as the compiler makes it, but for NVRTC: its cubins are empty. What runs without a GPU is all there."""
    sources = emit_sources(source, options)
    nothing = KernelResources(0, 0, 0, 0)
    cubins: dict[str, Cubin] = {}
    for block in sources.blocks:
        names = [step.name for step in block.plan.steps if isinstance(step, KernelStep)]
        cubins[block.stem] = Cubin(b"", dict.fromkeys(names, nothing))
    files = texts(sources) | {f"{stem}.cubin": b"" for stem in cubins}
    return write_bundle(out, describe(sources, cubins), files)


@dataclass(frozen=True)
class Tiny:
    """An oracle case on disk: its checkpoint, and bundles of it without cubins."""

    case: OracleCase
    folder: Path
    bundles: Path

    def bundle(self, *, fuse: bool = True, dtype: str = "float32", max_batch_tokens: int = 4096) -> Bundle:
        """The bundle for these options, with empty cubins."""
        options = Options(dtype=dtype, fuse=fuse, max_batch_tokens=max_batch_tokens)
        out = self.bundles / f"{fuse}-{dtype}-{max_batch_tokens}"
        return graphs_only(resolve(str(self.folder)), options, out)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The oracle case of a name, its random checkpoint written once."""

    @cache
    def make(name: str) -> Tiny:
        found = case(name)
        folder = tmp_path_factory.mktemp(name)
        weights = random_weights(found.config)
        write_checkpoint(folder / "model", found.config, weights, dtype=found.dtype, shards=found.shards)
        return Tiny(found, folder / "model", folder / "bundles")

    return make


@dataclass(frozen=True)
class Outcome:
    """What a command line gave."""

    code: int
    out: str
    err: str


def in_shell(line: str, *args: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line of infernum, which is `"$@"` in a line of the shell, in a process of its own."""
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "infernum", *args],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), **environment},
    )


class _Stdin(io.TextIOWrapper):
    """Standard input that holds these bytes and is no terminal."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def infernum(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`infernum("run", "…", stdin=b"…")`: a command line run in this process."""
    from infernum.cli import run

    def invoke(*args: str | Path, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", _Stdin(stdin))
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return invoke


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Where there is none, its tests are skipped, but in CI they fail.

    Not for the whole session: while it is open an event loop runs in this thread, and no other can.
    """
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs Chromium and the package playwright")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()
