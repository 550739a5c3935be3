"""`infernum doctor`: what this machine has, what works on it, and what mends the rest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infernum.cli import options

if TYPE_CHECKING:
    from infernum.cli.folder_check import FolderCheck

NVRTC_PIP = "pip install nvidia-cuda-nvrtc-cu12"
CUBLAS_PIP = "pip install nvidia-cublas-cu12 nvmath-python"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: whether it was found, what was found, and what to do when it was not."""

    what: str
    works: bool
    found: str
    mend: str = ""


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

    findings = [_check(*check) for check in CHECKS]
    works = {
        "run without a GPU": _all(findings, "NumPy path"),
        "compile": _all(findings, "NVRTC"),
        "run on the GPU": _all(findings, "driver", "GPU", "cuBLAS"),
    }
    here = {"gpu_works": works["run on the GPU"], "numpy_works": works["run without a GPU"]}
    is_bundle = folder is not None and (Path(folder) / MANIFEST).exists()
    checked = None
    if folder is not None:
        checked = check_bundle(Path(folder), **here) if is_bundle else check_model(folder, **here)
    if as_json:
        found = {"findings": [asdict(f) for f in findings], "works": works, "versions": versions()}
        print_json(found | ({"bundle" if is_bundle else "model": checked.as_json()} if checked else {}))
    else:
        _print(findings, works)
        if checked:
            _print_folder(checked)
    return 0 if works["run without a GPU"] and (checked is None or checked.runs) else 1


def _print_folder(checked: FolderCheck) -> None:
    from infernum.cli.console import print_table, say

    rows = [("yes" if look.fine else "no", look.what, look.found) for look in checked.looks]
    print_table(f"{checked.folder}: found", ("", "what", "details"), rows)
    if checked.works:
        works = [(what, "yes" if ok else "no") for what, ok in checked.works.items()]
        print_table(f"{checked.folder}: what works", ("", ""), works)
    for look in checked.looks:
        if look.mend:
            say(f"{look.what}: {look.mend}")


def _print(findings: list[Finding], works: dict[str, bool]) -> None:
    from infernum.cli.console import print_table, say
    from infernum.lab.measure.origin import versions

    rows = [("yes" if f.works else "no", f.what, f.found) for f in findings]
    print_table("Found", ("", "what", "details"), rows)
    print_table("What works", ("", ""), [(what, "yes" if ok else "no") for what, ok in works.items()])
    print_table("Versions", ("package", "version"), list(versions().items()))
    for finding in findings:
        if not finding.works and finding.mend:
            say(f"{finding.what}: {finding.mend}")


def _all(findings: list[Finding], *names: str) -> bool:
    return all(f.works for f in findings if f.what in names)


def _check(what: str, look: Callable[[], str], mend: str) -> Finding:
    """Anything may go wrong in a broken installation, so that whatever is raised is a finding."""
    try:
        return Finding(what, True, look())
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(what, False, first_line, mend)


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
    """The version that cuBLASLt reports of itself, through the bindings that the runtime uses."""
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
