"""The fake GPU with a clock: each kernel takes the time it is told to, so that what is measured is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import toy_bundle as toy
from fake_gpu import FakeEvent, FakeGpu, FakeStream, Kernel, at

from infernum import manifest
from infernum.bundle import Bundle
from infernum.manifest import BlockVariant, Cost, Launch, Step
from infernum.runtime.executor import CudaExecutor
from infernum.runtime.gemm import MatrixProduct
from infernum.runtime.loading import LoadOptions

MICROSECONDS = {
    "embed": 2.0,
    "append": 1.5,
    "mean": 4.0,
    "scale_add": 3.0,
    "gather": 1.0,
    "logits": 10.0,
    "greedy": 2.5,
    "sample": 5.0,
}
"""What a launch of each kernel of the toy model takes."""


@dataclass
class ClockEvent(FakeEvent):
    at_us: float | None = None

    def milliseconds_since(self, earlier: ClockEvent) -> float:
        assert self.at_us is not None and earlier.at_us is not None, "a mark was read before it was passed"
        return (self.at_us - earlier.at_us) / 1e3

    def passed(self) -> bool:
        return self.stream is None or self.stream.done >= self.mark


class ClockStream(FakeStream):
    gpu: ClockGpu

    def record(self, event: FakeEvent) -> None:
        if isinstance(event, ClockEvent):
            event.at_us = None

            def mark() -> None:
                event.at_us = self.gpu.us

            self.put(mark)
        super().record(event)


@dataclass
class ClockGpu(FakeGpu):
    """`us` is the GPU's time; `launched` names every kernel that ran, in order."""

    us: float = 0.0
    launched: list[str] = field(default_factory=list)

    def stream(self) -> ClockStream:
        return ClockStream(self)

    def event(self, *, timing: bool = False) -> FakeEvent:
        return ClockEvent() if timing else FakeEvent()

    def tick(self, name: str) -> None:
        self.us += MICROSECONDS[name]
        self.launched.append(name)


class ClockProducts:
    """Multiplies when the stream gets there, and takes its time."""

    def __init__(self, device: ClockGpu, stream: Any) -> None:
        self._device, self._stream = device, stream

    def run(self, product: MatrixProduct, m: int) -> None:
        def multiply() -> None:
            x = at(product.x, np.float32, m, product.x_stride)[:, : product.k]
            weight = at(product.weight, np.float32, product.n, product.k)
            at(product.out, np.float32, m, product.out_stride)[:, : product.n] = x @ weight.T
            self._device.tick("logits")

        self._stream.put(multiply)

    def close(self) -> None:
        pass


def clock_gpu() -> ClockGpu:
    """A GPU that runs the toy model's kernels."""
    gpu = ClockGpu({})

    def timed(name: str, kernel: Kernel) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            kernel(*arguments)
            gpu.tick(name)

        return run

    gpu.kernels = {
        name: (signature, timed(name, kernel)) for name, (signature, kernel) in toy.KERNELS.items()
    }
    return gpu


def described_toy(folder: Path, costs: Mapping[str, tuple[int | str, int | str]] | None = None) -> Bundle:
    """The toy's bundle with a description of every kernel; `costs`: bytes and FLOPs by name."""
    manifest = toy.toy_manifest()
    blocks: dict[str, dict[str, BlockVariant]] = {}
    for block, variants in manifest.blocks.items():
        for name, variant in variants.items():
            kernels = [_described(step, costs or {}) for step in variant.steps]
            blocks.setdefault(block, {})[name] = msgspec.structs.replace(variant, kernels=kernels)
    return toy.toy_bundle(folder, msgspec.structs.replace(manifest, blocks=blocks))


def _described(step: Step, costs: Mapping[str, tuple[int | str, int | str]]) -> manifest.Kernel:
    is_launch = isinstance(step, Launch)
    name = step.kernel if is_launch else step.name
    nbytes, flops = costs.get(name, (4, 0))
    return manifest.Kernel(
        name=name,
        node=name,
        template=name if is_launch else "cublaslt",
        ops=[name],
        rules=[],
        where=[f"toy.py:{len(name)}"],
        origin=[name],
        before=Cost(kernels=1, bytes=nbytes, flops=flops),
        bytes=nbytes,
        flops=flops,
    )


def open_clocked(
    gpu: ClockGpu, opened: Bundle, *, max_model_len: int | None = None, pages: int = 64
) -> CudaExecutor:
    """The toy model on a GPU with a clock."""
    device: Any = gpu
    library: Any = ClockProducts
    options = LoadOptions(max_pages_total=pages, max_model_len=max_model_len)
    return CudaExecutor(opened, toy.ToyCheckpoint(), device, options, open_library=library)
