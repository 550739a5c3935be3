"""Compiled kernels on the GPU: a cubin loaded as a module, and the kernels found in it."""

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
        self._shared: dict[str, int] = {}

    def kernel(self, name: str, shared_bytes: int) -> Any:
        """The handle of kernel `name`, allowed to use at least `shared_bytes` of dynamic shared memory.

        Raises BundleError when the GPU's limit is smaller, DeviceError when the module has no such kernel.
        """
        handle = checked(
            self._api.cuModuleGetFunction(self._handle, name.encode()), f"{self.where}: kernel {name}"
        )
        if shared_bytes > self._shared.get(
            name, 0
        ):  # without asking, static and dynamic may have 48 KiB together
            if shared_bytes > self._gpu.shared_optin:
                raise BundleError(
                    f"{self.where}: kernel {name} needs {shared_bytes} bytes of shared memory a block,"
                    f" {self._gpu.name} has {self._gpu.shared_optin}; run `infernum compile … --arch native`"
                )
            which = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            checked(
                self._api.cuFuncSetAttribute(handle, which, shared_bytes),
                f"{self.where}: giving kernel {name} {shared_bytes} bytes of shared memory",
            )
            self._shared[name] = shared_bytes
        return handle

    def close(self) -> None:
        if self._handle is not None:
            checked(self._api.cuModuleUnload(self._handle), f"{self.where}: unloading")
            self._handle = None
