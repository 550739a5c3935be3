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
        # An SM divides its memory into L1 and shared memory anew only when it is empty: where all kernels ask for the
        # same division, one may start beside another.
        self._set(name, "PREFERRED_SHARED_MEMORY_CARVEOUT", 100)
        if shared_bytes > self._gpu.shared_optin:
            raise BundleError(
                f"{self.where}: kernel {name} needs {shared_bytes} bytes of shared memory a block,"
                f" {self._gpu.name} has {self._gpu.shared_optin}; run `infernum compile … --arch native`"
            )
        # Without asking, static and dynamic may have 48 KiB together.
        self._set(name, "MAX_DYNAMIC_SHARED_SIZE_BYTES", shared_bytes)
        return handle

    def _set(self, name: str, attribute: str, value: int) -> None:
        """Raise an attribute of a kernel to `value`, unless it has that much: launches of all layers share a kernel."""
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
