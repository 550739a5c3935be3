"""CUDA to cubin: what comes out for every architecture, what is kept, and how failures read. Needs no GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infernum.cache import cache_folder, write_whole
from infernum.codegen import nvrtc
from infernum.codegen.cubin import Cubin, KernelResources, parse_resources
from infernum.codegen.nvrtc import (
    ARCHS,
    arch_name,
    compile_all,
    compile_cuda,
    nvrtc_version,
    parse_arch,
    supported_archs,
)
from infernum.errors import CompileError

ALL_ARCHS = supported_archs()

SCALE = """\
static __device__ float table[2] = {1.0f, 2.0f};

extern "C" __global__ void scale(float* out, const float* x, float by) {
    __shared__ float row[64];
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row[63 - threadIdx.x] / by + table[threadIdx.x & 1];
}

extern "C" __global__ void copy(float* out, const float* x) { out[threadIdx.x] = x[threadIdx.x]; }
"""

SPILL = """\
extern "C" __global__ void __launch_bounds__(1024) crowded(float* out, int stride) {
    float value[100];
#pragma unroll
    for (int i = 0; i < 100; i++) value[i] = out[i * stride];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 100; i++) out[i * stride] = value[i] * value[99 - i];
}
"""

CALLS_SPILL = SPILL.replace(
    'extern "C" __global__ void __launch_bounds__(1024) crowded', "static __device__ __noinline__ void helper"
) + (
    'extern "C" __global__ void __launch_bounds__(1024) outer(float* out, int stride) '
    "{ helper(out, stride); }\n"
)


def test_every_known_architecture_is_offered_by_this_nvrtc() -> None:
    assert list(ALL_ARCHS) == list(ARCHS)
    assert nvrtc_version().startswith(("12.", "13."))
    assert nvrtc_version().count(".") == 2


@pytest.mark.parametrize("arch", ALL_ARCHS)
def test_a_kernel_compiles_and_its_resources_are_known(arch: str) -> None:
    cubin = compile_cuda(SCALE, name="scale.cu", arch=arch, cache=None)
    assert cubin.data.startswith(b"\x7fELF")
    assert list(cubin.kernels) == ["copy", "scale"]
    assert 4 <= cubin.kernels["scale"].registers <= 32
    assert cubin.kernels["scale"].static_shared_bytes == 256
    assert cubin.kernels["copy"].static_shared_bytes == 0
    assert all(k.spill_bytes == 0 and k.stack_bytes == 0 for k in cubin.kernels.values())


@pytest.mark.parametrize(("source", "kernel"), [(SPILL, "crowded"), (CALLS_SPILL, "outer")])
def test_spilled_registers_are_reported_also_those_of_called_functions(source: str, kernel: str) -> None:
    found = compile_cuda(source, name="spill.cu", arch="sm_90a", cache=None).kernels[kernel]
    assert found.spill_bytes > 0
    assert found.stack_bytes > 0


def test_resources_are_read_from_the_log_of_every_ptxas() -> None:
    old = """
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 17 registers, 256+16 bytes smem, 400 bytes cmem[0]
"""
    assert parse_resources(old) == {"k": KernelResources(17, 16, 20, 256)}
    assert parse_resources("") == {}


PRINT_DIGEST = """\
import hashlib, sys
from infernum.codegen.nvrtc import compile_cuda
cubin = compile_cuda(sys.argv[1], name="scale.cu", arch="sm_90a", cache=None)
print(hashlib.sha256(cubin.data).hexdigest())
"""


def test_the_same_source_gives_the_same_bytes_in_any_process_and_folder(tmp_path: Path) -> None:
    root = str(Path(nvrtc.__file__).parents[2])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    digests = {
        subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST, SCALE],
            cwd=tmp_path / folder,
            env=os.environ | {"PYTHONPATH": root, "TMPDIR": str(tmp_path / folder)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for folder in ("one", "two")
    }
    assert len(digests) == 1


def test_the_cubin_names_the_source_file_but_no_folder_of_this_machine() -> None:
    data = compile_cuda(SCALE, name="scale.cu", arch="sm_90a", cache=None).data
    assert b"scale.cu" in data
    assert str(Path.cwd()).encode() not in data


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that NVRTC itself was asked to compile."""
    names: list[str] = []
    real = nvrtc._compile

    def counted(source: str, name: str, *more: Any) -> Any:
        names.append(name)
        return real(source, name, *more)

    monkeypatch.setattr(nvrtc, "_compile", counted)
    return names


def test_a_file_is_compiled_once_and_then_read_from_the_cache(
    tmp_path: Path, compilations: list[str]
) -> None:
    first = compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path)
    second = compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path)
    assert first == second
    assert compilations == ["scale.cu"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".cubin"]


def test_another_source_name_or_architecture_is_another_entry(
    tmp_path: Path, compilations: list[str]
) -> None:
    compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path)
    compile_cuda(SCALE, name="scale.cu", arch="sm_86", cache=tmp_path)
    compile_cuda(SCALE, name="other.cu", arch="sm_80", cache=tmp_path)
    compile_cuda(SCALE + "\n", name="scale.cu", arch="sm_80", cache=tmp_path)
    assert len(compilations) == 4


@pytest.mark.parametrize("damage", [b"", b"\n", b"\xff\xfe\n{}\n", b"0123"])
def test_a_damaged_cache_entry_is_compiled_again(
    tmp_path: Path, compilations: list[str], damage: bytes
) -> None:
    first = compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] if damage == b"0123" else damage)
    assert compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path) == first
    assert compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path) == first
    assert len(compilations) == 2


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cubin = compile_cuda(SCALE, name="scale.cu", arch="sm_80", cache=tmp_path / "file" / "cache")
    assert cubin.kernels
    assert "cannot be kept there" in caplog.text
    assert "INFERNUM_CACHE" in caplog.text


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNUM_CACHE", "/chosen")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/chosen")
    monkeypatch.delenv("INFERNUM_CACHE")
    assert cache_folder() == Path("/xdg/infernum")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "infernum"


def shared(folder: Path) -> Path:
    """A folder in which anyone may make files, as /tmp is."""
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a home: the folder for temporary files, which all users share."""

    def no_home(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INFERNUM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    monkeypatch.setattr(tempfile, "tempdir", str(shared(tmp_path / "tmp")))
    return tmp_path / "tmp"


def test_a_user_without_a_home_has_a_cache_that_nobody_else_can_read(homeless: Path) -> None:
    folder = cache_folder()
    assert folder == homeless / f"infernum-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


@pytest.mark.parametrize("made", ["another user's", "a link", "writable", "a file"])
def test_a_cache_that_others_can_write_to_is_not_used(
    homeless: Path, made: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    user = os.getuid() + (made == "another user's")
    monkeypatch.setattr(os, "getuid", lambda: user)
    planted = homeless / f"infernum-{user}"
    if made == "a link":
        (homeless / "elsewhere").mkdir()
        planted.symlink_to("elsewhere")
    elif made == "a file":
        planted.write_text("in the way")
    else:
        planted.mkdir()
        planted.chmod(0o777 if made == "writable" else 0o700)
    folder = cache_folder()
    assert folder != planted and folder.parent == homeless and folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder
    (line,) = caplog.messages
    assert str(planted) in line and "INFERNUM_CACHE" in line


@pytest.mark.parametrize("place", [".", "cache/below"])
def test_a_cache_folder_chosen_in_a_shared_one_is_looked_at_too(
    homeless: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(homeless / place))
    assert cache_folder() == homeless / place / "infernum"
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert not cache_folder().is_relative_to(homeless / place / "infernum")


def test_a_source_that_does_not_compile_is_kept_in_a_folder_of_its_own(homeless: Path) -> None:
    (homeless / "infernum").mkdir()
    with pytest.raises(CompileError) as error:
        compile_cuda("nonsense", name="broken.cu", arch="sm_80", cache=None)
    (source,) = homeless.rglob("broken.cu")
    assert str(source) in str(error.value)
    assert not source.is_relative_to(homeless / "infernum")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rename(source: Path, to: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.cubin", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cached", [True, False])
def test_a_compile_error_gives_the_line_the_log_and_the_kept_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = SCALE + "__global__ void broken() { undeclared = 1; }\n"
    with pytest.raises(CompileError, match=r"broken\.cu:11: error: .*undeclared") as error:
        compile_cuda(source, name="broken.cu", arch="sm_80", cache=tmp_path / "cache" if cached else None)
    (kept,) = tmp_path.rglob("broken.cu")
    assert kept.read_text() == source
    assert str(kept) in str(error.value)
    assert "sm_80" in str(error.value)
    assert "/infernum/" not in str(error.value).replace(str(kept), "")


def test_a_compilers_warning_is_logged_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    source = 'extern "C" __global__ void k(float* x) {\n    int unused = 1;\n    x[0] = 1;\n}\n'
    with caplog.at_level(logging.WARNING):
        compile_cuda(source, name="k.cu", arch="sm_80", cache=None)
    assert "k.cu:2: warning" in caplog.text


def test_a_function_without_annotation_is_refused_as_nvcc_would() -> None:
    source = 'int one() { return 1; }\nextern "C" __global__ void k(int* x) { x[0] = one(); }\n'
    with pytest.raises(CompileError, match=r"k\.cu:1: error"):
        compile_cuda(source, name="k.cu", arch="sm_80", cache=None)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    for unknown in ("sm_90", "sm_75", "90a", ""):
        with pytest.raises(CompileError, match="sm_80, sm_86, sm_89, sm_90a, sm_100a"):
            compile_cuda(SCALE, name="scale.cu", arch=unknown, cache=None)


def test_an_architecture_newer_than_nvrtc_is_refused_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvrtc, "supported_archs", lambda: ("sm_80", "sm_86"))
    with pytest.raises(CompileError, match=r"NVRTC 1\d\.\d+\.\d+ does not know sm_100a, only sm_80, sm_86"):
        compile_cuda(SCALE, name="scale.cu", arch="sm_100a", cache=None)


def test_architectures_are_spelled_and_read_both_ways() -> None:
    assert [parse_arch(name) for name in ARCHS] == [80, 86, 89, 90, 100]
    assert [arch_name(parse_arch(name)) for name in ARCHS] == list(ARCHS)
    with pytest.raises(CompileError, match="compute capability 75 is not supported; these are: 80, 86"):
        arch_name(75)


def test_many_files_compile_in_parallel_and_come_back_in_order(tmp_path: Path) -> None:
    sources = {f"file{i}.cu": SCALE.replace("scale", f"scale{i}") for i in range(5)}
    seen: list[str] = []
    done = compile_all(sources.items(), "sm_80", 2, lambda name, cubin: seen.append(name), cache=tmp_path)
    assert list(done) == list(sources)
    assert sorted(seen) == sorted(sources)
    assert done["file3.cu"] == compile_cuda(sources["file3.cu"], name="file3.cu", arch="sm_80", cache=None)
    assert compile_all([], "sm_80", cache=None) == {}


def test_the_first_file_is_compiled_while_the_next_one_is_still_made(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = threading.Event()

    def compile_at_once(source: str, *, name: str, arch: str, cache: Path | None) -> Cubin:
        compiled.set()
        return Cubin(source.encode(), {})

    def sources() -> Iterator[tuple[str, str]]:
        yield "b.cu", "b"
        assert compiled.wait(timeout=30)
        yield "a.cu", "a"

    monkeypatch.setattr(nvrtc, "compile_cuda", compile_at_once)
    assert list(compile_all(sources(), "sm_80", cache=None)) == ["b.cu", "a.cu"]


def test_one_file_that_fails_fails_them_all() -> None:
    sources = {"good.cu": SCALE, "bad.cu": "nonsense", "also_good.cu": SCALE}
    with pytest.raises(CompileError, match=r"bad\.cu:1: error"):
        compile_all(sources.items(), "sm_80", jobs=1, cache=None)


@pytest.mark.parametrize(
    ("failure", "mends"),
    [
        (ImportError("No module named 'cuda'"), "pip install cuda-bindings"),
        (RuntimeError("libnvrtc.so.12 not found"), "pip install nvidia-cuda-nvrtc-cu12"),
    ],
)
def test_without_nvrtc_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, mends: str
) -> None:
    def refuse(name: str) -> Any:
        raise failure

    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc.importlib, "import_module", refuse)
    with pytest.raises(CompileError, match=mends):
        nvrtc._call("nvrtcVersion")
    nvrtc._library.cache_clear()


def test_importing_the_module_does_not_load_cuda() -> None:
    code = (
        "import sys; before = set(sys.modules); import infernum.codegen.nvrtc; "
        "assert not [m for m in set(sys.modules) - before if m.startswith('cuda')]"
    )
    env = os.environ | {"PYTHONPATH": str(Path(nvrtc.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
