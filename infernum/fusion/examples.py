"""Around these, `infernum verify` builds graphs in which the rules that have no pattern fire."""
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from infernum.ir.rewrite import Examples
from infernum.ops import add, columns, linear, mul, rms_norm, silu

PRODUCTS: Examples = (
    lambda x, q, k, v: (linear(x, q), linear(x, k), linear(x, v)),
    lambda x, q, k, q_bias, k_bias: (add(linear(x, q), q_bias), add(linear(x, k), k_bias)),
    lambda x, gate, up: mul(silu(linear(x, gate)), linear(x, up)),
)
EPILOGUES: Examples = (
    lambda x, weight, bias: silu(add(linear(x, weight), bias)),
    lambda x, weight, residual: add(linear(x, weight), residual),
    lambda x, weight, *, a, b, c, d: mul(
        silu(columns(y := linear(x, weight), start=a, stop=b)), columns(y, start=c, stop=d)
    ),
    lambda x, residual, gain, *, eps: add(residual, rms_norm(x, gain, eps=eps)),
)
PROLOGUES: Examples = (
    lambda x, gain, weight, *, eps: linear(rms_norm(x, gain, eps=eps), weight),
    lambda x, gain, a, b, *, eps: (linear(h := rms_norm(x, gain, eps=eps), a), silu(linear(h, b))),
)
NORMS: Examples = (lambda x, y, gain, *, eps: (total := add(x, y), rms_norm(total, gain, eps=eps)),)
POINTWISE: Examples = (lambda x, y: mul(silu(x), y),)
