"""The safetensors files of a model folder: their headers, read without the tensors' elements."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import msgspec
from safetensors import SafetensorError, safe_open

from infernum.dtypes import BF16, F16, F32, I32, DType
from infernum.model_folder.problems import DOWNLOAD_AGAIN, Problem, file_problem, is_listed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

SUPPORTED = {"F32": F32, "F16": F16, "BF16": BF16, "I32": I32}
"""The types that Infernum reads, by their names in the format."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file. `kind` is the format's name of its type, such as BF16."""

    file: Path
    opened: Any
    """The file as `safe_open` returns it, mapped into memory."""
    name: str
    """The name in the file. An alias refers to the same tensor by another name."""
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements. The number in the name of a type is the bits of an element."""
        bits = re.search(r"\d+", self.kind)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8

    @property
    def place(self) -> tuple[Path, str]:
        """The identity of the tensor, equal for all its names."""
        return self.file, self.name


@dataclass(frozen=True)
class FolderWeights:
    """The tensors of a folder, by name, and the files that hold them.

    `aliases` are names in `tensors` that no file stores: safetensors' `save_model` leaves out a tensor that shares its
    memory with another. `listing` is the file that lists the tensors.
    """

    listing: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    aliases: frozenset[str]

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Stored bytes by type, as the format names it; the largest first."""
        sizes: Counter[str] = Counter()
        for name, tensor in self.tensors.items():
            if name not in self.aliases:
                sizes[tensor.kind] += tensor.nbytes
        return dict(sizes.most_common())

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.bytes_by_kind.values())

    @property
    def main_dtype(self) -> DType | None:
        """The float type of most stored bytes; None when no tensor has a float type that can be read."""
        stored = (SUPPORTED[kind] for kind in self.bytes_by_kind if kind in SUPPORTED)
        return next((dtype for dtype in stored if dtype.is_float), None)


def read_weights(folder: Path) -> FolderWeights | Problem | None:
    """The tensors of `model.safetensors`, or of the shards in its index; None when neither exists."""
    if is_listed(folder / SINGLE):
        path = folder / SINGLE
        tensors = _read_file(path)
        return tensors if isinstance(tensors, Problem) else _weights(path, {path: tensors}, {})
    return _read_shards(folder) if is_listed(folder / INDEX) else None


def _weights(
    listing: Path, by_file: Mapping[Path, Mapping[str, StoredTensor]], metadata: Mapping[str, object]
) -> FolderWeights:
    """All tensors, with the aliases from the metadata of the files and of the index."""
    tensors = {name: tensor for stored in by_file.values() for name, tensor in stored.items()}
    notes = [metadata, *(_metadata(next(iter(s.values())).opened) for s in by_file.values() if s)]
    aliases = {
        name: tensors[stored]
        for note in notes
        for name, stored in note.items()
        if isinstance(stored, str) and stored in tensors and name not in tensors
    }
    return FolderWeights(listing, tuple(by_file), tensors | aliases, frozenset(aliases))


def _metadata(opened: Any) -> Mapping[str, object]:
    return opened.metadata() or {}


def _read_shards(folder: Path) -> FolderWeights | Problem:
    path = folder / INDEX
    index = _read_index(path)
    if isinstance(index, Problem):
        return index
    shards = sorted(set(index.weight_map.values()))
    if missing := [shard for shard in shards if not is_listed(folder / shard)]:
        return Problem(
            path,
            f"names {listed(missing)}, which {'is' if len(missing) == 1 else 'are'} not in the folder",
            f"download {'it' if len(missing) == 1 else 'them'} again",
            tuple(missing),
        )
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    for shard in shards:
        tensors = _read_file(folder / shard)
        if isinstance(tensors, Problem):
            return tensors
        by_file[folder / shard] = tensors
    for name, shard in index.weight_map.items():
        if name not in by_file[folder / shard]:
            return Problem(path, f"{name} is not in {shard}, where it should be", "download both again")
    weights = _weights(path, by_file, index.notes)
    stated = {name: by_file[folder / shard][name] for name, shard in index.weight_map.items()}
    return FolderWeights(path, weights.files, {**weights.tensors, **stated}, weights.aliases)


def _read_file(path: Path) -> dict[str, StoredTensor] | Problem:
    """The tensors of one file. safetensors checks that they fill the file without gaps and overlaps."""
    if problem := file_problem(path):
        return problem
    try:
        opened: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        what = _cut_short(path) or f"is truncated, damaged or no safetensors file ({reason})"
        return Problem(path, what, DOWNLOAD_AGAIN)
    except OSError as error:
        return Problem(path, f"cannot be read ({error})", "give a file that can be read")
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it cannot be iterated over
    return {
        name: StoredTensor(path, opened, name, part.get_dtype(), tuple(part.get_shape()))
        for name, part in slices.items()
    }


def _cut_short(path: Path) -> str | None:
    """The actual and expected size of a truncated file; None when its header is unreadable or the file is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= size - 8:
            return None
        header = file.read(header_bytes)
    try:
        entries = cast("dict[str, dict[str, Any]]", json.loads(header))
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    whole = 8 + header_bytes + max(ends, default=0)
    return f"is cut short: it has {size:,} of {whole:,} bytes" if size < whole else None


class _Index(msgspec.Struct):
    """Tensor name → file name within the folder, and metadata of the tensors."""

    weight_map: dict[str, str]
    metadata: Any = None

    @property
    def notes(self) -> Mapping[str, object]:
        return cast("dict[str, object]", self.metadata) if isinstance(self.metadata, dict) else {}


def _read_index(index: Path) -> _Index | Problem:
    if problem := file_problem(index):
        return problem
    try:
        decoded = msgspec.json.decode(index.read_bytes(), type=_Index)
    except OSError as error:
        return Problem(index, f"cannot be read ({error.strerror})", "give a file that can be read")
    except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return Problem(index, f"is damaged ({error})", DOWNLOAD_AGAIN)
    if not decoded.weight_map:
        return Problem(index, "its weight_map is empty", DOWNLOAD_AGAIN)
    for name, shard in decoded.weight_map.items():
        if not _stays_within(shard):
            what = f"{name} is said to be in {shard!r}, which is no file of this folder"
            return Problem(index, what, DOWNLOAD_AGAIN)
    return decoded


def _stays_within(name: str) -> bool:
    """False for a path that could lead out of its folder on any system. (Links may lead anywhere.)"""
    path = PurePosixPath(name)
    odd = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    return not odd and not PureWindowsPath(name).drive


def listed(names: Iterable[str]) -> str:
    """At most three of `names`, and the number of the others, for messages."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"{', '.join(ordered[:3])}{more}"
