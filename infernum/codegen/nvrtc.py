"""CUDA source to cubin through NVRTC, which needs no GPU: for any known architecture, on any machine.

The same source gives the same bytes: the line table (`-lineinfo`) names files as /infernum/<name>, because
NVRTC puts the current folder in front of a relative name. There is no fast math; divisions and square roots
are exact. Functions are not `__device__` by default, so that nvcc compiles what is emitted just as well.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from infernum import logs
from infernum.cache import private_folder, write_whole
from infernum.codegen.cubin import Cubin, KernelResources, load, parse_resources, store
from infernum.errors import CompileError

__all__ = [
    "Cubin",
    "KernelResources",
    "arch_name",
    "compile_all",
    "compile_cuda",
    "nvrtc_version",
    "parse_arch",
    "supported_archs",
]

log = logging.getLogger(__name__)
cache_log = logs.channel("cache")

ARCHS = {"sm_80": 80, "sm_86": 86, "sm_89": 89, "sm_90a": 90, "sm_100a": 100}
"""Architectures that can be compiled for, and their compute capabilities as ints."""

_FOLDER = "/infernum/"
_INSTALL = "pip install nvidia-cuda-nvrtc-cu12 (with a CUDA 13 driver: nvidia-cuda-nvrtc)"


def parse_arch(name: str) -> int:
    """The compute capability of an architecture: 90 for "sm_90a". Raises CompileError for unknown ones."""
    if name not in ARCHS:
        raise CompileError(f"unknown architecture {name!r}; use one of {', '.join(ARCHS)}")
    return ARCHS[name]


def arch_name(capability: int) -> str:
    """The architecture of a compute capability: "sm_90a" for 90. Raises CompileError for unknown ones."""
    name = next((name for name, known in ARCHS.items() if known == capability), None)
    if name is None:
        known = ", ".join(map(str, ARCHS.values()))
        raise CompileError(f"compute capability {capability} is not supported; these are: {known}")
    return name


@lru_cache
def supported_archs() -> tuple[str, ...]:
    """The architectures that the NVRTC at hand knows, oldest first. Raises CompileError without NVRTC."""
    known: list[int] = _call("nvrtcGetSupportedArchs")
    return tuple(name for name, capability in ARCHS.items() if capability in known)


@lru_cache
def nvrtc_version() -> str:
    """The version of the NVRTC at hand to the last digit, as in "12.9.86". Raises CompileError without NVRTC.

    NVRTC itself only says 12.9; the patch is in the head of the PTX that it writes.
    """
    oldest = min(_call("nvrtcGetSupportedArchs"))
    program = _call("nvrtcCreateProgram", b"", b"version.cu", 0, [], [])
    try:
        _call("nvrtcCompileProgram", program, 1, [f"--gpu-architecture=compute_{oldest}".encode()])
        full = re.search(r"release [\d.]+, V([\d.]+)", _text("PTX", program))
    finally:
        _call("nvrtcDestroyProgram", program)
    assert full, "PTX written by NVRTC names the version of its compiler"
    return full[1]


def compile_cuda(source: str, *, name: str, arch: str, cache: Path | None, path: Path | None = None) -> Cubin:
    """Compile the self-contained CUDA source of the file `name` for `arch`.

    A cubin kept in the folder `cache` (see `infernum.cache.cache_folder`) is reused if source, name,
    options and NVRTC are the same; None keeps nothing. `path` is where the source lies, if it is a file that
    a person edits. Raises CompileError with NVRTC's log, its lines at `path` or where the source was kept.
    """
    parse_arch(arch)
    if arch not in supported_archs():
        raise CompileError(
            f"{name}: NVRTC {nvrtc_version()} does not know {arch}, only {', '.join(supported_archs())};"
            " install a newer one"
        )
    key = hashlib.sha256(json.dumps([nvrtc_version(), *_options(arch), name, source]).encode()).hexdigest()
    cached = load(cache, key) if cache else None
    if cached is not None:
        cache_log.info("%s hit %s", name, key[:16])
        return cached
    begin = time.perf_counter()
    cubin = _compile(source, name, arch, cache, path)
    cache_log.info("%s miss, compiled in %.2f s", name, time.perf_counter() - begin)
    if cache:
        store(cache, key, cubin)
    return cubin


def compile_all(
    sources: Iterable[tuple[str, str]],
    arch: str,
    jobs: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    *,
    cache: Path | None,
) -> dict[str, Cubin]:
    """Compile files, name and text each, `jobs` at a time (by default one per CPU), and return them in the same order.

    The first files are compiled while `sources` still makes others. `progress` is called in this thread as each file is
    done, once all have been made, with its name and the seconds it took. Raises the CompileError of the first file that
    fails; files not yet begun are left out.
    """
    nvrtc_version()  # loads the library before the threads that share it start
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:  # NVRTC compiles without holding the GIL
        futures: dict[Future[tuple[Cubin, float]], str] = {}
        done: dict[str, Cubin] = {}
        try:
            for name, text in sources:
                futures[pool.submit(_timed, text, name=name, arch=arch, cache=cache)] = name
            for future in as_completed(futures):
                name = futures[future]
                done[name], seconds = future.result()
                if progress:
                    progress(name, seconds)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: done[name] for name in futures.values()}


def _timed(source: str, *, name: str, arch: str, cache: Path | None) -> tuple[Cubin, float]:
    begin = time.perf_counter()
    return compile_cuda(source, name=name, arch=arch, cache=cache), time.perf_counter() - begin


def _options(arch: str) -> tuple[str, ...]:
    # --no-cache: where there is a driver, NVRTC would take a cubin from its cache and leave ptxas's report out.
    return (f"--gpu-architecture={arch}", "--std=c++17", "-lineinfo", "--no-cache", "--ptxas-options=-v")


def _compile(source: str, name: str, arch: str, cache: Path | None, path: Path | None) -> Cubin:
    assert "/" not in name, f"{name} is the name of a file in a bundle"
    options = [option.encode() for option in _options(arch)]
    program = _call("nvrtcCreateProgram", source.encode(), f"{_FOLDER}{name}".encode(), 0, [], [])
    try:
        (status,) = _library().nvrtcCompileProgram(program, len(options), options)
        messages = _readable(_text("ProgramLog", program), name, path)
        if status != 0:
            where = "" if path else f" (source kept as {_keep(source, name, cache)})"
            raise CompileError(f"{path or name} does not compile for {arch}{where}:\n{messages}")
        data = _bytes("CUBIN", program)
    finally:
        _call("nvrtcDestroyProgram", program)
    remarks = [line for line in messages.splitlines() if line.strip() and not line.startswith("ptxas ")]
    if remarks:
        log.warning("\n".join(remarks))
    return Cubin(data, parse_resources(messages))


def _readable(messages: str, name: str, path: Path | None = None) -> str:
    """NVRTC's log with `name:line`, or `path:line`, for `/infernum/name(line)`."""
    at_line = rf"(?:{re.escape(_FOLDER)})?\b{re.escape(name)}\((\d+)\)"
    return re.sub(at_line, lambda match: f"{path or name}:{match[1]}", messages).replace(_FOLDER, "").strip()


def _keep(source: str, name: str, cache: Path | None) -> Path:
    """Write a source that does not compile where it can be read: to the cache, or to a new folder."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    for folder in (lambda: cache, private_folder):
        with suppress(OSError):
            if (place := folder()) is not None:
                path = place / "failed" / digest / name
                write_whole(path, source.encode())
                return path
    return Path(name)


@lru_cache
def _library() -> Any:
    """cuda.bindings.nvrtc, with the library loaded. Raises CompileError saying what to install."""
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except ImportError as error:
        raise CompileError(
            f"CUDA is compiled through cuda-python: pip install cuda-bindings ({error})"
        ) from error
    except (RuntimeError, OSError) as error:
        raise CompileError(f"NVRTC cannot be loaded: {_INSTALL}") from error
    return nvrtc


def _call(function: str, *arguments: Any) -> Any:
    """Call a function of NVRTC and return its result. Raises CompileError when it fails."""
    nvrtc = _library()
    status, *results = getattr(nvrtc, function)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{function} failed: {status.name}")
    return results[0] if results else None


def _bytes(what: str, program: Any) -> bytes:
    buffer = bytearray(_call(f"nvrtcGet{what}Size", program))
    _call(f"nvrtcGet{what}", program, buffer)
    return bytes(buffer)


def _text(what: str, program: Any) -> str:
    return _bytes(what, program).rstrip(b"\0").decode(errors="replace")
