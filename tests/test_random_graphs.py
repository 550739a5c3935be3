"""Fusion keeps the meaning: of random graphs, of every rewrite, and of whole Llama blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from graph_inputs import copied, random_inputs, stacked
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle.configs import case

from infernum.codegen.emit import emit_block
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16, F32, DType, relative_error
from infernum.fusion import RULES
from infernum.ir.apply import apply_rules
from infernum.ir.block import Block, Tensor
from infernum.ir.fuse import decomposed
from infernum.ir.graph import Graph
from infernum.ir.host import is_free
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Rule
from infernum.ir.text import parse_graph, print_graph
from infernum.lab.verify.random_graphs import Maker, width
from infernum.models.llama import LlamaConfig, decoder, embed, head
from infernum.ops import add, columns, linear, silu

T = TypeVar("T")

RANDOM = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
VARIANTS = {"t1": (1, 1), "t8": (2, 8), "t64": (9, 64), "prefill": (65, 512)}
TOKENS = {"t1": 1, "t8": 5, "t64": 20, "prefill": 70}


@pytest.fixture(scope="module", autouse=True)
def products_summed_exactly() -> Iterator[None]:
    """Products in float64: BLAS sums in another order when weights are stacked, and bitwise tests would see it."""

    def exactly(x: np.ndarray, weight: np.ndarray, *, out: str = "") -> np.ndarray:
        del out
        return x.astype(np.float64) @ weight.astype(np.float64).T

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(linear), "meaning", exactly)
        yield


def target(variant: str, dtype: DType) -> Target:
    return Target(90, variant, *VARIANTS[variant], dtype)


def fused(graph: Graph, rules: list[Rule], variant: str, dtype: DType) -> Graph:
    return apply_rules(graph, rules, target(variant, dtype), normalise=fold_weights).graph


def meaning(graph: Graph, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs, and what the ops made of the state."""
    own = copied(inputs)
    with np.errstate(all="ignore"):
        return [*interpret(graph, own), *(own[n.name] for n in graph.inputs if n.op.name == "state")]


def check_same_meaning(before: Graph, after: Graph, dtype: DType, *, exact: bool, tokens: int = 3) -> None:
    inputs = random_inputs(before, tokens)
    references = meaning(before, inputs)
    results = meaning(after, stacked(after, before, inputs))
    for out, ref in zip(results, references, strict=True):
        if exact or not np.isfinite(ref).all():
            assert np.array_equal(out, ref, equal_nan=True)
        else:
            assert relative_error(out, ref) <= (1e-5 if dtype is F32 else dtype.tolerance)


# ---- random graphs


class DrawnMaker(Maker):
    """Draws its choices from Hypothesis, which looks for the smallest graph that fails."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], dtype: DType) -> None:
        super().__init__(np.random.default_rng(0), dtype)
        self.draw = draw

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def chance(self, share: float = 0.5) -> bool:
        del share
        return self.draw(st.booleans())

    def kinds(self) -> list[Callable[[Tensor], list[Tensor]]]:
        return [*super().kinds(), self.itself, self.normed]

    def itself(self, x: Tensor) -> list[Tensor]:
        y = linear(x, self.weight(8, width(x)))
        return [add(add(y, y) if self.chance() else silu(y), columns(y, start=0, stop=8))]

    def normed(self, x: Tensor) -> list[Tensor]:
        (h,) = self.norm(x)
        return [*self.three(h), *self.gate(h)]


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any], dtype: DType) -> Graph:
    maker = DrawnMaker(draw, dtype)
    maker.begin()
    for _ in range(draw(st.integers(1, 8))):
        maker.grow()
    computed = [v.value for v in maker.values[2:]]
    assume(computed)
    outputs = [*draw(st.lists(st.sampled_from(computed), max_size=2)), computed[-1]]
    return Graph.build("random", maker.trace.entries.values(), list(dict.fromkeys(outputs)))


variants = st.sampled_from(list(VARIANTS))


def some(rules: list[Rule]) -> st.SearchStrategy[list[Rule]]:
    """All of the rules, or some of them in their order."""
    chosen = st.lists(st.booleans(), min_size=len(rules), max_size=len(rules))
    picked = chosen.map(lambda flags: [rule for rule, flag in zip(rules, flags, strict=True) if flag])
    return st.one_of(st.just(rules), picked)


@RANDOM
@given(graph=graphs(F32), rules=some(RULES), variant=variants)
def test_fused_random_graphs_mean_the_same_in_float32(graph: Graph, rules: list[Rule], variant: str) -> None:
    check_same_meaning(graph, fused(graph, rules, variant, F32), F32, exact=False)


@RANDOM
@given(graph=graphs(BF16), rules=some(RULES), variant=variants)
def test_fused_random_graphs_mean_the_same_to_the_last_bit_in_bfloat16(
    graph: Graph, rules: list[Rule], variant: str
) -> None:
    check_same_meaning(graph, fused(graph, rules, variant, BF16), BF16, exact=True)


@RANDOM
@given(graph=graphs(BF16), variant=variants)
def test_a_fused_graph_means_what_its_decomposition_does(graph: Graph, variant: str) -> None:
    fused_graph = fused(graph, RULES, variant, BF16)
    check_same_meaning(fused_graph, decomposed(fused_graph), BF16, exact=True)


@RANDOM
@given(graph=graphs(BF16), variant=variants)
def test_a_fused_graph_reads_back_from_its_text_with_the_same_meaning(graph: Graph, variant: str) -> None:
    fused_graph = fused(graph, RULES, variant, BF16)
    text = print_graph(fused_graph)
    assert print_graph(parse_graph(text)) == text
    check_same_meaning(fused_graph, parse_graph(text), BF16, exact=True)


@RANDOM
@given(graph=graphs(BF16), rules=some(RULES), variant=variants)
def test_a_fused_random_graph_gets_kernels_and_source(graph: Graph, rules: list[Rule], variant: str) -> None:
    assume(not any(is_free(graph.node(v.node)) for v in graph.outputs))
    plain = plan_block(graph, target(variant, BF16))
    plan = plan_block(fused(graph, rules, variant, BF16), target(variant, BF16))
    assert len(plan.steps) <= len(plain.steps)
    source = emit_block(plan, "random")
    names = [step.name for step in plan.steps if isinstance(step, KernelStep)]
    assert len(set(names)) == len(names)
    assert all(f" {name}(" in source for name in names)


# ---- whole blocks

CASES = ["plain", "llama31", "fourteen_to_two", "head_80", "all_biases"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_fused_llama_layer_means_what_the_plain_one_does(name: str, dtype: DType, variant: str) -> None:
    plain = decoder.trace(LlamaConfig.from_hf(case(name).config), dtype)
    fused_graph = fused(plain, RULES, variant, dtype)
    assert len(fused_graph.calls) < len(plain.calls)
    check_same_meaning(plain, fused_graph, dtype, exact=dtype is BF16, tokens=TOKENS[variant])
    check_same_meaning(fused_graph, decomposed(fused_graph), dtype, exact=True, tokens=TOKENS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block", [embed, head], ids=lambda block: block.name)
def test_the_blocks_around_the_layers_keep_their_meaning_to_the_last_bit(block: Block, variant: str) -> None:
    plain = block.trace(LlamaConfig.from_hf(case("llama32_tied").config), BF16)
    fused_graph = fused(plain, RULES, variant, BF16)
    inputs = random_inputs(plain, TOKENS[variant])
    if "token_ids" in inputs:
        inputs["token_ids"] = np.arange(len(inputs["token_ids"]), dtype=np.int32)
    for out, ref in zip(meaning(fused_graph, inputs), meaning(plain, inputs), strict=True):
        assert np.array_equal(out, ref)
