"""The weights of a Hugging Face folder, read tensor by tensor in their stored type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from infernum.dtypes import DType
from infernum.errors import CheckpointError
from infernum.model_folder.folder import find_weights
from infernum.model_folder.problems import Problem
from infernum.model_folder.weights import SUPPORTED, FolderWeights, StoredTensor, listed

_ROWS_COMPARED_AT_ONCE = 4096  # of head and embedding: 64 MiB of each when a row has 8192 elements of 2 bytes
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"  # the ends of their names
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one folder. `open` reads headers only; `read` and `rows` read elements."""

    folder: Path
    weights: FolderWeights

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the headers of `model.safetensors` or of the shards in its index. Raises CheckpointError."""
        weights = find_weights(folder)
        if isinstance(weights, Problem):
            raise CheckpointError(str(weights))
        return cls(folder, weights)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by name. A tensor with several names is listed under each."""
        return self.weights.tensors

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name`. Raises CheckpointError when it is missing."""
        return self._find(name).shape

    def dtype(self, name: str) -> DType:
        """The stored type of `name`. Raises CheckpointError when the tensor is missing or its type cannot be read."""
        tensor = self._find(name)
        dtype = SUPPORTED.get(tensor.kind)
        if dtype is None:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.kind}; only {', '.join(SUPPORTED)} can be read,"
                " use the original, unquantized weights"
            )
        return dtype

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor `name` in host memory, in its stored type. Raises CheckpointError."""
        self.dtype(name)  # raises for a type that NumPy lacks
        tensor = self._find(name)
        return tensor.opened.get_tensor(tensor.name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of rows start … stop − 1 of the tensor `name`, in its stored type. Raises CheckpointError."""
        self.dtype(name)
        tensor = self._find(name)
        return tensor.opened.get_slice(tensor.name)[start:stop]

    def check_has(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless all tensors of `expected` (name → shape) are there, in readable types."""
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            mend, embedding = _MISFIT, _embedding(self.tensors)
            if len(missing) == 1 and missing[0].endswith(_HEAD) and embedding:
                mend = f"set tie_word_embeddings to true in config.json if {embedding} is the head as well"
            raise CheckpointError(f"{self.weights.listing}: {_listed(missing)} missing; {mend}")
        for name, shape in expected.items():
            if self.shape(name) != tuple(shape):
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} has shape {list(self.shape(name))},"
                    f" expected {list(shape)}; {_MISFIT}"
                )
            self.dtype(name)

    def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Collection[str] = ()) -> None:
        """Raise CheckpointError unless the checkpoint has exactly the tensors of `expected` (name → shape).

        Extra tensors are accepted when they are in `ignored`, when they are other names of an expected tensor, when
        they are rotary frequencies, which old checkpoints store, when they are of the part that sees images, and when
        they are a head that equals the tied embedding.
        """
        self.check_has(expected)
        used = {self.tensors[name].place for name in expected}
        others = [
            name
            for name, tensor in self.tensors.items()
            if name not in self.weights.aliases and tensor.place not in used
        ]
        extra = [name for name in others if not self._ignored(name, expected, ignored)]
        if extra:
            files = {self.tensors[name].file for name in extra}
            where = files.pop() if len(files) == 1 else self.folder
            raise CheckpointError(f"{where}: {_listed(extra)} not expected; {_MISFIT}")

    def _find(self, name: str) -> StoredTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.weights.listing}: {name} is missing; {_MISFIT}")
        return tensor

    def _ignored(self, name: str, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str]) -> bool:
        embedding = _embedding(expected)
        if name.endswith(_HEAD) and embedding:
            return self._tied(name, embedding)
        return name in ignored or name.startswith(_IMAGES) or name.endswith(".rotary_emb.inv_freq")

    def _tied(self, head_name: str, embedding_name: str) -> bool:
        """True when head and embedding hold the same bytes. Raises CheckpointError otherwise."""
        head, embedding = self.tensors[head_name], self.tensors[embedding_name]
        same = (head.kind, head.shape) == (embedding.kind, embedding.shape)
        if same:
            ours, theirs = (tensor.opened.get_slice(tensor.name) for tensor in (head, embedding))
            rows, step = head.shape[0], _ROWS_COMPARED_AT_ONCE
            pieces = (slice(row, min(row + step, rows)) for row in range(0, rows, step))
            same = all(ours[piece].tobytes() == theirs[piece].tobytes() for piece in pieces)
        if not same:
            raise CheckpointError(
                f"{head.file}: {head_name} differs from {embedding_name} although config.json ties them;"
                " set tie_word_embeddings to false there if the head is meant to be used"
            )
        return True


def _embedding(names: Iterable[str]) -> str | None:
    """The name of the embedding among the names of tensors."""
    return next((name for name in names if name.endswith(_EMBEDDING)), None)


_MISFIT = "these weights and config.json do not belong together"


def _listed(names: Collection[str]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
