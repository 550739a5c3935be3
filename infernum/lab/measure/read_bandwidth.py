"""The read bandwidth of a GPU, by a streaming kernel that is checked and timed: the bound of memory-bound work."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack

import numpy as np

from infernum.cache import cache_folder
from infernum.codegen.nvrtc import compile_cuda
from infernum.codegen.templates import render
from infernum.errors import DeviceError
from infernum.machine import native_arch
from infernum.runtime.device import Device
from infernum.runtime.timing import Stopwatch

NAME = "read_bandwidth"
THREADS, UNROLL, BLOCKS_PER_SM = 512, 16, 8
POOL_BYTES = 64 * 2**20
COPIES = 64
"""Copies of a pool of random bytes that fill the buffer: 4 GiB, far more than any cache holds."""


def measure_read_bandwidth(device: Device, *, passes: int = 10) -> float:
    """Bytes per second of the best of several passes over 4 GiB. Raises DeviceError when a pass reads wrongly."""
    arch = native_arch(device.facts.index)
    capability = device.facts.arch[0] * 10 + device.facts.arch[1]
    source = render(NAME, {"name": NAME, "THREADS": THREADS, "UNROLL": UNROLL}, arch=capability)
    cubin = compile_cuda(source, name=f"{NAME}.cu", arch=arch, cache=cache_folder())
    pool = np.random.default_rng(0).integers(0, 2**32, POOL_BYTES // 4, np.uint32)
    expected = int(pool.sum(dtype=np.uint64)) * COPIES * passes % 2**32
    nbytes = POOL_BYTES * COPIES
    with ExitStack() as stack:
        stream = device.stream()
        stack.callback(stream.close)
        data = device.alloc(nbytes, "the buffer of the bandwidth measurement")
        stack.callback(data.free)
        total = device.alloc(4, "its checksum")
        stack.callback(total.free)
        module = device.load_module(cubin.data, f"{NAME}.cubin")
        stack.callback(module.close)
        watch = stack.enter_context(Stopwatch(device, stream))
        stack.callback(stream.synchronize)

        stream.upload(data.address, pool.ctypes.data, POOL_BYTES)
        stream.synchronize()
        for copy in range(1, COPIES):
            stream.copy(data.address + copy * POOL_BYTES, data.address, POOL_BYTES)
        stream.fill(total.address, 0, 4)
        arguments = (
            ctypes.c_uint64(data.address),
            ctypes.c_uint64(nbytes // 16),
            ctypes.c_uint64(total.address),
        )
        params = (ctypes.c_void_p * 3)(*(ctypes.addressof(argument) for argument in arguments))
        kernel = module.kernel(NAME, 0)
        config = stream.launch_config((THREADS, 1, 1), 0, programmatic=False)
        config.set_grid(device.facts.sms * BLOCKS_PER_SM, 1, 1)
        address = ctypes.addressof(params)
        best = min(watch.milliseconds(lambda: stream.launch(config, kernel, address)) for _ in range(passes))
        checksum = np.zeros(1, np.uint32)
        stream.download(checksum.ctypes.data, total.address, 4)
        stream.synchronize()
    if int(checksum[0]) != expected:
        raise DeviceError(
            "the bandwidth measurement read other numbers than were written; no result is given"
        )
    return nbytes / (best * 1e-3)
