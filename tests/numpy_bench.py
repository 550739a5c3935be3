"""A bench without a GPU: kernels are played by NumPy, right ones and wrong ones, on memory at raw addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fake_gpu import FakeGpu, at

from infernum.dtypes import dtype, round_to
from infernum.lab.verify.bench import Bench, Time
from infernum.lab.verify.image import Image
from infernum.lab.verify.trials import meaning
from infernum.lab.verify.values import bits_of, from_bits, to_bits
from infernum.manifest import Launch, Pointer
from infernum.runtime.gemm import MatrixProduct

Spoil = Callable[[str, str, np.ndarray], None]
"""Called with a program's name, a result's tensor and its bits after a kernel has run, to make a mistake."""


class NumpyProducts:
    """Multiplies as the manifest says, from raw memory, when the fake stream gets there."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def run(self, product: MatrixProduct, m: int) -> None:
        self._stream.put(lambda: self._multiply(product, m))

    def _multiply(self, product: MatrixProduct, m: int) -> None:
        def read(address: int, name: str, rows: int, stride: int, width: int) -> np.ndarray:
            kind = dtype(name)
            bits = at(address, bits_of(kind), (rows - 1) * stride + width)
            strides = (stride * kind.bytes, kind.bytes)
            return from_bits(np.lib.stride_tricks.as_strided(bits, (rows, width), strides), kind)

        x = read(product.x, product.dtype, m, product.x_stride, product.k)
        out = x @ read(product.weight, product.dtype, product.n, product.k, product.k).T
        if product.bias:
            out = out + read(product.bias, product.bias_dtype, 1, product.n, product.n)
        if product.residual:
            out = out + read(product.residual, product.out_dtype, m, product.residual_stride, product.n)
        kind = dtype(product.out_dtype)
        bits = at(product.out, bits_of(kind), (m - 1) * product.out_stride + product.n)
        for row in range(m):
            begin = row * product.out_stride
            bits[begin : begin + product.n] = to_bits(round_to(out[row], kind), kind)

    def close(self) -> None:
        pass


class NumpyBench(Bench):
    """A bench whose kernels evaluate their node on the memory that their arguments point to."""

    def __init__(self, spoil: Spoil | None = None) -> None:
        self.gpu = FakeGpu({}, total=2**40)
        stream = self.gpu.stream()
        super().__init__(self.gpu, stream, NumpyProducts(stream))
        self._spoil = spoil

    def run(self, image: Image) -> np.ndarray:
        self.play(image)
        return super().run(image)

    def play(self, image: Image) -> None:
        """Have the kernels of an image's program done by NumPy."""
        self.forget_modules()
        for step in image.program.variant.steps:
            if isinstance(step, Launch):
                signature = "".join("p" if isinstance(arg, Pointer) else "i" for arg in step.args)
                self.gpu.kernels[step.kernel] = signature, self._kernel(step, image)

    def time(self, image: Image) -> Time:
        return Time(float(len(image.program.variant.steps)), True)

    def _kernel(self, step: Launch, image: Image) -> Callable[..., None]:
        def compute(grid: tuple[int, int, int], *arguments: int) -> None:
            assert all(size > 0 for size in grid)
            for arg, value in zip(step.args, arguments, strict=True):
                if not isinstance(arg, Pointer):
                    assert value == image.facts.symbols[arg.symbol]
            if step is not image.program.variant.steps[-1]:
                return
            base = {
                value - arg.offset - image.spans[arg.tensor][0]
                for arg, value in zip(step.args, arguments, strict=True)
                if isinstance(arg, Pointer)
            }
            assert len(base) == 1, "all pointers are into one image"
            self._evaluate(image, at(base.pop(), np.uint8, len(image.bytes)))

        return compute

    def _evaluate(self, image: Image, memory: np.ndarray) -> None:
        program = image.program
        operands = [
            from_bits(image.value(place, memory), place.type.dtype).reshape(image.facts.sizes(place.type))
            for place in program.operands
        ]
        for place, result in zip(program.results, meaning(program.node, operands), strict=True):
            bits = image.value(place, memory)
            bits[:] = to_bits(result.reshape(bits.shape), place.type.dtype)
            if self._spoil is not None:
                self._spoil(program.name, place.tensor, bits)
