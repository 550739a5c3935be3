"""The weights of a bundle in host memory: float32 arrays that hold what the bundle's dtype can store."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from infernum.dtypes import F32, round_to
from infernum.dtypes import dtype as dtype_named
from infernum.errors import DeviceError
from infernum.manifest import Manifest, Stage, Weight
from infernum.weights.dummy import settle
from infernum.weights.plan import WeightPlan, plan_weights
from infernum.weights.source import Array, Progress, TensorSource
from infernum.weights.values import pieces


@dataclass(frozen=True)
class HostWeights:
    """Every distinct weight once, flat, for all variants and layers that use it. q is stored within q, k and v."""

    plan: WeightPlan
    stored: list[Array]

    @classmethod
    def load(
        cls,
        manifest: Manifest,
        source: TensorSource | None,
        rank: int = 0,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> HostWeights:
        """Read the weights of a rank from a checkpoint; without a checkpoint, generate random weights from `seed`.

        Raises CheckpointError, before any weight is read, when a tensor is missing or cannot be read, and DeviceError
        when the machine has too little memory.
        """
        plan, tensors = settle(plan_weights(manifest, rank), source, seed)
        own = F32.bytes * sum(weight.size for weight in plan.stored)
        done, total = rank * own, manifest.ranks * own
        _check_memory(total)
        stored: list[Array] = []
        for weight in plan.stored:
            dtype = dtype_named(weight.dtype)
            array = np.empty(weight.size, np.float32 if dtype.is_float else dtype.numpy)
            first = 0
            for piece in pieces(weight.recipe, tensors, plan.rank):
                array[first : first + piece.size] = round_to(piece, dtype)
                first += piece.size
            stored.append(array)
            done += array.nbytes
            if progress is not None:
                progress(done, total)
        return cls(plan, stored)

    def array(self, weight: Weight, stage: Stage) -> Array:
        """A weight of one stage of the program, in its shape."""
        place = self.plan.place(weight, stage)
        shape = [int(dim) for dim in weight.spec.shape]
        return self.stored[place.stored][place.first :][: int(np.prod(shape))].reshape(shape)


def _check_memory(nbytes: int) -> None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system has these values
        return
    if nbytes > total:
        raise DeviceError(
            f"the weights take {nbytes / 2**30:.1f} GiB as float32, and this machine has {total / 2**30:.1f} GiB of"
            " memory; run the model on a GPU, or take a smaller one"
        )
