"""The weights of an executor as tensors of torch, in the memory that our kernels read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from infernum import dtypes
from infernum.manifest import Manifest
from infernum.recipes import Read
from infernum.runtime.weights import placed_sections
from infernum.weights.plan import plan_weights

Wrap = Callable[[int, tuple[int, ...], str], Any]
"""A tensor over the memory at an address, given its shape and the short name of its dtype."""


def shared_tensors(manifest: Manifest, base: int, wrap: Wrap) -> dict[str, Any]:
    """Every tensor of the checkpoint by name, in the weights of a bundle, which begin at address `base`.

    Tensors that are stacked for one product, such as q, k and v, are consecutive rows of the stack.
    """
    tensors: dict[str, Any] = {}
    for weight in plan_weights(manifest).stored:
        for section, offset in placed_sections(weight):
            assert isinstance(section, Read), f"{section} is not a whole tensor of the checkpoint"
            tensors[section.names[0]] = wrap(base + offset, section.shape, weight.dtype)
    return tensors


def tensors_on_gpu(manifest: Manifest, base: int) -> dict[str, Any]:
    """`shared_tensors` for weights in GPU memory; they are valid until the executor is closed."""
    return shared_tensors(manifest, base, wrap_on_gpu)


class _AtAddress:
    """GPU memory under the CUDA array interface, version 3, which torch, CuPy and others read."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (
                address,
                False,
            ),  # declared writable, since torch warns about read-only memory; nothing writes
            "strides": None,
            "version": 3,
        }


def wrap_on_gpu(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    """The tensor at an address on the GPU, without a copy.

    The interface has no name for bfloat16: torch wraps integers of the same size, and views them as the dtype.
    """
    torch = import_module("torch")
    element = dtypes.dtype(dtype)
    raw = torch.as_tensor(_AtAddress(address, shape, f"<i{element.bytes}"), device="cuda")
    assert raw.data_ptr() == address, "torch wraps GPU memory without copying it"
    return raw.view(getattr(torch, element.long_name))
