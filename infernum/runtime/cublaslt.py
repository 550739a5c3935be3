"""cuBLASLt through nvmath-python's bindings: the descriptors of a product, and the library's algorithms for it.

Row-major `out[m, n] = x[m, k] · weight[n, k]ᵀ` is, to a column-major library, `outᵀ = weight · xᵀ` with the
weight transposed: A = weight (k × n, op T), B = xᵀ (k × m), C and D = residualᵀ and outᵀ (n × m).
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from infernum.errors import DeviceError
from infernum.runtime.gemm_algorithms import ALGORITHM_BYTES, AlgorithmFacts
from infernum.runtime.product import MatrixProduct

WORKSPACE_BYTES = 32 * 2**20
"""The size that NVIDIA recommends for Hopper and newer (cuBLAS documentation, cublasSetWorkspace)."""

_COMPUTE_32F = 68  # cublasComputeType_t: no TF32
_R_32F = 0  # cudaDataType_t, library_types.h
_DATA_TYPES = {"f32": _R_32F, "f16": 2, "bf16": 14}
_OP_T = 1  # cublasOperation_t

Algorithm = ctypes.c_uint64 * (ALGORITHM_BYTES // 8)
"""cublasLtMatmulAlgo_t."""


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; `state` is 0 when the algorithm can be used."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_size", ctypes.c_size_t),
        ("state", ctypes.c_int32),
        ("waves_count", ctypes.c_float),
        ("reserved", ctypes.c_int32 * 4),
    )


@dataclass(frozen=True)
class Descriptors:
    """The library's handles for one product with a fixed number of rows; freed by `destroy`."""

    operation: int
    weight: int
    x: int
    residual: int
    out: int


def load_library() -> Any:
    """The bindings. Raises DeviceError when nvmath-python is missing or finds no CUDA library."""
    try:
        return import_module("nvmath.bindings.cublasLt")
    except Exception as error:  # ImportError, or what the package raises when a CUDA library is missing
        raise DeviceError(
            f"nvmath-python cannot be loaded ({error}), needed for large matrix products;"
            " run `pip install nvidia-cublas-cu12 nvmath-python`"
        ) from error


def describe(lt: Any, product: MatrixProduct, m: int) -> Descriptors:
    """Descriptors of a product of `m` rows."""
    operands, result = _DATA_TYPES[product.dtype], _DATA_TYPES[product.out_dtype]
    operation = lt.matmul_desc_create(_COMPUTE_32F, _R_32F)
    names, setter = lt.MatmulDescAttribute, lt.matmul_desc_set_attribute
    _set(setter, operation, names.TRANSA, ctypes.c_int32(_OP_T))
    if product.bias:
        bias_type = _DATA_TYPES[product.bias_dtype]
        _set(setter, operation, names.EPILOGUE, ctypes.c_uint32(int(lt.Epilogue.BIAS)))
        _set(setter, operation, names.BIAS_DATA_TYPE, ctypes.c_int32(bias_type))
        set_bias(lt, operation, product.bias)
    residual_stride = product.residual_stride if product.residual else product.out_stride
    return Descriptors(
        operation=operation,
        weight=lt.matrix_layout_create(operands, product.k, product.n, product.k),
        x=lt.matrix_layout_create(operands, product.k, m, product.x_stride),
        residual=lt.matrix_layout_create(result, product.n, m, residual_stride),
        out=lt.matrix_layout_create(result, product.n, m, product.out_stride),
    )


def set_bias(lt: Any, operation: int, address: int) -> None:
    """Set the bias of products that are queued from now on with these descriptors."""
    pointer = ctypes.c_uint64(address)
    _set(lt.matmul_desc_set_attribute, operation, lt.MatmulDescAttribute.BIAS_POINTER, pointer)


def destroy(lt: Any, descriptors: Descriptors) -> None:
    """Free descriptors. Products that were queued with them may still be running."""
    lt.matmul_desc_destroy(descriptors.operation)
    for layout in (descriptors.weight, descriptors.x, descriptors.residual, descriptors.out):
        lt.matrix_layout_destroy(layout)


def proposals(
    lt: Any, handle: int, descriptors: Descriptors, product: MatrixProduct, m: int, most: int
) -> list[bytes]:
    """Up to `most` algorithms that the library's heuristic proposes, by expected speed, fastest first.

    Raises DeviceError when the library has no algorithm.
    """
    preference = lt.matmul_preference_create()
    names, setter = lt.MatmulPreferenceAttribute, lt.matmul_preference_set_attribute
    results, count = (HeuristicResult * most)(), ctypes.c_int32(0)
    try:
        _set(setter, preference, names.MAX_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES))
        for operand, alignment in zip("ABCD", product.alignments, strict=True):
            attribute = getattr(names, f"MIN_ALIGNMENT_{operand}_BYTES")
            _set(setter, preference, attribute, ctypes.c_uint32(alignment))
        lt.matmul_algo_get_heuristic(
            handle,
            descriptors.operation,
            descriptors.weight,
            descriptors.x,
            descriptors.residual,
            descriptors.out,
            preference,
            most,
            ctypes.addressof(results),
            ctypes.addressof(count),
        )
    except lt.cuBLASLtError as error:
        raise DeviceError(
            f"{product.name}: cuBLASLt cannot multiply {product.describe(m)}: {error}"
        ) from error
    finally:
        lt.matmul_preference_destroy(preference)
    usable = [bytes(result.algorithm) for result in results[: count.value] if result.state == 0]
    if not usable:
        raise DeviceError(f"{product.name}: cuBLASLt has no algorithm for {product.describe(m)}")
    return usable


def can_run(lt: Any, handle: int, descriptors: Descriptors, algorithm: bytes) -> bool:
    """True when the library accepts a stored algorithm for this product on this GPU, within the workspace."""
    result, candidate = HeuristicResult(), Algorithm.from_buffer_copy(algorithm)
    try:
        lt.matmul_algo_check(
            handle,
            descriptors.operation,
            descriptors.weight,
            descriptors.x,
            descriptors.residual,
            descriptors.out,
            ctypes.addressof(candidate),
            ctypes.addressof(result),
        )
    except lt.cuBLASLtError:
        return False
    return result.state == 0 and result.workspace_size <= WORKSPACE_BYTES


def algorithm_facts(lt: Any, algorithm: bytes) -> AlgorithmFacts:
    """The configuration of an algorithm: tile, stages, cluster and split, read from the library."""
    raw, names = Algorithm.from_buffer_copy(algorithm), lt.MatmulAlgoConfigAttribute

    def attribute(name: str, cell: Any) -> int:
        written = ctypes.c_size_t(0)
        lt.matmul_algo_config_get_attribute(
            ctypes.addressof(raw),
            int(getattr(names, name)),
            ctypes.addressof(cell),
            ctypes.sizeof(cell),
            ctypes.addressof(written),
        )
        return int(cell.value)

    return AlgorithmFacts(
        id=attribute("ID", ctypes.c_int32()),
        tile=_name(lt.MatmulTile, attribute("TILE_ID", ctypes.c_uint32()), "TILE_"),
        stages=_name(lt.MatmulStages, attribute("STAGES_ID", ctypes.c_uint32()), "STAGES_"),
        cluster=_name(lt.ClusterShape, attribute("CLUSTER_SHAPE_ID", ctypes.c_uint16()), "SHAPE_"),
        split_k=attribute("SPLITK_NUM", ctypes.c_int32()),
    )


def _name(kind: type[enum.IntEnum], value: int, prefix: str) -> str:
    """The name of a value in the bindings; its number when the library is newer than the bindings."""
    try:
        return kind(value).name.removeprefix(prefix)
    except ValueError:
        return str(value)


def _set(setter: Any, target: int, attribute: Any, value: Any) -> None:
    setter(target, int(attribute), ctypes.addressof(value), ctypes.sizeof(value))
