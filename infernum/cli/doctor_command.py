"""`infernum doctor`: checks the machine, and a bundle or model on it, and prints what mends each failed check."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from infernum.cli import options
from infernum.cli.folder_check import CheckResult

NVRTC_PIP = "pip install nvidia-cuda-nvrtc-cu12"
CUBLAS_PIP = "pip install nvidia-cublas-cu12 nvmath-python"


@click.command(
    "doctor", short_help="Check this machine, a bundle or a model, and show how to fix what is broken."
)
@click.argument("folder", required=False)
@options.as_json
@options.plugin
@options.verbose
def command(folder: str | None, as_json: bool) -> int:
    """Check driver, GPU, compiler and libraries, and show the command that fixes what is missing.

    FOLDER is a bundle or a model (also a preset). Of a bundle, files, edits, architecture and plugins are checked; of a
    model, its configuration, tokenizer and generation settings, the headers of its weights, and the memory it needs.

    The exit code is 1 when `infernum run` could not work.
    """
    from infernum.bundle import MANIFEST
    from infernum.cli.bundle_check import check_bundle
    from infernum.cli.console import print_json
    from infernum.cli.model_check import check_model
    from infernum.lab.measure.origin import versions

    results = [_run_check(*check) for check in CHECKS]
    passed = {result.what: result.ok for result in results}
    works = {
        "run without a GPU": passed["NumPy path"],
        "compile": passed["NVRTC"],
        "run on the GPU": passed["driver"] and passed["GPU"] and passed["cuBLAS"],
    }
    here = {"gpu_works": works["run on the GPU"], "numpy_works": works["run without a GPU"]}
    is_bundle = folder is not None and (Path(folder) / MANIFEST).exists()
    checked = None
    if folder is not None:
        checked = check_bundle(Path(folder), **here) if is_bundle else check_model(folder, **here)
    if as_json:
        findings = [result.as_json("works") for result in results]
        machine = {"findings": findings, "works": works, "versions": versions()}
        print_json(machine | ({"bundle" if is_bundle else "model": checked.as_json()} if checked else {}))
    else:
        _print(("Found", "What works"), results, works, versions())
        if checked:
            titles = (f"{checked.folder}: found", f"{checked.folder}: what works")
            _print(titles, checked.results, checked.works)
    return 0 if works["run without a GPU"] and (checked is None or checked.runs) else 1


def _print(
    titles: tuple[str, str],
    results: Sequence[CheckResult],
    works: Mapping[str, bool],
    packages: Mapping[str, str | None] | None = None,
) -> None:
    """Print a table of the results, a table of what works and one of the packages, and then what mends the rest."""
    from infernum.cli.console import print_table, say

    rows = [(_yes_or_no(result.ok), result.what, result.details) for result in results]
    print_table(titles[0], ("", "what", "details"), rows)
    if works:
        print_table(titles[1], ("", ""), [(use, _yes_or_no(ok)) for use, ok in works.items()])
    if packages is not None:
        print_table("Versions", ("package", "version"), list(packages.items()))
    for result in results:
        if result.mend:
            say(f"{result.what}: {result.mend}")


def _yes_or_no(ok: bool) -> str:
    return "yes" if ok else "no"


def _run_check(what: str, look: Callable[[], str], mend: str) -> CheckResult:
    """The result of one check. Any exception counts as a failed check: a broken installation may raise anything."""
    try:
        return CheckResult(what, True, look())
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return CheckResult(what, False, first_line, mend)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"


def _numpy_path() -> str:
    import numpy as np

    import infernum.cpu.executor as numpy_path
    from infernum.resources import demo_folder, templates_folder

    assert numpy_path.CpuExecutor
    return f"NumPy {np.__version__}; demo model in {demo_folder()}, templates in {templates_folder()}"


def _nvrtc() -> str:
    from infernum.codegen.nvrtc import nvrtc_version, supported_archs

    return f"{nvrtc_version()}, compiles for {', '.join(supported_archs())}; no CUDA headers are needed"


def _driver() -> str:
    from infernum.runtime.driver import describe

    return f"supports CUDA up to {describe().cuda_version}"


def _gpu() -> str:
    from infernum.machine import native_arch
    from infernum.runtime.driver import describe

    gpus = describe().gpus
    return "; ".join(
        f"{g.name}, {g.total_bytes / 2**30:.0f} GiB, compute capability {g.arch[0]}.{g.arch[1]}"
        f" ({native_arch(g.index)}), {g.sms} multiprocessors"
        for g in gpus
    )


def _cublas() -> str:
    """The version of cuBLASLt, through the same bindings as in the runtime."""
    from nvmath.bindings import cublasLt  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

    version = int(cublasLt.get_version())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return f"cuBLASLt {version // 10000}.{version // 100 % 100}.{version % 100}"


CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("Python", _python, ""),
    ("NumPy path", _numpy_path, "pip install --force-reinstall numpy ml_dtypes"),
    ("NVRTC", _nvrtc, NVRTC_PIP),
    (
        "driver",
        _driver,
        "install NVIDIA's driver, 525 or newer; a GPU is not needed to compile, nor to run in NumPy",
    ),
    ("GPU", _gpu, "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"),
    ("cuBLAS", _cublas, CUBLAS_PIP),
)
