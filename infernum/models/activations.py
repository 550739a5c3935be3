"""The activation functions that config.json names, in transformers' names (its table ACT2FN)."""

from __future__ import annotations

from collections.abc import Callable

from infernum.ir.block import Tensor
from infernum.ops import (
    add,
    clip,
    gelu,
    gelu_tanh,
    hardswish,
    laplace,
    mul,
    relu,
    scale,
    sigmoid,
    silu,
    softplus,
    sqrt_softplus,
    tanh,
)


def gelu_10(x: Tensor) -> Tensor:
    return clip(gelu(x), low=-10.0, high=10.0)


def leaky_relu(x: Tensor) -> Tensor:
    return add(relu(x), scale(relu(scale(x, by=-1.0)), by=-0.01))


def linear(x: Tensor) -> Tensor:
    return x


def mish(x: Tensor) -> Tensor:
    return mul(x, tanh(softplus(x)))


def quick_gelu(x: Tensor) -> Tensor:
    return mul(x, sigmoid(scale(x, by=1.702)))


def relu2(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021, arXiv:2109.08668)."""
    positive = relu(x)
    return mul(positive, positive)


def relu6(x: Tensor) -> Tensor:
    return clip(x, low=0.0, high=6.0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrt_softplus,
    "swish": silu,
    "tanh": tanh,
}
"""All but `prelu` and `xielu`, which have weights of their own. A configuration reads the name as a field,
`hidden_act: str = text("silu", one_of=tuple(ACTIVATIONS))`, which refuses other names."""
