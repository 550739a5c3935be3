"""Activation functions: their values are those of transformers, in NumPy and as CUDA expressions."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from host_bench import COMPILER

from infernum.codegen.pointwise_code import pointwise_code
from infernum.dtypes import F32
from infernum.ir.graph import Graph, Input, TensorType, Value
from infernum.ir.interpret import interpret
from infernum.ir.trace import Trace
from infernum.models.activations import ACTIVATIONS
from infernum.ops import softcap

X = (-12.0, -3.5, -1.0, -0.25, 0.0, 0.5, 2.0, 8.0, 12.0)
VALUES: dict[str, tuple[float, ...]] = {
    "gelu": (0.0, -0.0008143336, -0.1586553, -0.1003234, 0.0, 0.3457312, 1.9545, 8.0, 12.0),
    "gelu_10": (0.0, -0.0008143336, -0.1586553, -0.1003234, 0.0, 0.3457312, 1.9545, 8.0, 10.0),
    "gelu_fast gelu_new gelu_pytorch_tanh gelu_python_tanh gelu_accurate": (
        0.0,
        -0.0006161481,
        -0.158808,
        -0.1003246,
        0.0,
        0.345714,
        1.954598,
        8.0,
        12.0,
    ),
    "gelu_python": (0.0, -0.000814229, -0.1586553, -0.1003234, 0.0, 0.3457312, 1.9545, 8.0, 12.0),
    "hardswish": (0.0, 0.0, -0.3333333, -0.1145833, 0.0, 0.2916667, 1.666667, 8.0, 12.0),
    "laplace": (0.0, 0.0, 0.0, 0.000345856, 0.006094456, 0.2314211, 0.9999977, 1.0, 1.0),
    "leaky_relu": (-0.12, -0.035, -0.01, -0.0025, 0.0, 0.5, 2.0, 8.0, 12.0),
    "linear": (-12.0, -3.5, -1.0, -0.25, 0.0, 0.5, 2.0, 8.0, 12.0),
    "mish": (-7.373032e-05, -0.1040957, -0.3034014, -0.129927, 0.0, 0.3752452, 1.943959, 7.999998, 12.0),
    "quick_gelu": (
        -1.618642e-08,
        -0.009033444,
        -0.1542042,
        -0.09880035,
        0.0,
        0.3503884,
        1.935659,
        7.99999,
        12.0,
    ),
    "relu": (0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 8.0, 12.0),
    "relu2": (0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 4.0, 64.0, 144.0),
    "relu6": (0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 6.0, 6.0),
    "sigmoid": (
        6.144174e-06,
        0.02931223,
        0.2689414,
        0.4378235,
        0.5,
        0.6224594,
        0.880797,
        0.9996647,
        0.9999938,
    ),
    "silu swish": (
        -7.373009e-05,
        -0.1025928,
        -0.2689414,
        -0.1094559,
        0.0,
        0.3112297,
        1.761594,
        7.997317,
        11.99993,
    ),
    "sqrtsoftplus": (
        0.002478748,
        0.1724831,
        0.5596979,
        0.7589067,
        0.8325546,
        0.9869534,
        1.458399,
        2.828486,
        3.464103,
    ),
    "tanh": (-1.0, -0.9981779, -0.7615942, -0.2449187, 0.0, 0.4621172, 0.9640276, 0.9999998, 1.0),
}
"""Names in config.json, and what transformers 5.24 computes of X in float32 under each of them."""

EXPECTED = {name: values for names, values in VALUES.items() for name in names.split()}
CLOSE = {"rtol": 3e-6, "atol": 2e-7}
"""float32; gelu_python is a sum that loses digits where x is negative."""


def traced(name: str) -> Graph:
    trace = Trace()
    x = trace.input("x", Input("stream"), TensorType(("tokens", 1), F32))
    result = softcap(x, cap=2.5) if name == "softcap" else ACTIVATIONS[name](x)
    return Graph.build(name, trace.entries.values(), [result.value])


def in_numpy(name: str) -> np.ndarray:
    return interpret(traced(name), {"x": np.array(X, np.float32)[:, None]})[0][:, 0]


def test_every_activation_without_weights_of_its_own_has_a_name() -> None:
    assert sorted(ACTIVATIONS) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_activation_is_that_of_transformers(name: str) -> None:
    np.testing.assert_allclose(in_numpy(name), EXPECTED[name], **CLOSE)


def test_a_soft_cap_is_nearly_the_identity_below_it_and_the_cap_above() -> None:
    expected = 2.5 * np.tanh(np.array(X) / 2.5)
    np.testing.assert_allclose(in_numpy("softcap"), expected, **CLOSE)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_the_expressions_for_cuda_compute_the_same(tmp_path: Path) -> None:
    names = [*ACTIVATIONS, "softcap"]
    functions: list[str] = []
    for name in names:
        graph = traced(name)
        code = pointwise_code(
            graph, graph.calls, {Value("x"): "x"}, {}, [], {n.name: n.name for n in graph.calls}
        )
        lines = [f"    const float {s.name} = {s.expr};" for s in code.statements]
        result = code.names[graph.outputs[0]]
        functions.append(
            "\n".join((f'extern "C" float host_{name}(float x) {{', *lines, f"    return {result};\n}}"))
        )
    source, library = tmp_path / "activations.cpp", tmp_path / "activations.so"
    intrinsics = "static float __fdividef(float x, float y) { return x / y; }"
    source.write_text("\n".join(("#include <cmath>", intrinsics, *functions)))
    subprocess.run([str(COMPILER), "-O1", "-shared", "-fPIC", "-o", library, source], check=True, text=True)
    loaded = ctypes.CDLL(str(library))
    for name in names:
        function = loaded[f"host_{name}"]
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
        np.testing.assert_allclose([function(x) for x in X], in_numpy(name), **CLOSE, err_msg=name)


@pytest.mark.parametrize("name", EXPECTED)
def test_transformers_itself_agrees(name: str) -> None:
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    np.testing.assert_allclose(activations.ACT2FN[name](torch.tensor(X)).numpy(), EXPECTED[name], **CLOSE)
    assert set(activations.ACT2FN) - set(EXPECTED) == {"prelu", "xielu"}
