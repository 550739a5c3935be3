"""The devices of this machine, and the architecture to compile for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from infernum.errors import DeviceError, RequestError
from infernum.runtime import driver

if TYPE_CHECKING:
    from infernum.ir.kernel import Tuned

Device = Literal["cuda", "cpu"]

DEVICES = ("auto", "cuda", "cpu")
DEFAULT_ARCH = "sm_90a"
"""The architecture to compile for on a machine without a GPU."""


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
    """The newest architecture whose cubins run on GPU `index`. Raises DeviceError when NVRTC supports none.

    Cubins of a plain architecture run on later GPUs of the same major version. Cubins of an architecture whose name
    ends in `a` run on that architecture only (CUDA programming guide, binary compatibility).
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
    """The architecture of GPU 0; `DEFAULT_ARCH` without a GPU."""
    return native_arch() if driver.gpu_available() else DEFAULT_ARCH


def tuned_here(model: str, arch: str) -> dict[str, Tuned]:
    """The parameters that `infernum tune` chose on GPU 0 for a model, given by the hash of its config.

    Empty without a GPU, and when `arch` is not the architecture of GPU 0.
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
