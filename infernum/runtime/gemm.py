"""Large matrix products through cuBLASLt, by way of nvmath-python's bindings.

Row-major `out[m, n] = x[m, k] · weight[n, k]ᵀ` is, to a column-major library, `outᵀ = weight · xᵀ` with the
weight transposed: A = weight (k × n, op T), B = xᵀ (k × m), C and D = residualᵀ and outᵀ (n × m).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from infernum.errors import DeviceError
from infernum.runtime.device import Device
from infernum.runtime.stream import Stream

WORKSPACE_BYTES = 32 * 2**20
"""What NVIDIA recommends for Hopper and newer (cuBLAS documentation, cublasSetWorkspace)."""

ALIGNMENT = 256
_COMPUTE_32F = 68  # cublasComputeType_t: no TF32
_R_32F = 0  # cudaDataType_t, library_types.h
_DATA_TYPES = {"f32": _R_32F, "f16": 2, "bf16": 14}
_OP_T = 1  # cublasOperation_t


@dataclass(frozen=True)
class Product:
    """A matrix product whose addresses are known; strides are elements from row to row, 0 an absent operand.

    out[m, n] = x[m, k] · weight[n, k]ᵀ (+ bias[n]) (+ residual[m, n]); m is given when it runs.
    """

    name: str
    x: int
    weight: int
    out: int
    n: int
    k: int
    x_stride: int
    out_stride: int
    dtype: str
    out_dtype: str
    bias: int = 0
    bias_dtype: str = ""
    residual: int = 0
    residual_stride: int = 0

    def shape_key(self, m: int) -> tuple[object, ...]:
        """What decides the choice of an algorithm; of the addresses only the alignment counts."""
        alignments = tuple(_alignment(p) for p in (self.weight, self.x, self.residual or self.out, self.out))
        strides = (self.x_stride, self.out_stride, self.residual_stride)
        return (
            m,
            self.n,
            self.k,
            strides,
            self.dtype,
            self.out_dtype,
            self.bias_dtype,
            bool(self.residual),
            alignments,
        )


@dataclass(frozen=True)
class _Plan:
    """What the library needs for one shape: descriptors, and the algorithm its heuristic prefers."""

    operation: int
    weight: int
    x: int
    residual: int
    out: int
    heuristic: Any
    algorithm: int


class CublasLt:
    """The library with its workspace, on one stream. A product of a known shape does not allocate or wait."""

    def __init__(self, device: Device, stream: Stream) -> None:
        """Raises DeviceError when nvmath-python or cuBLASLt is missing, or the workspace does not fit."""
        self._lt = _load()
        self._stream = int(stream.handle)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._bias = ctypes.c_uint64(0)
        self._plans: dict[tuple[object, ...], _Plan] = {}
        try:
            self._handle: int = self._lt.create()
        except Exception as error:  # the bindings raise several types when the library cannot be loaded
            raise DeviceError(
                f"cuBLASLt cannot be loaded ({error}); run `pip install 'infernum[cuda]'`"
            ) from error
        # With an epilogue the library may overrun what it asks for by 16 bytes (nvmath-python says so too).
        self._workspace = device.alloc(WORKSPACE_BYTES + ALIGNMENT, "the workspace of matrix products")

    def run(self, product: Product, m: int) -> None:
        """Queue the product for `m` rows. Raises DeviceError when the library has no algorithm for it."""
        key = product.shape_key(m)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._choose(product, m)
        elif product.bias:
            self._set_bias(plan.operation, product.bias)
        beta = self._one if product.residual else self._zero
        try:
            self._lt.matmul(
                self._handle,
                plan.operation,
                ctypes.addressof(self._one),
                product.weight,
                plan.weight,
                product.x,
                plan.x,
                ctypes.addressof(beta),
                product.residual or product.out,
                plan.residual,
                product.out,
                plan.out,
                plan.algorithm,
                self._workspace.address,
                self._workspace.nbytes,
                self._stream,
            )
        except self._lt.cuBLASLtError as error:
            raise DeviceError(
                f"{product.name}: cuBLASLt could not multiply {_shape(product, m)}: {error}"
            ) from error

    def close(self) -> None:
        """Give back descriptors and workspace; no product may be running."""
        if not self._handle:
            return
        for plan in self._plans.values():
            self._lt.matmul_desc_destroy(plan.operation)
            for layout in (plan.weight, plan.x, plan.residual, plan.out):
                self._lt.matrix_layout_destroy(layout)
        self._plans.clear()
        self._workspace.free()
        self._lt.destroy(self._handle)
        self._handle = 0

    def _choose(self, product: Product, m: int) -> _Plan:
        lt = self._lt
        operands, result = _DATA_TYPES[product.dtype], _DATA_TYPES[product.out_dtype]
        operation = lt.matmul_desc_create(_COMPUTE_32F, _R_32F)
        attributes = lt.MatmulDescAttribute
        _set(lt.matmul_desc_set_attribute, operation, attributes.TRANSA, ctypes.c_int32(_OP_T))
        if product.bias:
            epilogue, bias_type = ctypes.c_uint32(int(lt.Epilogue.BIAS)), _DATA_TYPES[product.bias_dtype]
            _set(lt.matmul_desc_set_attribute, operation, attributes.EPILOGUE, epilogue)
            _set(
                lt.matmul_desc_set_attribute, operation, attributes.BIAS_DATA_TYPE, ctypes.c_int32(bias_type)
            )
            self._set_bias(operation, product.bias)
        weight = lt.matrix_layout_create(operands, product.k, product.n, product.k)
        x = lt.matrix_layout_create(operands, product.k, m, product.x_stride)
        residual_stride = product.residual_stride if product.residual else product.out_stride
        residual = lt.matrix_layout_create(result, product.n, m, residual_stride)
        out = lt.matrix_layout_create(result, product.n, m, product.out_stride)

        preference = lt.matmul_preference_create()
        names, set_preference = lt.MatmulPreferenceAttribute, lt.matmul_preference_set_attribute
        _set(set_preference, preference, names.MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES))
        addresses = {
            "A": product.weight,
            "B": product.x,
            "C": product.residual or product.out,
            "D": product.out,
        }
        for operand, address in addresses.items():
            attribute = getattr(names, f"MIN_ALIGNMENT_{operand}_BYTES")
            _set(set_preference, preference, attribute, ctypes.c_uint32(_alignment(address)))
        best = lt.MatmulHeuristicResult(1)
        found = ctypes.c_int32(0)
        try:
            lt.matmul_algo_get_heuristic(
                self._handle,
                operation,
                weight,
                x,
                residual,
                out,
                preference,
                1,
                best.ptr,
                ctypes.addressof(found),
            )
        except lt.cuBLASLtError as error:
            raise DeviceError(
                f"{product.name}: cuBLASLt cannot multiply {_shape(product, m)}: {error}"
            ) from error
        finally:
            lt.matmul_preference_destroy(preference)
        if found.value == 0:
            raise DeviceError(f"{product.name}: cuBLASLt has no algorithm for {_shape(product, m)}")
        # cublasLtMatmulHeuristicResult_t begins with its algorithm, so that both have one address.
        return _Plan(operation, weight, x, residual, out, best, best.ptr)

    def _set_bias(self, operation: int, address: int) -> None:
        self._bias.value = address
        _set(
            self._lt.matmul_desc_set_attribute,
            operation,
            self._lt.MatmulDescAttribute.BIAS_POINTER,
            self._bias,
        )


def _set(setter: Any, target: int, attribute: Any, value: Any) -> None:
    setter(target, int(attribute), ctypes.addressof(value), ctypes.sizeof(value))


def _alignment(address: int) -> int:
    """The largest power of two, up to 256, that divides `address`."""
    return min(ALIGNMENT, address & -address)


def _shape(product: Product, m: int) -> str:
    extras = (f" + {product.bias_dtype} bias" if product.bias else "") + (
        " + residual" if product.residual else ""
    )
    types = f"{product.dtype} -> {product.out_dtype}"
    return f"[{m}, {product.k}] by [{product.n}, {product.k}] transposed{extras}, {types}"


def _load() -> Any:
    try:
        return import_module("nvmath.bindings.cublasLt")
    except Exception as error:  # ImportError, or what the package raises when a CUDA library is missing
        raise DeviceError(
            f"nvmath-python cannot be loaded ({error}), needed for large matrix products;"
            " run `pip install 'infernum[cuda]'`"
        ) from error
