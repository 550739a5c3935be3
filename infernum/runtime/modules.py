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

    def kernel(self, name: str, shared_bytes: int, *, clustered: bool = False) -> Any:
        """The handle of kernel `name`, allowed to use at least `shared_bytes` of dynamic shared memory.

        `clustered`: it may be launched in clusters of up to 16 blocks, where the GPU has such; all have 8.

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
        attributes = self._api.CUfunction_attribute
        # An SM divides its memory anew only when it is empty: one division for all lets kernels follow without that.
        most = attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        checked(self._api.cuFuncSetAttribute(handle, most, 100), f"{self.where}: dividing memory for {name}")
        if clustered:
            which = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            checked(
                self._api.cuFuncSetAttribute(handle, which, 1),
                f"{self.where}: allowing kernel {name} large clusters",
            )
        return handle

    def close(self) -> None:
        if self._handle is not None:
            checked(self._api.cuModuleUnload(self._handle), f"{self.where}: unloading")
            self._handle = None
