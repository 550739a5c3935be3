"""cuBLASLt made of NumPy: algorithms of known times, some of them wrong, at the addresses and sizes of NVIDIA's header.

Nothing of `infernum.runtime.cublaslt` is used here, so that a structure laid out wrongly there shows.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np
from clock_gpu import ClockGpu, ClockStream
from fake_gpu import at

TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}
RESULT = struct.Struct(
    "<8QQif4i"
)  # cublasLtMatmulHeuristicResult_t: algo, workspaceSize, state, wavesCount, reserved


class cuBLASLtError(Exception):
    """What the bindings raise."""


class MatmulDescAttribute(IntEnum):
    TRANSA = 3
    EPILOGUE = 7
    BIAS_POINTER = 8
    BIAS_DATA_TYPE = 26


class Epilogue(IntEnum):
    BIAS = 4


class MatmulPreferenceAttribute(IntEnum):
    MAX_WORKSPACE_BYTES = 1
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


class MatmulAlgoConfigAttribute(IntEnum):
    ID = 0
    TILE_ID = 1
    SPLITK_NUM = 2
    STAGES_ID = 6
    CLUSTER_SHAPE_ID = 8


class MatmulTile(IntEnum):
    TILE_128x256 = 24


class MatmulStages(IntEnum):
    STAGES_AUTO = 36


class ClusterShape(IntEnum):
    SHAPE_2x1x1 = 3


CONFIG = {0: (4, 66), 1: (4, 24), 2: (4, 1), 6: (4, 999), 8: (2, 3)}
"""Size and value of each attribute of every algorithm; the bindings have no name for these stages."""


@dataclass(frozen=True)
class FakeAlgorithm:
    """`off` is added to its result, `wavers` changes it from run to run, `fails` refuses to run."""

    us: float
    off: float = 0.0
    wavers: bool = False
    fails: bool = False
    workspace: int = 0
    state: int = 0


@dataclass
class FakeCublasLt:
    """Stands in for the module `nvmath.bindings.cublasLt`; `proposed` is what its heuristic says, in order."""

    gpu: ClockGpu
    proposed: list[FakeAlgorithm]
    refused: set[int] = field(default_factory=set)
    version: int = 130100
    live: dict[int, Any] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    ran: list[tuple[int, int]] = field(default_factory=list)
    stream: ClockStream | None = None

    cuBLASLtError = cuBLASLtError
    MatmulDescAttribute = MatmulDescAttribute
    MatmulPreferenceAttribute = MatmulPreferenceAttribute
    MatmulAlgoConfigAttribute = MatmulAlgoConfigAttribute
    MatmulTile, MatmulStages, ClusterShape, Epilogue = MatmulTile, MatmulStages, ClusterShape, Epilogue

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def open_stream(self) -> ClockStream:
        """The one stream on which products run."""
        if self.stream is None:
            self.stream = ClockStream(self.gpu)
        return self.stream

    def get_version(self) -> int:
        return self.version

    def _made(self, value: Any) -> int:
        number = next(self._numbers)
        self.live[number] = value
        return number

    def create(self) -> int:
        return self._made("library")

    def matmul_preference_create(self) -> int:
        return self._made({})

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0)
        return self._made({})

    def matrix_layout_create(self, kind: int, rows: int, columns: int, leading: int) -> int:
        return self._made((TYPES[kind], rows, columns, leading))

    def destroy(self, number: int) -> None:
        del self.live[number]

    matmul_preference_destroy = matmul_desc_destroy = matrix_layout_destroy = destroy

    def matmul_desc_set_attribute(self, number: int, attribute: int, address: int, size: int) -> None:
        assert size == (8 if attribute == MatmulDescAttribute.BIAS_POINTER else 4)
        self.live[number][attribute] = int.from_bytes(ctypes.string_at(address, size), "little")

    def matmul_preference_set_attribute(self, number: int, attribute: int, address: int, size: int) -> None:
        assert size == (8 if attribute == MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES else 4)

    def matmul_algo_get_heuristic(self, handle: int, operation: int, *rest: int) -> None:
        *_, wanted, results, found = rest
        self.asked.append(wanted)
        count = min(wanted, len(self.proposed))
        for number, algorithm in enumerate(self.proposed[:count]):
            packed = RESULT.pack(number, *[7] * 7, algorithm.workspace, algorithm.state, 1.0, 0, 0, 0, 0)
            ctypes.memmove(results + number * RESULT.size, packed, RESULT.size)
        ctypes.c_int32.from_address(found).value = count

    def matmul_algo_check(self, *arguments: int) -> None:
        *_, given, result = arguments
        number = self._number(given)
        if number in self.refused:
            raise cuBLASLtError("NOT_SUPPORTED")
        algorithm = self.proposed[number]
        packed = RESULT.pack(number, *[7] * 7, algorithm.workspace, algorithm.state, 1.0, 0, 0, 0, 0)
        ctypes.memmove(result, packed, RESULT.size)

    def matmul_algo_config_get_attribute(
        self, given: int, attribute: int, address: int, size: int, written: int
    ) -> None:
        self._number(given)
        expected, value = CONFIG[attribute]
        assert size == expected
        ctypes.memmove(address, value.to_bytes(size, "little"), size)
        ctypes.c_size_t.from_address(written).value = size

    def matmul(self, handle: int, operation: int, *rest: int) -> None:
        alpha, weight, weight_of, x, x_of, beta, c, c_of, out, out_of, given, workspace, room, stream = rest
        assert self.stream is not None and stream == self.stream.handle
        assert ctypes.c_float.from_address(alpha).value == 1.0
        assert workspace % 256 == 0 and room >= 32 * 2**20
        share, number = ctypes.c_float.from_address(beta).value, self._number(given)
        algorithm, bias = self.proposed[number], self._bias(operation, self.live[out_of][1])
        if algorithm.fails:
            raise cuBLASLtError("EXECUTION_FAILED")

        def multiply() -> None:
            result = self._rows(x, x_of) @ self._rows(weight, weight_of).T + bias
            result += share * self._rows(c, c_of) if share else 0
            result += algorithm.off + (1e-4 * (len(self.ran) % 2) if algorithm.wavers else 0)
            self._store(out, out_of, result)
            self.gpu.us += algorithm.us
            self.ran.append((number, weight))

        self.stream.put(multiply)

    def _number(self, given: int) -> int:
        number, *others = at(given, np.uint64, 8).tolist()
        assert others == [7] * 7, "an algorithm is 64 bytes that nobody changes"
        return number

    def _bias(self, operation: int, count: int) -> Any:
        set_to = self.live[operation]
        if MatmulDescAttribute.EPILOGUE not in set_to:
            return 0.0
        assert set_to[MatmulDescAttribute.EPILOGUE] == Epilogue.BIAS
        kind = TYPES[set_to[MatmulDescAttribute.BIAS_DATA_TYPE]]
        address = set_to[MatmulDescAttribute.BIAS_POINTER]
        return at(address, np.uint8, count * kind.itemsize).view(kind).astype(np.float32)

    def _array(self, address: int, layout: int) -> tuple[np.ndarray, int]:
        """A column-major matrix, as the row-major one that it is to us: [columns, leading] of which `rows` count."""
        kind, rows, columns, leading = self.live[layout]
        flat = at(address, np.uint8, ((columns - 1) * leading + rows) * kind.itemsize).view(kind)
        return np.lib.stride_tricks.as_strided(
            flat, (columns, rows), (leading * kind.itemsize, kind.itemsize)
        ), rows

    def _rows(self, address: int, layout: int) -> np.ndarray:
        return self._array(address, layout)[0].astype(np.float32)

    def _store(self, address: int, layout: int, values: np.ndarray) -> None:
        array, _ = self._array(address, layout)
        array[...] = values.astype(array.dtype)
