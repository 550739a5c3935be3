"""One open GPU: its context, memory, streams, events and modules."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infernum.errors import DeviceError
from infernum.runtime.driver import GpuFacts, bindings, checked, gpu_facts, is_out_of_memory
from infernum.runtime.modules import Module
from infernum.runtime.stream import CudaEvent, Stream

GIB = 2**30

_PEER_ACCESS_ALREADY_ENABLED = 704  # CUresult


@dataclass
class DeviceMemory:
    """`nbytes` of GPU memory at `address`, aligned to at least 256 bytes; freed by `free`, once."""

    address: int
    nbytes: int
    _api: Any = field(repr=False)

    def free(self) -> None:
        if self.address:
            checked(self._api.cuMemFree(self.address), "freeing GPU memory")
            self.address = 0


@dataclass
class PinnedMemory:
    """`nbytes` of page-locked host memory at `address`. Arrays made from it must not be used after `free`."""

    address: int
    nbytes: int
    _api: Any = field(repr=False)

    def array(self, dtype: np.dtype[Any], count: int, offset: int = 0) -> np.ndarray:
        """A flat NumPy array of `count` elements over this memory, starting `offset` bytes into it."""
        assert self.address and offset + count * dtype.itemsize <= self.nbytes, (
            "array outside of pinned memory"
        )
        raw = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(self.address + offset)
        return np.frombuffer(memoryview(raw), dtype)

    def free(self) -> None:
        if self.address:
            checked(self._api.cuMemFreeHost(self.address), "freeing pinned memory")
            self.address = 0


class Device:
    """An open GPU. Its primary context is shared with all other code of this process that uses the GPU."""

    def __init__(self, api: Any, facts: GpuFacts, handle: Any, context: Any) -> None:
        self.facts = facts
        self._api = api
        self._handle = handle
        self._context: Any = context

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """Open GPU `index`, counted among the visible GPUs. Raises DeviceError when there is no such GPU."""
        api = bindings()
        facts = gpu_facts(index)
        handle = checked(api.cuDeviceGet(index), f"GPU {index}")
        context = checked(api.cuDevicePrimaryCtxRetain(handle), f"opening {facts.name}")
        device = cls(api, facts, handle, context)
        try:
            device.activate()
        except DeviceError:
            with suppress(DeviceError):  # the first error is the one to report
                device.close()
            raise
        return device

    def activate(self) -> None:
        """Make this GPU the current GPU of the calling thread. Cheap enough to call for every step."""
        checked(self._api.cuCtxSetCurrent(self._context), "switching to a GPU")

    def retained(self) -> Device:
        """Another handle of the same open GPU, to be closed by itself."""
        context = checked(self._api.cuDevicePrimaryCtxRetain(self._handle), f"opening {self.facts.name}")
        return Device(self._api, self.facts, self._handle, context)

    def reach(self, other: Device) -> None:
        """Let kernels on this GPU read and write the memory of another. Raises DeviceError where they cannot."""
        if other.facts.index == self.facts.index:
            return
        self.activate()
        pair = f"GPU {self.facts.index} and GPU {other.facts.index}"
        if not checked(self._api.cuDeviceCanAccessPeer(self._handle, other._handle), pair):
            raise DeviceError(f"{pair} cannot reach each other's memory; see `nvidia-smi topo -p2p w`")
        result = self._api.cuCtxEnablePeerAccess(other._context, 0)
        if int(result[0]) != _PEER_ACCESS_ALREADY_ENABLED:
            checked(result, f"letting {pair} reach each other's memory")

    def write(self, address: int, values: np.ndarray[Any, Any]) -> None:
        """Copy an array into GPU memory; returns once it is there."""
        data = np.ascontiguousarray(values)
        checked(self._api.cuMemcpyHtoD(address, data.ctypes.data, data.nbytes), "copying to the GPU")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of GPU memory now."""
        free, total = checked(self._api.cuMemGetInfo(), "asking for free GPU memory")
        return free, total

    def alloc(self, nbytes: int, what: str) -> DeviceMemory:
        """Allocate GPU memory; `what` is its purpose, for errors. Raises DeviceError when it does not fit."""
        try:
            address = int(checked(self._api.cuMemAlloc(max(nbytes, 1)), what))
        except DeviceError as error:
            if not is_out_of_memory(error):
                raise
            free, total = self.memory()
            raise DeviceError(
                f"{what}: {nbytes / GIB:.2f} GiB do not fit: {free / GIB:.2f} of {total / GIB:.2f} GiB"
                f" are free on {self.facts.name}; free some, or take a smaller model or --max-model-len"
            ) from error
        return DeviceMemory(address, nbytes, self._api)

    def alloc_pinned(self, nbytes: int) -> PinnedMemory:
        """Allocate page-locked host memory. Raises DeviceError when the system refuses."""
        address = checked(
            self._api.cuMemHostAlloc(max(nbytes, 1), 0), f"pinning {nbytes} bytes of host memory"
        )
        return PinnedMemory(int(address), nbytes, self._api)

    def stream(self) -> Stream:
        """A new stream, independent of the default one."""
        flag = int(self._api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return Stream(self._api, checked(self._api.cuStreamCreate(flag), "creating a stream"))

    def event(self, *, timing: bool = False) -> CudaEvent:
        """A new event. Only events created with `timing` measure time."""
        flags = self._api.CUevent_flags
        flag = int(flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING)
        return CudaEvent(self._api, checked(self._api.cuEventCreate(flag), "creating an event"))

    def load_module(self, image: bytes, where: str) -> Module:
        """Load a cubin; `where` is its file, for errors. Raises DeviceError when it does not suit the GPU."""
        return Module(self._api, image, where, self.facts)

    def synchronize(self) -> None:
        """Wait until all work queued on this GPU is done."""
        checked(self._api.cuCtxSynchronize(), "waiting for the GPU")

    def close(self) -> None:
        """Release the context. Memory, streams and modules must have been freed before."""
        if self._context is not None:
            self._context = None
            checked(self._api.cuDevicePrimaryCtxRelease(self._handle), f"closing {self.facts.name}")
