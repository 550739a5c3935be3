"""The fastest algorithms of matrix products on a GPU, stored in the user's cache.

One JSON file for each GPU model and version of cuBLASLt: a version of the library cannot read algorithms of another.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infernum.cache import cache_folder, locked, write_whole
from infernum.runtime.product import MatrixProduct

log = logging.getLogger(__name__)

ALGORITHM_BYTES = 64
"""Bytes of a cublasLtMatmulAlgo_t, which may be stored and reused with the same version (cuBLAS documentation)."""

NEARBY_GAIN = 0.05
"""Least share of time that an algorithm saved where it was timed, to be used for fewer rows as well."""


class _CacheRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the records in the files."""


class Shape(_CacheRecord, frozen=True):
    """A product without its number of rows, as the key of an algorithm. Strides in elements, alignments in bytes."""

    n: int
    k: int
    x_stride: int
    out_stride: int
    residual_stride: int
    dtype: str
    out_dtype: str
    bias_dtype: str
    residual: bool
    alignments: tuple[int, int, int, int]

    @classmethod
    def of(cls, product: MatrixProduct) -> Shape:
        """The shape of a product."""
        return cls(
            n=product.n,
            k=product.k,
            x_stride=product.x_stride,
            out_stride=product.out_stride,
            residual_stride=product.residual_stride,
            dtype=product.dtype,
            out_dtype=product.out_dtype,
            bias_dtype=product.bias_dtype,
            residual=bool(product.residual),
            alignments=product.alignments,
        )


class AlgorithmFacts(_CacheRecord, frozen=True):
    """The configuration of an algorithm, in cuBLASLt's own numbers and names."""

    id: int
    tile: str
    stages: str
    cluster: str
    split_k: int


class TunedProduct(_CacheRecord, frozen=True):
    """The fastest algorithm for `m` rows of a shape, and its times.

    algorithm           the library's own 64 bytes, as hexadecimal digits
    rank                its place among the heuristic's proposals; 0 runs when nothing was timed
    microseconds        median time of one product
    first_microseconds  median time with the heuristic's first proposal
    candidates          number of proposals that were tried
    rejected            number of candidates that failed, that gave another result than the first proposal, or that
                        gave two results in two runs
    in_cache            True when there were too few weights to keep them out of the L2 cache between runs
    """

    shape: Shape
    m: int
    algorithm: str
    facts: AlgorithmFacts
    rank: int
    microseconds: float
    first_microseconds: float
    candidates: int
    rejected: int
    in_cache: bool

    def __post_init__(self) -> None:
        if len(bytes.fromhex(self.algorithm)) != ALGORITHM_BYTES:
            raise ValueError(f"an algorithm has {ALGORITHM_BYTES} bytes")

    @property
    def gain(self) -> float:
        """The share of the time of the heuristic's first proposal that this algorithm saves."""
        return 1 - self.microseconds / self.first_microseconds if self.first_microseconds > 0 else 0.0


class _AlgorithmFile(_CacheRecord, frozen=True):
    gpu: str
    library: int
    products: list[TunedProduct]


@dataclass(frozen=True)
class KnownAlgorithm:
    """An entry of the cache: the GPU, the version of cuBLASLt (130100 is 13.1.0), and the algorithm."""

    gpu: str
    library: int
    tuned: TunedProduct


class AlgorithmStore:
    """The stored algorithms of one GPU and one version of cuBLASLt. The file is read at the first look-up."""

    def __init__(self, gpu: str, library: int, folder: Path | None = None) -> None:
        """`folder` holds the files; None: the user's cache."""
        self._gpu = gpu
        self._library = library
        name = re.sub(r"[^A-Za-z0-9]+", "_", gpu).strip("_")
        self.path = (folder or _folder()) / f"{name}-{library}.json"
        self._read: dict[tuple[Shape, int], TunedProduct] | None = None

    def find(self, shape: Shape, m: int) -> TunedProduct | None:
        """The algorithm timed for `m` rows, or for the next larger number in the same bucket if it saved enough."""
        known = self._known()
        exact = known.get((shape, m))
        if exact is not None:
            return exact
        larger = [rows for of, rows in known if of == shape and m < rows <= bucket(m)]
        near = known[shape, min(larger)] if larger else None
        return near if near is not None and near.gain >= NEARBY_GAIN else None

    def keep(self, tuned: TunedProduct) -> None:
        """Add an entry to the entries that processes have written. Warns when the file cannot be written."""
        with locked(self.path):
            written = _by_shape(_read(self.path, self._gpu, self._library))
            self._read = known = self._known() | written | {(tuned.shape, tuned.m): tuned}
            content = _AlgorithmFile(gpu=self._gpu, library=self._library, products=list(known.values()))
            try:
                write_whole(self.path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
            except OSError as error:
                log.warning("%s: algorithms cannot be kept there (%s)", self.path, error.strerror)

    def _known(self) -> dict[tuple[Shape, int], TunedProduct]:
        if self._read is None:
            self._read = _by_shape(_read(self.path, self._gpu, self._library))
        return self._read


def known_algorithms(folder: Path | None = None) -> list[KnownAlgorithm]:
    """All entries of the cache, of all GPUs and versions; `folder` as for `AlgorithmStore`."""
    files = sorted((folder or _folder()).glob("*.json"))
    readable = [decoded for path in files if (decoded := _decoded(path)) is not None]
    return [KnownAlgorithm(file.gpu, file.library, tuned) for file in readable for tuned in file.products]


def bucket(m: int) -> int:
    """The smallest 2ⁱ or 3·2ⁱ that is at least `m`. An algorithm timed for it may serve all `m` of the bucket."""
    power = 1 << (m - 1).bit_length()
    return power * 3 // 4 if m <= power * 3 // 4 else power


def buckets(least: int, most: int) -> list[int]:
    """Every bucket from `least` to `most` rows, and `most` itself."""
    sizes = {m for i in range(most.bit_length()) for m in (1 << i, 3 << i) if least <= m <= most}
    return sorted(sizes | {most})


def _folder() -> Path:
    return cache_folder() / "gemm"


def _by_shape(file: _AlgorithmFile | None) -> dict[tuple[Shape, int], TunedProduct]:
    return {(tuned.shape, tuned.m): tuned for tuned in file.products} if file else {}


def _read(path: Path, gpu: str, library: int) -> _AlgorithmFile | None:
    """The content of a file, None when it is for another GPU: the names of two GPUs may give the same file name."""
    file = _decoded(path)
    return file if file is not None and (file.gpu, file.library) == (gpu, library) else None


def _decoded(path: Path) -> _AlgorithmFile | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_AlgorithmFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read (%s); matrix products run as cuBLASLt proposes", path, error)
        return None
