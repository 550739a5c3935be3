"""Access to the CUDA driver: loads the bindings on first use, checks return codes, lists the GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from infernum.errors import DeviceError

_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_INVALID_DEVICE = 101
_HINTS: dict[int, str] = {
    _OUT_OF_MEMORY: "the GPU is out of memory",
    _NO_DEVICE: "no CUDA-capable GPU is visible; check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
    _INVALID_DEVICE: "there is no GPU of this index",
    200: "the cubin is damaged; compile the bundle again",
    209: "the cubin was not compiled for this GPU; run `infernum compile … --arch native`",
    700: "a kernel read or wrote an illegal address; the GPU context is lost, start again",
    715: "a kernel ran an illegal instruction; the GPU context is lost, start again",
    716: "a kernel read or wrote a misaligned address; the GPU context is lost, start again",
    719: "a kernel failed while running; the GPU context is lost, start again",
    803: "the driver's kernel module and its library differ in version; reboot the machine",
}


@cache
def bindings() -> Any:
    """The module `cuda.bindings.driver`, with the driver initialised.

    Raises DeviceError when the Python package, the driver or a GPU is missing.
    """
    try:
        api: Any = import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError(f"cuda-python is not installed ({error}); run `pip install cuda-python`") from error
    try:
        result = api.cuInit(0)
    except Exception as error:  # the bindings' own "library not found", whose type differs between versions
        raise DeviceError("no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)") from error
    checked(result, "starting the CUDA driver")
    return api


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """The results of a driver call without its return code: None, one value, or a tuple of several.

    `doing` names the call in errors, such as "copying to the GPU". Raises DeviceError for any code but success.
    """
    if result[0] != 0:
        raise _failure(result[0], doing)
    match len(result):
        case 1:
            return None
        case 2:
            return result[1]
        case _:
            return result[1:]


def is_out_of_memory(error: DeviceError) -> bool:
    """True when `error` says that the GPU is out of memory."""
    return _HINTS[_OUT_OF_MEMORY] in str(error)


def _failure(code: Any, doing: str) -> DeviceError:
    name = getattr(code, "name", str(code))
    hint = _HINTS.get(int(code))
    return DeviceError(f"{doing}: {hint} ({name})" if hint else f"{doing} failed: {name}")


@dataclass(frozen=True)
class GpuFacts:
    """One GPU: compute capability (`arch`), SMs, largest shared memory of a block, and bytes of memory."""

    index: int
    name: str
    arch: tuple[int, int]
    sms: int
    shared_optin: int
    total_bytes: int


@dataclass(frozen=True)
class DriverFacts:
    """The newest CUDA version that the driver supports, such as "13.0", and the visible GPUs."""

    cuda_version: str
    gpus: tuple[GpuFacts, ...]


def load_kernels_at_once() -> None:
    """Have kernels loaded along with their module or library, not when they are first launched.

    The driver may load a kernel only while the GPU is idle, which it is not while a kernel waits for another GPU's.
    Raises DeviceError where the driver has been started otherwise in this process.
    """
    if bindings.cache_info().currsize == 0:
        os.environ["CUDA_MODULE_LOADING"] = "EAGER"
    api = bindings()
    mode = checked(api.cuModuleGetLoadingMode(), "asking how kernels are loaded")
    if mode != api.CUmoduleLoadingMode.CU_MODULE_EAGER_LOADING:
        raise DeviceError(
            "several GPUs: CUDA has been started in this process and loads kernels when they are first launched; set"
            " CUDA_MODULE_LOADING=EAGER in the environment"
        )


def gpu_count() -> int:
    """Number of visible GPUs. Raises DeviceError when there is no driver."""
    return checked(bindings().cuDeviceGetCount(), "counting GPUs")


def gpu_available() -> bool:
    """True when a driver is installed and sees at least one GPU."""
    try:
        return gpu_count() > 0
    except DeviceError:
        return False


def describe() -> DriverFacts:
    """The driver and its GPUs, without opening any. Raises DeviceError when there is no driver or no GPU."""
    api = bindings()
    version: int = checked(api.cuDriverGetVersion(), "asking for the driver's version")
    gpus = tuple(gpu_facts(index) for index in range(gpu_count()))
    return DriverFacts(f"{version // 1000}.{version % 1000 // 10}", gpus)


def gpu_facts(index: int) -> GpuFacts:
    """The facts of GPU `index`, counted among the visible GPUs. Raises DeviceError when there is no such GPU."""
    api = bindings()
    handle = checked(api.cuDeviceGet(index), f"GPU {index}")

    def attribute(name: str) -> int:
        which = getattr(api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return checked(api.cuDeviceGetAttribute(which, handle), f"GPU {index}: asking for {name}")

    raw_name: bytes = checked(api.cuDeviceGetName(256, handle), f"GPU {index}: asking for its name")
    return GpuFacts(
        index=index,
        name=raw_name.split(b"\0")[0].decode(errors="replace"),
        arch=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        sms=attribute("MULTIPROCESSOR_COUNT"),
        shared_optin=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        total_bytes=checked(api.cuDeviceTotalMem(handle), f"GPU {index}: asking for its memory"),
    )
