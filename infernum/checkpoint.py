"""The weights in a Hugging Face folder, read tensor by tensor in the type they are stored in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from infernum.dtypes import BF16, F16, F32, I32, DType
from infernum.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUPPORTED = {"F32": F32, "F16": F16, "BF16": BF16, "I32": I32}

_ROWS_COMPARED_AT_ONCE = 4096  # of head and embedding: 64 MiB of each when a row has 8192 elements of 2 bytes
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; `kind` is its type in the words of the format."""

    file: Path
    opened: Any
    """The file as `safe_open` returns it, mapped into memory."""
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one folder. Opening reads the headers only; elements are read when asked for."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the headers of `model.safetensors` or of the shards in its index. Raises CheckpointError."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give the folder of a Hugging Face model")
        if (folder / SINGLE).is_file():
            return cls(folder, _read_tensors(folder / SINGLE))
        if (folder / INDEX).is_file():
            return cls(folder, _read_shards(folder))
        raise CheckpointError(f"{folder}: has no {SINGLE} and no {INDEX}{_advice(folder)}")

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name`. Raises CheckpointError when there is none."""
        return self._find(name).shape

    def dtype(self, name: str) -> DType:
        """The type `name` is stored in. Raises CheckpointError when it is missing or of another type."""
        tensor = self._find(name)
        found = SUPPORTED.get(tensor.kind)
        if found is None:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.kind}; only {', '.join(SUPPORTED)} can be read,"
                " use the original, unquantized weights"
            )
        return found

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor `name` in host memory, in its stored type. Raises CheckpointError."""
        self.dtype(name)  # refuses what NumPy cannot hold
        return self._find(name).opened.get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of rows start … stop − 1 of the tensor `name`, in its stored type. Raises CheckpointError."""
        self.dtype(name)
        return self._find(name).opened.get_slice(name)[start:stop]

    def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Collection[str] = ()) -> None:
        """Raise CheckpointError unless the checkpoint has exactly the tensors of `expected` (name → shape).

        Extras are ignored when they are in `ignored`, and two more: rotary frequencies, which old checkpoints store,
        and a head that equals the embedding when no head is expected because the two are tied.
        """
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise CheckpointError(f"{self._source()}: {_listed(missing)} missing; {_MISFIT}")
        for name, shape in expected.items():
            if self.shape(name) != tuple(shape):
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} has shape {list(self.shape(name))},"
                    f" expected {list(shape)}; {_MISFIT}"
                )
            self.dtype(name)
        others = [name for name in self.tensors if name not in expected and name not in ignored]
        extra = [name for name in others if not self._ignored(name, expected)]
        if extra:
            files = {self.tensors[name].file for name in extra}
            where = files.pop() if len(files) == 1 else self.folder
            raise CheckpointError(f"{where}: {_listed(extra)} not expected; {_MISFIT}")

    def _find(self, name: str) -> StoredTensor:
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"{self._source()}: {name} is missing; {_MISFIT}")
        return found

    def _source(self) -> Path:
        """The file that says which tensors there are."""
        return self.folder / (SINGLE if (self.folder / SINGLE).is_file() else INDEX)

    def _ignored(self, name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
        if name.endswith(".rotary_emb.inv_freq"):
            return True
        return name == _HEAD and _EMBEDDING in expected and self._tied()

    def _tied(self) -> bool:
        """True when head and embedding hold the same bytes. Raises CheckpointError otherwise."""
        head, embedding = self.tensors[_HEAD], self.tensors[_EMBEDDING]
        same = (head.kind, head.shape) == (embedding.kind, embedding.shape)
        if same:
            ours, theirs = head.opened.get_slice(_HEAD), embedding.opened.get_slice(_EMBEDDING)
            rows, step = head.shape[0], _ROWS_COMPARED_AT_ONCE
            pieces = (slice(row, min(row + step, rows)) for row in range(0, rows, step))
            same = all(ours[piece].tobytes() == theirs[piece].tobytes() for piece in pieces)
        if not same:
            raise CheckpointError(
                f"{head.file}: {_HEAD} differs from {_EMBEDDING} although config.json ties them;"
                " set tie_word_embeddings to false there if the head is meant to be used"
            )
        return True


_MISFIT = "these weights and config.json do not belong together"


def _listed(names: Iterable[str]) -> str:
    """At most three of `names`, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"{', '.join(ordered[:3])}{more} {'is' if len(ordered) == 1 else 'are'}"


def _advice(folder: Path) -> str:
    """What to do about a folder without safetensors, from what it has instead."""
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pth")):
        return (
            "; PyTorch's pickled weights are not read, convert them:"
            " transformers' AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if any(folder.glob("*.gguf")):
        return "; GGUF is not read, get the model's original weights"
    if (folder / "adapter_model.safetensors").is_file():
        return "; it holds an adapter only, merge it into its base model first"
    return "; download the model's weights into it"


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    weight_map = _read_index(index)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.is_file():
            raise CheckpointError(f"{index}: names {shard}, which is not in the folder; download it again")
        shards[shard] = _read_tensors(path)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index}: {name} is not in {shard}, where it should be; download both again"
            )
    unlisted = {name: tensor for held in shards.values() for name, tensor in held.items()}
    return unlisted | {name: shards[shard][name] for name, shard in weight_map.items()}


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. safetensors checks that they fill it exactly, without gaps and overlaps."""
    try:
        opened: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path}: is truncated, damaged or no safetensors file ({reason}); download it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it cannot be iterated over
    return {
        name: StoredTensor(path, opened, found.get_dtype(), tuple(found.get_shape()))
        for name, found in slices.items()
    }


class _Index(msgspec.Struct):
    """Tensor name → file name, within the folder."""

    weight_map: dict[str, str]


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{index}: is damaged ({error}); download it again") from error
    if not weight_map:
        raise CheckpointError(f"{index}: its weight_map is empty; download it again")
    for name, shard in weight_map.items():
        if not _stays_within(shard):
            raise CheckpointError(
                f"{index}: {name} is said to be in {shard!r}, which is no file of this folder"
            )
    return weight_map


def _stays_within(name: str) -> bool:
    """False for a path that could lead out of its folder on any system. (Links may lead anywhere.)"""
    path = PurePosixPath(name)
    odd = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    return not odd and not PureWindowsPath(name).drive
