"""Compiled kernels on the GPU: a cubin loaded as a module, and the handles of its kernels."""

from __future__ import annotations

from typing import Any

from infernum.errors import BundleError
from infernum.runtime.driver import GpuFacts, checked


class Module:
    """A loaded cubin."""

    def __init__(self, api: Any, image: bytes, where: str, gpu: GpuFacts) -> None:
        self._api = api
        self._gpu = gpu
        self.where = where
        self._handle: Any = checked(api.cuModuleLoadData(image), f"{where}: loading on {gpu.name}")
        self._kernels: dict[str, Any] = {}
        self._set_already: dict[tuple[str, str], int] = {}

    def kernel(self, name: str, shared_bytes: int) -> Any:
        """The handle of kernel `name`, allowed to use at least `shared_bytes` of dynamic shared memory.

        Raises BundleError when the GPU's limit is smaller, DeviceError when the module has no such kernel.
        """
        handle = self._kernels.get(name)
        if handle is None:
            handle = self._kernels[name] = checked(
                self._api.cuModuleGetFunction(self._handle, name.encode()), f"{self.where}: kernel {name}"
            )
        # An SM changes its split into L1 and shared memory only while it is idle. With the same split for all kernels,
        # a kernel can start on an SM where another still runs.
        self._set(name, "PREFERRED_SHARED_MEMORY_CARVEOUT", 100)
        if shared_bytes > self._gpu.shared_optin:
            raise BundleError(
                f"{self.where}: kernel {name} needs {shared_bytes} bytes of shared memory a block,"
                f" {self._gpu.name} has {self._gpu.shared_optin}; run `infernum compile … --arch native`"
            )
        # Without this attribute a block may use at most 48 KiB of static and dynamic shared memory together.
        self._set(name, "MAX_DYNAMIC_SHARED_SIZE_BYTES", shared_bytes)
        return handle

    def _set(self, name: str, attribute: str, value: int) -> None:
        """Raise an attribute of a kernel to `value`, never lower it: the launches of all layers share the kernel."""
        if value <= self._set_already.get((name, attribute), 0):
            return
        which = getattr(self._api.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{attribute}")
        result = self._api.cuFuncSetAttribute(self._kernels[name], which, value)
        checked(result, f"{self.where}: setting {attribute} of kernel {name} to {value}")
        self._set_already[name, attribute] = value

    def close(self) -> None:
        if self._handle is not None:
            checked(self._api.cuModuleUnload(self._handle), f"{self.where}: unloading")
            self._handle = None
