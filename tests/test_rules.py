"""Every rule: where it fires in a Llama, what it makes of a graph, and why it leaves others alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from graph_inputs import copied, random_inputs, stacked
from oracle.configs import case

from infernum.codegen.plan import plan_block
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16, F32, relative_error
from infernum.errors import CompileError
from infernum.fusion import RULES, select_rules
from infernum.ir import match
from infernum.ir.apply import Outcome, apply_rules
from infernum.ir.block import Tensor
from infernum.ir.fuse import decomposed, made_by
from infernum.ir.graph import Graph
from infernum.ir.hazards import check_in_place
from infernum.ir.interpret import interpret
from infernum.ir.kernel import Target
from infernum.ir.op import Fused
from infernum.ir.rewrite import Rule, rewrite
from infernum.ir.text import parse_graph, print_graph
from infernum.models.llama import LlamaConfig, decoder, embed, head
from infernum.models.sampler import greedy, sample
from infernum.ops import add, columns

TARGETS = {
    "t1": Target(90, "t1", 1, 1, BF16),
    "t8": Target(90, "t8", 2, 8, BF16),
    "t64": Target(90, "t64", 9, 64, BF16),
    "decode": Target(90, "decode", 65, 512, BF16, decodes=True),
    "prefill": Target(90, "prefill", 65, 512, BF16),
    "f32": Target(90, "t1", 1, 1, F32),
}
VARIANTS = ("t1", "t8", "t64", "prefill")
RULE = {rule.name: rule for rule in RULES}
NAMES = list(RULE)


def outcome(text: str | Graph, *rules: Rule, variant: str = "t1") -> Outcome:
    graph = parse_graph(text) if isinstance(text, str) else text
    return apply_rules(graph, rules, TARGETS[variant], normalise=fold_weights)


def llama(**settings: object) -> LlamaConfig:
    return LlamaConfig.from_hf(case("plain").config | settings)


# ---- in a Llama

FEW = {"merge_products": 2, "attend": 1, "into_epilogue": 3, "into_prologue": 4}
MANY = {"merge_products": 2, "rope_append": 1, "into_norm": 1, "into_library": 1, "merge_pointwise": 1}

TENS = {"merge_products": 2, "rope_append": 1, "into_epilogue": 3}

FIRED: dict[tuple[bool, bool], tuple[dict[str, int], dict[str, int], dict[str, int]]] = {
    (False, False): (FEW, TENS, MANY),
    (True, False): (FEW | {"into_epilogue": 4}, TENS | {"into_epilogue": 4}, MANY | {"into_library": 3}),
    (False, True): (FEW, TENS, MANY | {"merge_pointwise": 3}),
    (True, True): (
        FEW | {"into_epilogue": 4},
        TENS | {"into_epilogue": 4},
        MANY | {"into_library": 3, "merge_pointwise": 3},
    ),
}
"""Firings in one layer by (attention_bias, mlp_bias): for few tokens (t1, t8), for tens (t64), for many (prefill)."""


def firings(attention_bias: bool, mlp_bias: bool, target: Target) -> dict[str, int]:
    few, tens, many = FIRED[attention_bias, mlp_bias]
    by_tokens = few if target.max_tokens <= 8 else tens if target.max_tokens <= 64 else many
    return dict.fromkeys(NAMES, 0) | by_tokens


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("attention_bias", "mlp_bias"), FIRED)
def test_each_rule_fires_as_often_in_a_llama_layer_as_expected(
    attention_bias: bool, mlp_bias: bool, variant: str
) -> None:
    sizes = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 192}
    traced = decoder.trace(llama(**sizes, attention_bias=attention_bias, mlp_bias=mlp_bias), BF16)
    expected = firings(attention_bias, mlp_bias, TARGETS[variant])
    assert outcome(traced, *RULES, variant=variant).fired == expected


def test_every_rule_fires_in_some_llama() -> None:
    assert {name for few_and_many in FIRED.values() for counts in few_and_many for name in counts} == set(
        NAMES
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block", [embed, head, greedy, sample], ids=lambda block: block.name)
def test_outside_the_layers_only_the_last_norm_is_fused_and_only_for_few_tokens(block, variant: str) -> None:
    found = outcome(block.trace(llama(), BF16), *RULES, variant=variant)
    few = block is head and variant in ("t1", "t8")
    assert {name: count for name, count in found.fired.items() if count} == (
        {"into_prologue": 1} if few else {}
    )


# ---- what each rule makes of a graph
#
# A text is the graph before and after a rule. Lines marked - are gone and those marked + are new; those marked | go
# into the body of the fused node above them.

ROPE = "{rope = Rope()}"
ROPES = "{rope = Rope(), key_rope = Rope()}"
CACHE = """\
   stream %q : bf16[tokens, 4, 16]
   stream %k : bf16[tokens, 2, 16]
   stream %v : bf16[tokens, 2, 16]
   state %kv : bf16[pages, 2, 2, 64, 16]
   batch %positions : i32[tokens]
   batch %sequence : i32[tokens]
   batch %page_table : i32[seqs, max_pages]
"""

BIASED = """\
 graph g {
   stream %x : bf16[tokens, 64]
-  weight %q_proj : bf16[64, 64] = "q_proj.weight"
-  weight %k_proj : bf16[32, 64] = "k_proj.weight"
-  weight %q_bias : bf16[64] = "q_proj.bias"
-  weight %k_bias : bf16[32] = "k_proj.bias"
+  weight %q_k_proj : bf16[96, 64] = "q_proj.weight" [64, 64], "k_proj.weight" [32, 64]
+  weight %q_k_bias : bf16[96] = "q_proj.bias" [64], "k_proj.bias" [32]

-  %linear_1 = linear(%x, %q_proj) : bf16[tokens, 64]  # m.py:1
-  %add_1 = add(%linear_1, %q_bias) : bf16[tokens, 64]  # m.py:1
-  %linear_2 = linear(%x, %k_proj) : bf16[tokens, 32]  # m.py:2
-  %add_2 = add(%k_bias, %linear_2) : bf16[tokens, 32]  # m.py:2
-  %heads_1 = heads(%add_1) {dim = 16} : bf16[tokens, 4, 16]  # m.py:3
-  %heads_2 = heads(%add_2) {dim = 16} : bf16[tokens, 2, 16]  # m.py:3
+  %linear_3 = linear(%x, %q_k_proj) : bf16[tokens, 96]  # m.py:1, m.py:2
+  %add_3 = add(%linear_3, %q_k_bias) : bf16[tokens, 96]  # m.py:1, m.py:2
+  %columns_1 = columns(%add_3) {start = 0, stop = 64} : bf16[tokens, 64]  # m.py:1, m.py:2
+  %columns_2 = columns(%add_3) {start = 64, stop = 96} : bf16[tokens, 32]  # m.py:1, m.py:2
+  %heads_1 = heads(%columns_1) {dim = 16} : bf16[tokens, 4, 16]  # m.py:3
+  %heads_2 = heads(%columns_2) {dim = 16} : bf16[tokens, 2, 16]  # m.py:3
   return %heads_1, %heads_2
 }
"""

PAIR = """\
 graph g {
   stream %x : bf16[tokens, 64]
-  weight %up_proj : bf16[96, 64] = "up_proj.weight"
-  weight %gate_proj : bf16[96, 64] = "gate_proj.weight"
   weight %up_bias : bf16[96] = "up_proj.bias"
+  weight %up_gate_proj : bf16[192, 64] = "up_proj.weight" [96, 64], "gate_proj.weight" [96, 64]

-  %linear_1 = linear(%x, %up_proj) : bf16[tokens, 96]  # m.py:1
-  %add_1 = add(%linear_1, %up_bias) : bf16[tokens, 96]  # m.py:1
-  %linear_2 = linear(%x, %gate_proj) : bf16[tokens, 96]  # m.py:2
-  %silu_1 = silu(%linear_2) : bf16[tokens, 96]  # m.py:3
+  %linear_3 = linear(%x, %up_gate_proj) : bf16[tokens, 192]  # m.py:1, m.py:2
+  %columns_1 = columns(%linear_3) {start = 0, stop = 96} : bf16[tokens, 96]  # m.py:1, m.py:2
+  %columns_2 = columns(%linear_3) {start = 96, stop = 192} : bf16[tokens, 96]  # m.py:1, m.py:2
+  %add_1 = add(%columns_1, %up_bias) : bf16[tokens, 96]  # m.py:1
+  %silu_1 = silu(%columns_2) : bf16[tokens, 96]  # m.py:3
   %mul_1 = mul(%silu_1, %add_1) : bf16[tokens, 96]  # m.py:4
   return %mul_1
 }
"""

ROTATED = f"""\
 graph g {{
{CACHE}
+  %rope_1, %rope_1.1 = fused rope_append(%q = %q, %k = %k, %v = %v, %kv = %kv, %positions = %positions, \
%sequence = %sequence, %page_table = %page_table) {ROPES} by rope_append : \
bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {{  # m.py:1, m.py:2
|  %rope_1 = rope(%q, %positions) {ROPE} : bf16[tokens, 4, 16]  # m.py:1
|  %rope_2 = rope(%k, %positions) {ROPE} : bf16[tokens, 2, 16]  # m.py:1
|  %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # m.py:2
|  return %rope_1, %append_1
+  }}
+  return %rope_1, %rope_1.1
 }}
"""

ATTENDED = f"""\
 graph g {{
{CACHE}\
   batch %query_start : i32[seqs + 1]

+  %attention_1, %attention_1.1 = fused attend(%q = %q, %k = %k, %v = %v, %kv = %kv, %positions = %positions, \
%sequence = %sequence, %query_start = %query_start, %page_table = %page_table) \
{{scale = 0.25, window = 0, softcap = 0.0}} by attend : \
bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {{  # m.py:2, m.py:3
|  %append_1 = append(%kv, %k, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # m.py:2
|  %attention_1 = attention(%q, %append_1, %positions, %sequence, %query_start, %page_table) \
{{scale = 0.25}} : bf16[tokens, 4, 16]  # m.py:3
|  return %attention_1, %append_1
+  }}
+  return %attention_1, %attention_1.1
 }}
"""

SWIGLU = """\
 graph g {
   stream %x : bf16[tokens, 64]
   weight %gate_up : bf16[192, 64] = "gate.weight" [96, 64], "up.weight" [96, 64]

+  %mul_1 = fused into_epilogue(%x = %x, %gate_up = %gate_up) by into_epilogue : \
bf16[tokens, 96] {  # m.py:1, m.py:2, m.py:3
|  %linear_1 = linear(%x, %gate_up) : bf16[tokens, 192]  # m.py:1
|  %columns_1 = columns(%linear_1) {start = 0, stop = 96} : bf16[tokens, 96]  # m.py:1
|  %columns_2 = columns(%linear_1) {start = 96, stop = 192} : bf16[tokens, 96]  # m.py:1
|  %silu_1 = silu(%columns_1) : bf16[tokens, 96]  # m.py:2
|  %mul_1 = mul(%silu_1, %columns_2) : bf16[tokens, 96]  # m.py:3
+    return %mul_1
+  }
   return %mul_1
 }
"""

SUM = """\
 graph g {
   stream %x : bf16[tokens, 64]
   stream %r : bf16[tokens, 96]
   weight %w : bf16[96, 64] = "w.weight"
   weight %b : bf16[96] = "w.bias"

+  %add_2 = fused RULE(%x = %x, %w = %w, %b = %b, %r = %r) by RULE : bf16[tokens, 96] {  # m.py:1, m.py:2
|  %linear_1 = linear(%x, %w) : bf16[tokens, 96]  # m.py:1
|  %add_1 = add(%b, %linear_1) : bf16[tokens, 96]  # m.py:1
|  %add_2 = add(%r, %add_1) : bf16[tokens, 96]  # m.py:2
+    return %add_2
+  }
   return %add_2
 }
"""

NORM = """\
 graph g {
   stream %x : bf16[tokens, 64]
   weight %norm : bf16[64] = "norm.weight"
   weight %w : bf16[64, 64] = "w.weight"

+  %linear_1 = fused into_prologue(%x = %x, %norm = %norm, %w = %w) by into_prologue : \
bf16[tokens, 64] {  # m.py:1, m.py:2
|  %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:1
|  %linear_1 = linear(%rms_norm_1, %w) : bf16[tokens, 64]  # m.py:2
+    return %linear_1
+  }
   return %linear_1
 }
"""

ADD_NORM = """\
 graph g {
   stream %x : bf16[tokens, 64]
   stream %y : bf16[tokens, 64]
   weight %norm : bf16[64] = "norm.weight"

+  %add_1, %add_1.1 = fused into_norm(%x = %x, %y = %y, %norm = %norm) by into_norm : \
bf16[tokens, 64], bf16[tokens, 64] {  # m.py:1, m.py:2
|  %add_1 = add(%x, %y) : bf16[tokens, 64]  # m.py:1
|  %rms_norm_1 = rms_norm(%add_1, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:2
|  return %add_1, %rms_norm_1
+  }
+  return %add_1, %add_1.1
 }
"""

NORM_ADD = """\
 graph g {
   stream %x : bf16[tokens, 64]
   stream %y : bf16[tokens, 64]
   weight %norm : bf16[64] = "norm.weight"

+  %add_1 = fused into_epilogue(%x = %x, %norm = %norm, %y = %y) by into_epilogue : \
bf16[tokens, 64] {  # m.py:1, m.py:2
|  %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:1
|  %add_1 = add(%y, %rms_norm_1) : bf16[tokens, 64]  # m.py:2
+    return %add_1
+  }
   return %add_1
 }
"""

CHAIN = """\
 graph g {
   stream %x : bf16[tokens, 64]
   stream %y : bf16[tokens, 64]

+  %silu_1, %silu_1.1 = fused merge_pointwise(%x = %x, %y = %y) by merge_pointwise : \
bf16[tokens, 64], bf16[tokens, 64] {  # m.py:1, m.py:2
|  %silu_1 = silu(%x) : bf16[tokens, 64]  # m.py:1
|  %mul_1 = mul(%y, %silu_1) : bf16[tokens, 64]  # m.py:2
|  return %silu_1, %mul_1
+  }
+  return %silu_1, %silu_1.1
 }
"""

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "biased": ("merge_products", "t1", BIASED),
    "pair": ("merge_products", "prefill", PAIR),
    "attended": ("attend", "t8", ATTENDED),
    "rotated": ("rope_append", "t64", ROTATED),
    "swiglu": ("into_epilogue", "t8", SWIGLU),
    "sum": ("into_epilogue", "t1", SUM.replace("RULE", "into_epilogue")),
    "norm": ("into_prologue", "t8", NORM),
    "add_norm": ("into_norm", "prefill", ADD_NORM),
    "norm_add": ("into_epilogue", "prefill", NORM_ADD),
    "sum of the library": ("into_library", "decode", SUM.replace("RULE", "into_library")),
    "chain": ("merge_pointwise", "prefill", CHAIN),
}
"""A rule, the variant, and a graph before and after it."""


def before(text: str) -> str:
    return "".join(f"{line[1:]}\n" for line in text.splitlines() if line[:1] != "+")


def after(text: str) -> str:
    lines = [line for line in text.splitlines() if line[:1] != "-"]
    return "".join(f"{'  ' if line[:1] == '|' else ''}{line[1:]}\n" for line in lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_rule_makes_of_its_example_what_is_stated(name: str) -> None:
    rule, variant, text = EXAMPLES[name]
    found = outcome(before(text), RULE[rule], variant=variant)
    assert found.fired == {rule: 1}
    assert print_graph(found.graph) == after(text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_rule_keeps_the_meaning_of_its_example(name: str) -> None:
    rule, variant, text = EXAMPLES[name]
    plain, inputs = parse_graph(before(text)), random_inputs(parse_graph(before(text)))
    made = outcome(plain, RULE[rule], variant=variant).graph
    wanted = interpret(plain, copied(inputs))
    for graph in (made, decomposed(made), parse_graph(print_graph(made))):
        for out, ref in zip(interpret(graph, stacked(graph, plain, inputs)), wanted, strict=True):
            assert np.array_equal(out, ref), relative_error(out, ref)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_rule_makes_knows_the_work_that_it_does_and_the_rule(name: str) -> None:
    rule, variant, text = EXAMPLES[name]
    plain = parse_graph(before(text))
    made = outcome(plain, RULE[rule], variant=variant).graph
    working = {n.name for n in plain.calls if n.op.name not in ("columns", "heads")}
    assert (
        working <= {origin for node in made.calls for origin in node.origins} <= {n.name for n in plain.calls}
    )
    assert {each for node in made.calls for each in made_by(node)} == {rule}


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_says_in_one_line_why_it_exists(name: str) -> None:
    why = RULE[name].why
    assert why.endswith(".") and "\n" not in why and 20 < len(why) < 130


# ---- what is switched on and off


def names_of(rules: list[Rule]) -> list[str]:
    return [rule.name for rule in rules]


def test_all_rules_are_chosen_with_fuse_and_none_without() -> None:
    assert len(set(NAMES)) == len(RULES)
    assert select_rules(True) == RULES
    assert select_rules(False) == []


def test_single_rules_are_switched_on_and_off_and_keep_their_order() -> None:
    without = names_of(select_rules(True, ["-merge_products", "-rope_append"]))
    assert without == [n for n in NAMES if n not in ("merge_products", "rope_append")]
    some = select_rules(False, ["+into_norm", "+merge_products"])
    assert names_of(some) == ["merge_products", "into_norm"]
    assert names_of(select_rules(False, ["+into_norm", "-into_norm"])) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+merge_prodcuts", "--rules: no rule is called 'merge_prodcuts'; did you mean merge_products?"),
        ("-zzz", f"--rules: no rule is called 'zzz'; the rules are {', '.join(NAMES)}"),
        ("attend", "--rules: 'attend' should be +name or -name"),
        ("", "--rules: '' should be +name or -name"),
    ],
)
def test_a_rule_that_does_not_exist_is_an_error_that_names_the_nearest(change: str, message: str) -> None:
    with pytest.raises(CompileError) as error:
        select_rules(True, [change])
    assert str(error.value) == message


def test_a_rule_that_matches_its_own_result_is_stopped() -> None:
    @rewrite(why="Turns the operands of an addition round, for ever.")
    def turn_round(x: Tensor, y: Tensor) -> Iterator[object]:
        yield add(x, y)
        yield add(y, x)

    with pytest.raises(
        CompileError, match=r"turn_round fired 1000 times at add_[12]: does it match what it makes"
    ):
        outcome(before(ADD_NORM), turn_round)


# ---- refusals


ON_HEADS = f"""\
  %rms_norm_1 = rms_norm(%q, %norm) {{eps = 1e-05}} : bf16[tokens, 4, 16]
  %rms_norm_2 = rms_norm(%k, %norm) {{eps = 1e-05}} : bf16[tokens, 2, 16]
  %rope_1 = rope(%rms_norm_1, %positions) {ROPE} : bf16[tokens, 4, 16]
  %rope_2 = rope(%rms_norm_2, %positions) {ROPE} : bf16[tokens, 2, 16]
  %append_1 = append(%kv, %rope_2,"""

GRAPHS = {name: before(text) for name, (*_, text) in EXAMPLES.items()}
GRAPHS["heads"] = (
    GRAPHS["attended"]
    .replace("  batch %seq", '  weight %norm : bf16[16] = "norm.weight"\n  batch %seq')
    .replace("  %append_1 = append(%kv, %k,", ON_HEADS)
    .replace("attention(%q,", "attention(%rope_1,")
)

REFUSALS = """
pair merge_products t1: %gate_proj is computed in each step: only weights are stacked when a checkpoint is loaded
    weight %gate_proj : bf16[96, 64] = "gate_proj.weight" -> stream %gate_proj : bf16[96, 64]
pair merge_products t1: %linear_1 is an output of the block, which columns of a merged product cannot be
    return -> return %linear_1,
attended attend t64: attend_cluster: a block holds the new keys of up to 8 tokens, and a step has up to 64; \
attend: a block holds the new keys of up to 8 tokens, and a step has up to 64
attended attend t8: attend_cluster: head size 264 is not a multiple of 16 up to 256; \
attend: head size 264 is not an even number up to 256
    , 16] -> , 264]
rotated rope_append t64: rope_append: q is bf16[tokens, 2, 32] and k bf16[tokens, 2, 16]: one kernel has one head size
    [tokens, 4, 16] -> [tokens, 2, 32]
rotated rope_append t64: rope_append: queries and keys are turned by different frequencies, and the kernel has one table
    rope(%k, %positions) {rope = Rope( -> rope(%k, %positions) {rope = Rope(theta=5000.0
rotated rope_append t64 (is_used_outside): %rope_2 would be gone, but flatten_1 reads it too
    return -> %flatten_1 = flatten(%rope_2) : bf16[tokens, 32] | return %flatten_1,
rotated rope_append t64 (reads_itself): %rope_2 is read by the pattern and computed by the nodes it would replace
    %rope_2, %v -> %rope_2, %rope_2
rotated rope_append t64 (makes_a_cycle): silu_1 would have to run after some of these nodes and before others, \
which become one
    4, 16] -> 2, 16]
    %append_1 = append(%kv, %rope_2, %v -> \
%silu_1 = silu(%rope_1) : bf16[tokens, 2, 16] | %append_1 = append(%kv, %rope_2, %silu_1
sum into_epilogue t1 (is_used_outside): %linear_1 would be gone, but silu_1 reads it too
    return -> %silu_1 = silu(%linear_1) : bf16[tokens, 96] | return %silu_1,
sum into_epilogue t1 (is_used_outside): %linear_1 would be gone, but the block returns it
    return -> return %linear_1,
swiglu into_epilogue t1: columns 0:96 of linear_1 are not equal parts of its 192
    mul(%silu_1, %columns_2) -> mul(%silu_1, %silu_1)
sum into_library decode: silu_1 is computed by cublaslt: the library can only add to a product, and silu is no addition
    add(%b, %linear_1) -> silu(%linear_1)
    %add_1 -> %silu_1
swiglu into_library decode: mul_1 is computed by cublaslt: \
the library adds to whole rows, and this is a sum of ranges of columns
    mul(%silu_1, -> add(%columns_1,
sum into_library decode: add_1 is computed by cublaslt: \
the library adds each operand once, and a product is not added to itself
    add(%b, %linear_1) -> add(%linear_1, %linear_1)
sum into_library decode: add_2 is computed by cublaslt: the library adds one vector, and these are 2
    %r : bf16[tokens, 96] -> %r : bf16[96]
sum into_library decode: add_2 is computed by cublaslt: the library adds one matrix, and these are 2
    weight %b : bf16[96] = "w.bias" -> stream %b : bf16[tokens, 96]
norm into_prologue t1: %rms_norm_1 is returned by the block
    return -> return %rms_norm_1,
norm into_prologue t1: silu_1 reads it too, and cannot compute it for itself
    return -> %silu_1 = silu(%rms_norm_1) : bf16[tokens, 64] | return %silu_1,
norm into_epilogue into_prologue t1: add_1 reads it otherwise than as rows that it could compute
    return %linear_1 -> return %add_1
    return -> %add_1 = add(%rms_norm_1, %linear_1) : bf16[tokens, 64] | return
norm into_prologue prefill: linear_1 is computed by cublaslt: the library reads rows as they are: it has no prologue
norm into_prologue t8: linear_1 is computed by gemv_mma: \
8 normalised rows of 8192 need 128 KiB of shared memory, over 96 KiB: room for 6
    64] -> 8192]
norm into_prologue f32: linear_1 is computed by gemv: \
1 normalised rows of 32768 need 128 KiB of shared memory, over 96 KiB: room for 0
    64] -> 32768]
    bf16 -> f32
heads attend into_prologue t1: attention_1 is computed by attend_cluster: \
attend_cluster does not compute rms_norm while it reads k
    %append_1 = append(%kv, %rope_2 -> \
%norm_3 = rms_norm(%rope_2, %norm) {eps = 1e-05} : bf16[tokens, 2, 16] | %append_1 = append(%kv, %norm_3
heads attend into_prologue t1: attention_1 is computed by attend_cluster: \
rope turns by other positions than those of the kernel's tokens
    rope(%rms_norm_1, %positions) -> rope(%rms_norm_1, %sequence)
heads attend into_prologue t1: attention_1 is computed by attend_cluster: \
queries and keys are turned by different frequencies, and the kernel has one table
    rope(%rms_norm_1, %positions) {rope = Rope( -> rope(%rms_norm_1, %positions) {rope = Rope(theta=5000.0
heads attend into_prologue t1: attention_1 is computed by attend_cluster: \
a head is held by 24 threads, which cannot sum it within one warp
    16] -> 96]
heads attend into_prologue t1: attention_1 is computed by attend_cluster: \
keys are scaled by position, and the kernel scales queries only
    {rope = Rope( -> {rope = Rope(original_max_position=8
    rope(%rms_norm_2, %positions) {rope = Rope( -> rope(%rms_norm_2, %positions) {rope = Rope(beta=0.1,
add_norm into_norm prefill: %add_1 is computed from vectors, and the kernel computes rows
    %y : bf16[tokens, 64] -> %y : bf16[64]
    %add_1 = add(%x, %y) -> %silu_1 = silu(%y) : bf16[64] | %add_1 = add(%x, %silu_1)
chain merge_pointwise t1: silu_1 is bf16[64] and mul_1 bf16[tokens, 64]: one kernel has one shape
    %x : bf16[tokens, 64] -> %x : bf16[64]
    silu(%x) : bf16[tokens, 64] -> silu(%x) : bf16[64]
chain merge_pointwise t1 (makes_a_cycle): rms_norm_1 would have to run after some of these nodes and before others, \
which become one
    stream %x -> weight %w : bf16[64] = "w" | stream %x
    %mul_1 = mul(%y, -> %rms_norm_1 = rms_norm(%silu_1, %w) {eps = 1e-05} : bf16[tokens, 64] | %mul_1 = mul(%rms_norm_1,
"""


class Refused(NamedTuple):
    """A graph that a rule leaves alone, and why; the rule is the last of `rules`. `guard`: what finds the reason."""

    rules: tuple[str, ...]
    variant: str
    guard: str
    reason: str
    graph: str


def parse_refusal(text: str) -> Refused:
    """An entry: a graph, rules, variant, guard, the reason, and what is changed in the graph (`|`: a new line)."""
    first, *changes = text.split("\n    ")
    found = re.fullmatch(r"(\w+) ([\w ]+) (\w+)(?: \((\w+)\))?: (.*)", first)
    assert found, first
    name, rules, variant, guard, reason = found.groups()
    graph = GRAPHS[name]
    for old, new in (line.split(" -> ") for line in changes):
        assert old in graph, f"{reason}: {old!r} is not in the graph"
        graph = graph.replace(old, new.replace(" | ", "\n  "))
    return Refused(tuple(rules.split()), variant, guard or "", reason, graph)


REFUSED = {each.reason: each for each in map(parse_refusal, re.split(r"\n(?=\S)", REFUSALS.strip()))}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_rule_that_is_not_applied_says_why(reason: str) -> None:
    rules, variant, _, _, graph = REFUSED[reason]
    found = outcome(graph, *(RULE[name] for name in rules), variant=variant)
    assert (rules[-1], reason) in {(r.rule, r.reason) for r in found.refused}


def test_each_rule_has_an_example_and_a_refusal() -> None:
    assert {rule for rule, *_ in EXAMPLES.values()} == set(NAMES)
    assert {refused.rules[-1] for refused in REFUSED.values()} == set(NAMES)


@pytest.mark.parametrize("reason", [reason for reason, refused in REFUSED.items() if refused.guard])
def test_without_its_guard_the_graph_is_broken(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, variant, guard, _, graph = REFUSED[reason]
    monkeypatch.setattr(match, "GUARDS", [each for each in match.GUARDS if each.__name__ != guard])
    broken = {"makes_a_cycle": "the graph has a cycle"}.get(guard, "rope_2|linear_1")
    with pytest.raises((AssertionError, KeyError), match=broken):
        outcome(graph, *(RULE[name] for name in rules), variant=variant)


def test_each_guard_is_needed_by_some_refusal() -> None:
    assert {guard.__name__ for guard in match.GUARDS} == {r.guard for r in REFUSED.values()} - {""}


# ---- what is written in place


@pytest.mark.parametrize("late", ["what comes after the block", "attention_2"])
def test_after_attend_nothing_may_read_the_cache_as_it_was(late: str) -> None:
    check_in_place(outcome(before(ATTENDED), RULE["attend"]).graph)
    last = "  return %attention_1, %attention_1.1"
    reader = (
        "  %attention_2 = attention(%q, %kv, %positions, %sequence, %query_start, %page_table) "
        "{scale = 0.25} : bf16[tokens, 4, 16]\n"
    )
    wrong = f"{last}, %kv" if late != "attention_2" else f"{reader}{last}, %attention_2"
    with pytest.raises(CompileError) as error:
        plan_block(parse_graph(after(ATTENDED).replace(last, wrong)), TARGETS["t1"])
    assert str(error.value) == (
        f"m.py:2, m.py:3: attend changes %kv in place, but {late} may read it later; "
        "use the result of attend there"
    )


def test_it_is_enough_that_one_result_of_attend_is_used() -> None:
    ahead, _, tail = after(ATTENDED).rpartition("  return %attention_1, %attention_1.1\n")
    for output in ("%attention_1", "%attention_1.1"):
        check_in_place(parse_graph(f"{ahead}  return {output}\n{tail}"))
    other = f"{ahead}  %silu_1 = silu(%q) : bf16[tokens, 4, 16]\n  return %silu_1\n{tail}"
    with pytest.raises(
        CompileError, match="attend changes %kv in place, but nothing uses its result: return it"
    ):
        plan_block(parse_graph(other), TARGETS["t1"])


# ---- matching


def test_the_library_gives_each_product_the_sum_before_it() -> None:
    text = before(SUM).replace("add(%b, %linear_1)", "add(%r, %linear_1)")
    second = "  %linear_2 = linear(%x, %w) : bf16[tokens, 96]\n  %add_2 = add(%add_1, %linear_2)"
    text = text.replace("  %add_2 = add(%r, %add_1)", second)
    found = outcome(text, RULE["into_library"], variant="prefill")
    bodies = [node.op.body for node in found.graph.calls if isinstance(node.op, Fused)]
    assert [[n.op.name for n in body.calls] for body in bodies] == [["linear", "add"], ["linear", "add"]]


def test_matches_of_the_same_nodes_that_play_other_parts_are_all_found() -> None:
    @rewrite(why="Two slices of one value, either of which may be the first.")
    def two_slices(y: Tensor, *, a: int, b: int, c: int, d: int) -> Iterator[object]:
        yield columns(y, start=a, stop=b), columns(y, start=c, stop=d)

    graph = parse_graph(before(SWIGLU))
    found = [m.attrs for node in graph.calls for m in match.find_matches(two_slices.pattern, graph, node)]
    assert found == [{"a": 0, "b": 96, "c": 96, "d": 192}, {"a": 96, "b": 192, "c": 0, "d": 96}]


def test_operands_in_two_orders_that_bind_alike_are_one_match() -> None:
    @rewrite(why="A sum of a value with itself.")
    def twice(x: Tensor) -> Iterator[object]:
        yield add(x, x)

    for operands, count in (("%x, %x", 1), ("%x, %y", 0)):
        graph = parse_graph(before(ADD_NORM).replace("add(%x, %y)", f"add({operands})"))
        assert len(list(match.find_matches(twice.pattern, graph, graph.node("add_1")))) == count


def test_products_of_different_types_are_not_merged() -> None:
    """A pair neither: one of the two would be rounded otherwise."""
    text = before(PAIR).replace("%gate_proj) : bf16", "%gate_proj) {out = 'f32'} : f32")
    text = text.replace("silu(%linear_2)", "cast(%linear_2) {to = 'bf16'}")
    assert outcome(text, RULE["merge_products"]).fired == {"merge_products": 0}


def test_a_parameter_that_a_pattern_does_not_use_is_named() -> None:
    @rewrite(why="A sum, said with one parameter too many.")
    def careless(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
        yield add(x, y)
        yield add(add(x, y), z)

    with pytest.raises(CompileError, match="rule careless: its pattern does not use z"):
        outcome(before(ADD_NORM), careless)
