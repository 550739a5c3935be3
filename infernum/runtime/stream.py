"""Work queued on the GPU in order: copies, kernel launches, events, and captured graphs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from infernum.errors import DeviceError
from infernum.runtime.driver import checked

_NOT_READY = 600  # CUresult


class CudaEvent:
    """A mark in a stream. The host, or another stream, can wait until the GPU has passed the mark."""

    def __init__(self, api: Any, handle: Any) -> None:
        self._api = api
        self.handle: Any = handle

    def wait(self) -> None:
        """Block the host until the GPU has passed the mark. A mark that was never recorded counts as passed."""
        checked(self._api.cuEventSynchronize(self.handle), "waiting for the GPU")

    def passed(self) -> bool:
        """True when the GPU has passed the mark; does not wait."""
        result = self._api.cuEventQuery(self.handle)
        if int(result[0]) == _NOT_READY:
            return False
        checked(result, "asking for an event")
        return True

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        """Time between two marks. Both events were created with `timing`, and the GPU has passed both."""
        return checked(self._api.cuEventElapsedTime(earlier.handle, self.handle), "reading a timer")

    def close(self) -> None:
        if self.handle is not None:
            checked(self._api.cuEventDestroy(self.handle), "destroying an event")
            self.handle = None


class LaunchConfig:
    """Grid, block and dynamic shared memory of a launch on one stream; the grid may change between launches.

    clustered  neighbouring blocks along z form clusters, whose size is set with the grid
    empty      True while the grid has no blocks. Such a launch must be skipped, since CUDA rejects it
    """

    def __init__(
        self,
        api: Any,
        stream: Any,
        block: tuple[int, int, int],
        shared_bytes: int,
        programmatic: bool,
        clustered: bool,
    ) -> None:
        self.empty = True
        self._cluster: Any = None
        self._cluster_blocks = 0
        self.raw: Any = api.CUlaunchConfig()
        self.raw.hStream = stream
        self.raw.blockDimX, self.raw.blockDimY, self.raw.blockDimZ = block
        self.raw.sharedMemBytes = shared_bytes
        self._attributes: list[Any] = []
        kinds = api.CUlaunchAttributeID
        if programmatic:
            attribute = api.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            self._attributes.append(attribute)
        if clustered:
            self._cluster = api.CUlaunchAttribute()
            self._cluster.id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            self._attributes.append(self._cluster)
        self._set_attributes()

    def set_grid(self, x: int, y: int, z: int, cluster: int = 1) -> None:
        self.empty = x * y * z == 0
        if self.empty:
            return
        self.raw.gridDimX, self.raw.gridDimY, self.raw.gridDimZ = x, y, z
        if self._cluster is not None and cluster != self._cluster_blocks:
            self._cluster_blocks = cluster
            dim = self._cluster.value.clusterDim
            dim.x, dim.y, dim.z = 1, 1, cluster
            self._set_attributes()

    def _set_attributes(self) -> None:
        """Pass the attributes to the bindings, which copy them: needed again after every change of an attribute."""
        self.raw.attrs = self._attributes
        self.raw.numAttrs = len(self._attributes)


class CudaGraph:
    """A captured sequence of launches, replayed with one call."""

    def __init__(self, api: Any, captured: Any, stream: Any) -> None:
        self._api = api
        self._stream = stream
        try:
            self._exec: Any = checked(api.cuGraphInstantiate(captured, 0), "instantiating a CUDA graph")
        finally:
            checked(api.cuGraphDestroy(captured), "destroying a CUDA graph")
        try:
            checked(api.cuGraphUpload(self._exec, stream), "uploading a CUDA graph")
        except DeviceError:
            api.cuGraphExecDestroy(self._exec)  # the first error is the one to report
            raise

    def launch(self) -> None:
        """Queue the whole graph on the stream from which it was captured."""
        result = self._api.cuGraphLaunch(self._exec, self._stream)
        if result[0] != 0:
            checked(result, "launching a CUDA graph")

    def close(self) -> None:
        if self._exec is not None:
            checked(self._api.cuGraphExecDestroy(self._exec), "destroying a CUDA graph")
            self._exec = None


class Capture:
    """Holds the graph once a `Stream.capture()` block has ended without an error."""

    graph: CudaGraph | None = None


class Stream:
    """A queue of GPU work. Addresses are integers, sizes are bytes; nothing here waits but `synchronize`."""

    def __init__(self, api: Any, handle: Any) -> None:
        self._api = api
        self.handle: Any = handle

    def upload(self, to: int, host: int, nbytes: int) -> None:
        """Queue a copy from host to GPU. Pinned host memory must not change until the copy is done."""
        checked(self._api.cuMemcpyHtoDAsync(to, host, nbytes, self.handle), "copying to the GPU")

    def upload_rows(self, to: int, to_pitch: int, host: int, host_pitch: int, width: int, rows: int) -> None:
        """Queue a copy of `rows` rows of `width` bytes to the GPU. A pitch is the distance of two rows in bytes."""
        copy = self._api.CUDA_MEMCPY2D()
        kinds = self._api.CUmemorytype
        copy.srcMemoryType, copy.srcHost, copy.srcPitch = kinds.CU_MEMORYTYPE_HOST, host, host_pitch
        copy.dstMemoryType, copy.dstDevice, copy.dstPitch = kinds.CU_MEMORYTYPE_DEVICE, to, to_pitch
        copy.WidthInBytes, copy.Height = width, rows
        checked(self._api.cuMemcpy2DAsync(copy, self.handle), "copying rows to the GPU")

    def download(self, host: int, source: int, nbytes: int) -> None:
        """Queue a copy from GPU to host."""
        checked(self._api.cuMemcpyDtoHAsync(host, source, nbytes, self.handle), "copying from the GPU")

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue a copy within GPU memory."""
        checked(self._api.cuMemcpyDtoDAsync(to, source, nbytes, self.handle), "copying on the GPU")

    def copy_rows(self, to: int, source: int, pitch: int, width: int, rows: int) -> None:
        """Queue a copy of `rows` rows of `width` bytes within GPU memory. Rows begin `pitch` bytes apart."""
        copy = self._api.CUDA_MEMCPY2D()
        kinds = self._api.CUmemorytype
        copy.srcMemoryType, copy.srcDevice, copy.srcPitch = kinds.CU_MEMORYTYPE_DEVICE, source, pitch
        copy.dstMemoryType, copy.dstDevice, copy.dstPitch = kinds.CU_MEMORYTYPE_DEVICE, to, pitch
        copy.WidthInBytes, copy.Height = width, rows
        checked(self._api.cuMemcpy2DAsync(copy, self.handle), "copying rows on the GPU")

    def fill(self, to: int, byte: int, nbytes: int) -> None:
        """Queue setting `nbytes` bytes of GPU memory to `byte`."""
        checked(self._api.cuMemsetD8Async(to, byte, nbytes, self.handle), "filling GPU memory")

    def record(self, event: CudaEvent) -> None:
        """Queue the mark `event`."""
        checked(self._api.cuEventRecord(event.handle, self.handle), "recording an event")

    def wait(self, event: CudaEvent) -> None:
        """Hold back work queued from now on until the GPU has passed a mark of another stream."""
        checked(self._api.cuStreamWaitEvent(self.handle, event.handle, 0), "making a stream wait")

    def launch_config(
        self, block: tuple[int, int, int], shared_bytes: int, programmatic: bool, clustered: bool = False
    ) -> LaunchConfig:
        """A launch configuration for this stream. `programmatic`: a kernel may start before its predecessor ends."""
        return LaunchConfig(self._api, self.handle, block, shared_bytes, programmatic, clustered)

    def launch(self, config: LaunchConfig, kernel: Any, params: int) -> None:
        """Queue a kernel. `params` is the address of an array of pointers to its arguments, copied by this call."""
        result = self._api.cuLaunchKernelEx(config.raw, kernel, params, 0)
        if result[0] != 0:
            checked(result, "launching a kernel")

    @contextmanager
    def capture(self) -> Generator[Capture]:
        """Capture the work queued inside the `with` block as a CUDA graph, instead of running the work."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(self._api.cuStreamBeginCapture(self.handle, mode), "starting a CUDA graph")
        capture = Capture()
        try:
            yield capture
        except BaseException:
            result = self._api.cuStreamEndCapture(self.handle)  # the first error is the one to report
            if result[0] == 0:
                self._api.cuGraphDestroy(result[1])
            raise
        captured = checked(self._api.cuStreamEndCapture(self.handle), "capturing a CUDA graph")
        capture.graph = CudaGraph(self._api, captured, self.handle)

    def synchronize(self) -> None:
        """Wait until all work queued so far is done."""
        checked(self._api.cuStreamSynchronize(self.handle), "waiting for the GPU")

    def close(self) -> None:
        if self.handle is not None:
            checked(self._api.cuStreamDestroy(self.handle), "destroying a stream")
            self.handle = None
