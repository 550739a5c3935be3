"""The origin of a measurement: date, GPU, versions and commit, with which the result of every benchmark begins."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from infernum import __version__
from infernum.machine import Device
from infernum.runtime.driver import describe

PACKAGES = (
    "numpy",
    "ml_dtypes",
    "cuda-bindings",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
    "nvidia-cublas-cu12",
    "nvidia-cublas",
    "nvmath-python",
    "tokenizers",
)
"""Distributions whose versions a benchmark or a bug report names; some exclude each other."""


def origin(nvrtc: str | None, device: Device = "cuda") -> dict[str, Any]:
    """Date, GPU, driver, versions and commit; `nvrtc`: the version that compiled the bundle. Raises DeviceError.

    On the CPU, its name stands in place of the GPU's, and there is no driver.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **(_gpu() if device == "cuda" else {"gpu": cpu_name(), "driver": None}),
        "versions": versions() | {"nvrtc": nvrtc},
        "commit": _commit(),
    }


def cpu_name() -> str:
    """The processor's name, as Linux gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> dict[str, str]:
    facts = describe()
    driver = _driver_version() or f"CUDA {facts.cuda_version}"
    return {"gpu": facts.gpus[0].name, "driver": driver}


def versions() -> dict[str, str]:
    """Versions of Python, Infernum and those of PACKAGES that are installed."""
    by_name = {"python": platform.python_version(), "infernum": __version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            by_name[name] = importlib.metadata.version(name)
    return by_name


def _driver_version() -> str | None:
    """The version of the kernel driver, from /proc."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def _commit() -> str | None:
    """The commit of the checkout, with "-dirty" where files differ; None where the package is no checkout."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        git = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None
