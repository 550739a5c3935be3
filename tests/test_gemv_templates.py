"""The GEMV on tensor cores: what it leaves to others and why, that it fits on an SM, and that it compiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infernum.codegen.emit import emit_block
from infernum.codegen.nvrtc import ARCHS, compile_cuda, parse_arch, supported_archs
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.dtypes import DType, dtype
from infernum.fusion import into_prologue
from infernum.ir.apply import apply_rules
from infernum.ir.graph import TensorType
from infernum.ir.kernel import Call, Choice, Layout, Target, Template, choose
from infernum.ir.op import OPS
from infernum.ir.text import parse_graph
from infernum.models.presets import PRESETS, resolve
from infernum.roofline import GPUS

KNOWN = supported_archs()
MOST_SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""KiB of shared memory that a block may have, by compute capability (CUDA programming guide)."""


def target(arch: int, tokens: int, of: DType) -> Target:
    return Target(arch, "test", 1 if tokens == 1 else 2, tokens, of)


def product(rows: int, width: int, of: DType) -> Call:
    operands = [TensorType(("tokens", width), of), TensorType((rows, width), of)]
    return OPS["linear"].call(operands, (TensorType(("tokens", rows), of),), {"out": ""})


def chosen_for(rows: int, width: int, tokens: int, of: str = "bf16", arch: int = 90) -> Choice:
    emitted = OPS["linear"].lowering
    assert isinstance(emitted, tuple)
    choice = choose(emitted, product(rows, width, dtype(of)), target(arch, tokens, dtype(of)))
    assert isinstance(choice, Choice)
    return choice


@pytest.mark.parametrize(
    ("width", "tokens", "of", "reason"),
    [
        (4096, 1, "f32", "gemv_mma: tensor cores multiply bf16 and f16 here, not f32"),
        (100, 8, "bf16", "gemv_mma: rows of 100 are not whole panels of 64 columns"),
    ],
)
def test_what_tensor_cores_do_not_take_goes_to_the_other_gemv(
    width: int, tokens: int, of: str, reason: str
) -> None:
    choice = chosen_for(96, width, tokens, of)
    assert isinstance(choice.kernel, Template) and choice.kernel.name == "gemv"
    assert choice.passed_over == (reason,)


@pytest.mark.parametrize(("width", "tokens"), [(64, 2), (2048, 8), (2048, 1), (2112, 1)])
def test_whole_panels_are_multiplied_on_tensor_cores(width: int, tokens: int) -> None:
    choice = chosen_for(96, width, tokens)
    assert isinstance(choice.kernel, Template) and choice.kernel.name == "gemv_mma"
    assert choice.passed_over == ()


def preset_shapes() -> Iterator[tuple[int, int]]:
    """Rows and width of every product of every preset, merged ones and those of the head too."""
    for name in PRESETS:
        cfg = resolve(name).config
        heads = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_dim
        yield heads, cfg.hidden_size
        yield cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim
        yield 2 * cfg.intermediate_size, cfg.hidden_size
        yield cfg.hidden_size, cfg.intermediate_size
        yield cfg.vocab_size, cfg.hidden_size


SHAPES = sorted(set(preset_shapes()))


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_chosen_for_a_product_of_a_preset_fits_on_an_sm(arch: str, tokens: int) -> None:
    number = parse_arch(arch)
    gpu, fitted = GPUS[number], 0
    for rows, width in SHAPES:
        choice = chosen_for(rows, width, tokens, arch=number)
        assert isinstance(choice.kernel, Template)
        if choice.kernel.name == "gemv":  # activations that are kept leave a small SM no room for weights
            assert number in (86, 89) and tokens == 8
            assert "bytes of shared memory a block are more than" in choice.passed_over[0]
            continue
        assert choice.kernel.name == "gemv_mma"
        call, goal = product(rows, width, dtype("bf16")), target(number, tokens, dtype("bf16"))
        layout = choice.kernel.plan(call, goal)
        assert isinstance(layout, Layout)
        values = {**layout.constants, **layout.parameters}
        warps = values["THREADS"] // 32
        sums = (2 * warps * values["TOKENS"] * 16 + warps) * 4
        block = values["SHARED"] + sums
        assert block <= MOST_SHARED[number] * 1024, f"{rows} × {width}"
        assert block + gpu.shared_reserved <= gpu.shared_per_sm
        assert values["THREADS"] <= gpu.threads_per_sm
        assert 1 <= values["PREFILL"] <= values["DEPTH"]
        fitted += 1
    assert fitted


NORMALISED = """\
graph g {
  stream %x : bf16[tokens, WIDTH]
  weight %norm : bf16[WIDTH] = "norm.weight"
  weight %w : bf16[100, WIDTH] = "w.weight"

  %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, WIDTH]
  %linear_1 = linear(%rms_norm_1, %w) : bf16[tokens, 100]
  return %linear_1
}
"""


@pytest.mark.parametrize("arch", KNOWN)
@pytest.mark.parametrize(
    ("width", "tokens", "staged"), [(4096, 1, True), (256, 8, True), (2048, 8, True), (8192, 8, False)]
)
def test_it_compiles_without_a_spill(arch: str, width: int, tokens: int, staged: bool) -> None:
    goal = target(parse_arch(arch), tokens, dtype("bf16"))
    found = apply_rules(parse_graph(NORMALISED.replace("WIDTH", str(width))), [into_prologue], goal)
    assert found.fired == {"into_prologue": staged}
    plan = plan_block(found.graph, goal)
    (kernel,) = [s for s in plan.steps if isinstance(s, KernelStep) and s.template.name == "gemv_mma"]
    cubin = compile_cuda(emit_block(plan, "test"), name="test.cu", arch=arch, cache=None)
    resources = cubin.kernels[kernel.name]
    assert resources.spill_bytes == 0 and resources.stack_bytes == 0, resources


@pytest.mark.skipif("sm_90a" not in KNOWN, reason="needs NVRTC")
def test_activations_may_have_any_name_where_they_travel_with_the_weights() -> None:
    goal = target(90, 8, dtype("bf16"))
    text = NORMALISED.replace("WIDTH", "8192").replace("linear(%rms_norm_1, ", "linear(%x, ")
    graph = parse_graph("\n".join(line for line in text.split("\n") if "norm" not in line))
    source = emit_block(plan_block(graph, goal), "test")
    assert "stream.load(x, 8192, tokens);" in source
    (kernel,) = compile_cuda(source, name="test.cu", arch="sm_90a", cache=None).kernels.values()
    assert kernel.spill_bytes == 0
