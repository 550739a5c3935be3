"""A bench without a GPU whose kernels are the emitted ones, compiled as C++: those without inline PTX."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from fake_gpu import FakeGpu

from infernum.lab.verify.bench import Bench
from infernum.lab.verify.image import Image
from infernum.manifest import Launch, Pointer

HEADER = Path(__file__).with_name("host_cuda.h")
COMPILER = shutil.which("g++") or shutil.which("clang++")
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\) (\w+)\(([^)]*)\) {')
VISIBLE = 'extern "C" [[gnu::visibility("default")]]'
_BEFORE_SM_90 = "#define __CUDA_ARCH__ 0  // no programmatic launch\n"


class HostBench(Bench):
    """Runs kernels from `source`, the emitted file of a block variant, on memory of the host.

    `folder` receives what is compiled. Raises CalledProcessError where a kernel uses what `host_cuda.h` lacks.
    """

    def __init__(self, source: str, folder: Path) -> None:
        assert COMPILER is not None, "there is no C++ compiler"
        self.gpu = FakeGpu({}, total=2**40)
        super().__init__(self.gpu, self.gpu.stream(), None)
        self._library = kernels_for_host(source, folder)

    def run(self, image: Image) -> object:
        self.forget_modules()
        for step in image.program.variant.steps:
            assert isinstance(step, Launch) and step.shared_bytes == 0 and step.cluster == 1
            signature = "".join("p" if isinstance(arg, Pointer) else "i" for arg in step.args)
            self.gpu.kernels[step.kernel] = signature, self._kernel(step)
        return super().run(image)

    def _kernel(self, step: Launch) -> Callable[..., None]:
        function = getattr(self._library, f"host_{step.kernel}")
        threads = math.prod(step.block)

        def launch(grid: tuple[int, int, int], *arguments: int) -> None:
            function((ctypes.c_int * 3)(*grid), threads, (ctypes.c_uint64 * len(arguments))(*arguments))

        return launch


def kernels_for_host(source: str, folder: Path) -> ctypes.CDLL:
    """The kernels of an emitted file as a library: `host_NAME(grid, threads, arguments)` launches one."""
    text = [source]
    for name, parameters in _KERNEL.findall(source):
        types = [parameter.rsplit(None, 1)[0] for parameter in parameters.split(",")]
        values = ", ".join(
            f"reinterpret_cast<{type_}>(arguments[{i}])" if "*" in type_ else f"{type_}(arguments[{i}])"
            for i, type_ in enumerate(map(str.strip, types))
        )
        text.append(
            f"{VISIBLE} void host_{name}(const int* grid, int threads, const uint64_t* arguments) {{\n"
            f"    host::launch(grid, threads, [=] {{ {name}({values}); }});\n}}\n"
        )
    return compile_for_host("".join(text), folder)


def compile_for_host(text: str, folder: Path) -> ctypes.CDLL:
    """CUDA without inline PTX as a library in `folder`; of C++ it has what is marked visible."""
    folder.mkdir(parents=True, exist_ok=True)
    file, library = folder / "kernels.cpp", folder / "kernels.so"
    file.write_text(f'{_BEFORE_SM_90}#include "{HEADER}"\n{text}', encoding="utf-8")
    # Hidden, since a kernel may be called like a function of the C library: `advance`.
    flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-w",
        "-U_FORTIFY_SOURCE",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
    ]
    subprocess.run([str(COMPILER), *flags, str(file), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
