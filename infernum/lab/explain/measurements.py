"""Measured kernels, as `infernum bench kernels --json` writes them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infernum.errors import InfernumError
from infernum.manifest import Manifest, every_variant


class _Result(msgspec.Struct, frozen=True):
    """The field that every result of `infernum bench` has."""

    benchmark: str


class MeasuredKernel(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel: microseconds of a launch in place and by itself, what bounds it, and what a step would gain there.

    It runs once for each of `layers`.
    """

    block: str
    variant: str
    kernel: str
    us: float
    bytes: int
    flops: int
    floor_us: float
    fraction: float
    gain_us: float
    alone_us: float | None = None
    layers: int = 1


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """A whole result: the kernels of one variant's step, and the ceilings measured in the same run.

    `ms_per_step` is a whole step: kernels and what is between them.
    """

    benchmark: str
    read_bandwidth_gb_s: float
    kernels: list[MeasuredKernel]
    gpu: object = None
    model: str = ""
    variant: str = ""
    flops_per_second: float | None = None
    tokens: int | None = None
    context: int | None = None
    ms_per_step: float | None = None
    unaccounted_us: float | None = None

    def us(self, block: str, variant: str, kernel: str) -> float | None:
        """Microseconds of a kernel; None where it was not measured."""
        times = (k.us for k in self.kernels if (k.block, k.variant, k.kernel) == (block, variant, kernel))
        return next(times, None)


def read_measurements(path: Path, manifest: Manifest) -> Measurements:
    """The result in a file. Raises InfernumError when it is none, or not of this bundle's kernels."""
    again = "make one with `infernum bench kernels BUNDLE --json`"
    try:
        text = path.read_bytes()
        benchmark = msgspec.json.decode(text, type=_Result).benchmark
        if benchmark != "kernels":
            raise InfernumError(f"{path}: is a result of `bench {benchmark}`; {again}")
        measured = msgspec.json.decode(text, type=Measurements)
    except OSError as error:
        raise InfernumError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    except msgspec.DecodeError as error:
        raise InfernumError(f"{path}: is no result of `bench kernels` ({error}); {again}") from error
    if measured.model and measured.model != manifest.model.name:
        raise InfernumError(
            f"{path}: is of {measured.model}, and this bundle of {manifest.model.name}; measure this bundle"
        )
    known = {(v.block, v.variant, k.name) for v in every_variant(manifest) for k in v.kernels}
    for kernel in measured.kernels:
        if (kernel.block, kernel.variant, kernel.kernel) not in known:
            name = f"{kernel.block}.{kernel.variant}: {kernel.kernel}"
            raise InfernumError(f"{path}: has {name}, which this bundle has not; measure this bundle again")
    return measured
