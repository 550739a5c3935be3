"""What this machine can run a model on, and what it would be compiled for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from infernum.errors import DeviceError, RequestError
from infernum.runtime import driver

if TYPE_CHECKING:
    from infernum.ir.kernel import Tuned

Device = Literal["cuda", "cpu"]

DEVICES = ("auto", "cuda", "cpu")
DEFAULT_ARCH = "sm_90a"
"""What is compiled for where there is no GPU to ask."""


def choose_device(device: str) -> Device:
    """The device that "auto", "cuda" or "cpu" stands for here. Raises DeviceError when there is no GPU for "cuda"."""
    match device:
        case "cpu":
            return "cpu"
        case "auto":
            return "cuda" if driver.gpu_available() else "cpu"
        case "cuda":
            try:
                driver.describe()
            except DeviceError as error:
                raise DeviceError(
                    f"--device cuda: {error}; see `infernum doctor`, or use --device cpu"
                ) from error
            return "cuda"
        case _:
            raise RequestError(f"unknown device {device!r}; use one of {', '.join(DEVICES)}")


def native_arch(index: int = 0) -> str:
    """The architecture to compile for so that it runs on GPU `index`, the newest that does. Raises DeviceError.

    A cubin of a plain architecture runs on later GPUs of the same major version; one whose name ends in `a` only on
    its own (CUDA programming guide, binary compatibility).
    """
    from infernum.codegen.nvrtc import supported_archs

    facts = driver.gpu_facts(index)
    capability = facts.arch[0] * 10 + facts.arch[1]
    runs = [name for name in supported_archs() if _runs_on(name, capability)]
    if not runs:
        raise DeviceError(
            f"{facts.name} (compute capability {facts.arch[0]}.{facts.arch[1]}) is not supported;"
            f" these are: {', '.join(supported_archs())}"
        )
    return runs[-1]


def default_arch() -> str:
    """The architecture of the GPU at hand, else `DEFAULT_ARCH`."""
    return native_arch() if driver.gpu_available() else DEFAULT_ARCH


def tuned_here(model: str, arch: str) -> dict[str, Tuned]:
    """What `infernum tune` found for a model, by the hash of its config, on the GPU at hand.

    Nothing without a GPU, or when `arch` is not what is compiled for it.
    """
    from infernum.codegen.tuned import load_tuned

    if not driver.gpu_available() or native_arch() != arch:
        return {}
    return load_tuned(driver.gpu_facts(0).name, model)


def _runs_on(arch: str, capability: int) -> bool:
    compiled_for = int(arch.removeprefix("sm_").rstrip("a"))
    if arch.endswith("a"):
        return compiled_for == capability
    return compiled_for // 10 == capability // 10 and compiled_for <= capability
