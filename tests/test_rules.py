"""Every rule: where it fires in a Llama, what it makes of a graph, and why it leaves others alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from graph_inputs import copied, random_inputs, stacked
from oracle.configs import case

from infernum.codegen.plan import plan_block
from infernum.codegen.weights import fold_weights
from infernum.dtypes import BF16, relative_error
from infernum.errors import CompileError
from infernum.fusion import RULES, select_rules
from infernum.ir import match
from infernum.ir.apply import Outcome, apply_rules
from infernum.ir.block import Tensor
from infernum.ir.fuse import decomposed
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
    "prefill": Target(90, "prefill", 65, 512, BF16),
}
RULE = {rule.name: rule for rule in RULES}
NAMES = list(RULE)


def outcome(text: str | Graph, *rules: Rule, variant: str = "t1") -> Outcome:
    graph = parse_graph(text) if isinstance(text, str) else text
    return apply_rules(graph, rules, TARGETS[variant], normalise=fold_weights)


def llama(**settings: object) -> LlamaConfig:
    return LlamaConfig.from_hf(case("plain").config | settings)


# ---- in a Llama

FEW = {"merge_qkv": 1, "attend": 1, "residual_into_gemv": 2, "norm_into_gemv": 2}
MANY = {"merge_qkv": 1, "rope_append": 1, "add_rms_norm": 1, "residual_into_gemm": 1}
PLAIN_FEW = {"merge_gate_up": 1, "swiglu_into_gemv": 1}
PLAIN_MANY = {"merge_gate_up": 1, "merge_pointwise": 1}
BIASED_FEW = {"merge_gate_up_bias": 1, "biased_swiglu_into_gemv": 1}
BIASED_MANY = {"merge_gate_up_bias": 1, "merge_pointwise": 3}

FIRED: dict[tuple[bool, bool], tuple[dict[str, int], dict[str, int]]] = {
    (False, False): (FEW | PLAIN_FEW, MANY | PLAIN_MANY),
    (True, False): (
        FEW | PLAIN_FEW | {"merge_qkv_bias": 1, "bias_into_linear": 2},
        MANY | PLAIN_MANY | {"merge_qkv_bias": 1, "bias_into_linear": 2},
    ),
    (False, True): (
        FEW | BIASED_FEW | {"bias_into_linear": 1},
        MANY | BIASED_MANY | {"bias_into_linear": 1},
    ),
    (True, True): (
        FEW | BIASED_FEW | {"merge_qkv_bias": 1, "bias_into_linear": 3},
        MANY | BIASED_MANY | {"merge_qkv_bias": 1, "bias_into_linear": 3},
    ),
}
"""Firings in one layer by (attention_bias, mlp_bias): for few tokens (t1, t8), for many (t64, prefill)."""


def firings(attention_bias: bool, mlp_bias: bool, target: Target) -> dict[str, int]:
    few, many = FIRED[attention_bias, mlp_bias]
    return dict.fromkeys(NAMES, 0) | (few if target.max_tokens <= 8 else many)


@pytest.mark.parametrize("variant", TARGETS)
@pytest.mark.parametrize(("attention_bias", "mlp_bias"), FIRED)
def test_each_rule_fires_as_often_in_a_llama_layer_as_expected(
    attention_bias: bool, mlp_bias: bool, variant: str
) -> None:
    config = llama(head_dim=32, attention_bias=attention_bias, mlp_bias=mlp_bias)
    traced = decoder.trace(config, BF16)
    expected = firings(attention_bias, mlp_bias, TARGETS[variant])
    assert outcome(traced, *RULES, variant=variant).fired == expected


def test_every_rule_fires_in_some_llama() -> None:
    found = [firings(*biases, target) for biases in FIRED for target in TARGETS.values()]
    fired = {name for counts in found for name, count in counts.items() if count}
    assert fired == set(NAMES)


@pytest.mark.parametrize("variant", TARGETS)
@pytest.mark.parametrize("block", [embed, head, greedy, sample], ids=lambda block: block.name)
def test_outside_the_layers_only_the_last_norm_is_fused_and_only_for_few_tokens(block, variant: str) -> None:
    found = outcome(block.trace(llama(), BF16), *RULES, variant=variant)
    few = block is head and variant in ("t1", "t8")
    assert {name: count for name, count in found.fired.items() if count} == (
        {"norm_into_gemv": 1} if few else {}
    )


# ---- what each rule makes of a graph

ROPE = (
    "{rope = Rope(kind='default', theta=10000.0, factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, "
    "original_max_position=0)}"
)
BATCH = """\
  batch %positions : i32[tokens]
  batch %sequence : i32[tokens]
  batch %page_table : i32[seqs, max_pages]
"""

QKV = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %q_proj : bf16[64, 64] = "q_proj.weight"
  weight %k_proj : bf16[32, 64] = "k_proj.weight"
  weight %v_proj : bf16[32, 64] = "v_proj.weight"

  %linear_1 = linear(%x, %q_proj) : bf16[tokens, 64]  # m.py:1
  %linear_2 = linear(%x, %k_proj) : bf16[tokens, 32]  # m.py:2
  %linear_3 = linear(%x, %v_proj) : bf16[tokens, 32]  # m.py:3
  %silu_1 = silu(%linear_1) : bf16[tokens, 64]  # m.py:4
  %silu_2 = silu(%linear_2) : bf16[tokens, 32]  # m.py:4
  %silu_3 = silu(%linear_3) : bf16[tokens, 32]  # m.py:4
  return %silu_1, %silu_2, %silu_3
}
"""
QKV_MERGED = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %q_k_v_proj : bf16[128, 64] = "q_proj.weight" [64, 64], "k_proj.weight" [32, 64], \
"v_proj.weight" [32, 64]

  %linear_4 = linear(%x, %q_k_v_proj) {out = ''} : bf16[tokens, 128]  # m.py:1, m.py:2, m.py:3
  %columns_1 = columns(%linear_4) {start = 0, stop = 64} : bf16[tokens, 64]  # m.py:1, m.py:2, m.py:3
  %columns_2 = columns(%linear_4) {start = 64, stop = 96} : bf16[tokens, 32]  # m.py:1, m.py:2, m.py:3
  %columns_3 = columns(%linear_4) {start = 96, stop = 128} : bf16[tokens, 32]  # m.py:1, m.py:2, m.py:3
  %silu_1 = silu(%columns_1) : bf16[tokens, 64]  # m.py:4
  %silu_2 = silu(%columns_2) : bf16[tokens, 32]  # m.py:4
  %silu_3 = silu(%columns_3) : bf16[tokens, 32]  # m.py:4
  return %silu_1, %silu_2, %silu_3
}
"""

QKV_BIAS = """\
graph g {
  stream %y : bf16[tokens, 128]
  weight %q_bias : bf16[64] = "q.bias"
  weight %k_bias : bf16[32] = "k.bias"
  weight %v_bias : bf16[32] = "v.bias"

  %columns_1 = columns(%y) {start = 0, stop = 64} : bf16[tokens, 64]  # m.py:1
  %columns_2 = columns(%y) {start = 64, stop = 96} : bf16[tokens, 32]  # m.py:1
  %columns_3 = columns(%y) {start = 96, stop = 128} : bf16[tokens, 32]  # m.py:1
  %add_1 = add(%columns_1, %q_bias) : bf16[tokens, 64]  # m.py:2
  %add_2 = add(%columns_2, %k_bias) : bf16[tokens, 32]  # m.py:2
  %add_3 = add(%columns_3, %v_bias) : bf16[tokens, 32]  # m.py:2
  %silu_1 = silu(%add_1) : bf16[tokens, 64]  # m.py:3
  %silu_2 = silu(%add_2) : bf16[tokens, 32]  # m.py:3
  %silu_3 = silu(%add_3) : bf16[tokens, 32]  # m.py:3
  return %silu_1, %silu_2, %silu_3
}
"""
QKV_BIAS_MERGED = """\
graph g {
  stream %y : bf16[tokens, 128]
  weight %q_k_v_bias : bf16[128] = "q.bias" [64], "k.bias" [32], "v.bias" [32]

  %add_4 = add(%y, %q_k_v_bias) : bf16[tokens, 128]  # m.py:1, m.py:2
  %columns_4 = columns(%add_4) {start = 0, stop = 64} : bf16[tokens, 64]  # m.py:1, m.py:2
  %columns_5 = columns(%add_4) {start = 64, stop = 96} : bf16[tokens, 32]  # m.py:1, m.py:2
  %columns_6 = columns(%add_4) {start = 96, stop = 128} : bf16[tokens, 32]  # m.py:1, m.py:2
  %silu_1 = silu(%columns_4) : bf16[tokens, 64]  # m.py:3
  %silu_2 = silu(%columns_5) : bf16[tokens, 32]  # m.py:3
  %silu_3 = silu(%columns_6) : bf16[tokens, 32]  # m.py:3
  return %silu_1, %silu_2, %silu_3
}
"""

GATE_UP = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_proj : bf16[96, 64] = "gate_proj.weight"
  weight %up_proj : bf16[96, 64] = "up_proj.weight"

  %linear_1 = linear(%x, %up_proj) : bf16[tokens, 96]  # m.py:1
  %linear_2 = linear(%x, %gate_proj) : bf16[tokens, 96]  # m.py:2
  %silu_1 = silu(%linear_2) : bf16[tokens, 96]  # m.py:3
  %mul_1 = mul(%linear_1, %silu_1) : bf16[tokens, 96]  # m.py:4
  return %mul_1
}
"""
GATE_UP_MERGED = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_up_proj : bf16[192, 64] = "gate_proj.weight" [96, 64], "up_proj.weight" [96, 64]

  %linear_3 = linear(%x, %gate_up_proj) {out = ''} : bf16[tokens, 192]  # m.py:1, m.py:2
  %columns_1 = columns(%linear_3) {start = 0, stop = 96} : bf16[tokens, 96]  # m.py:1, m.py:2, m.py:3, m.py:4
  %columns_2 = columns(%linear_3) {start = 96, stop = 192} : bf16[tokens, 96]  # m.py:1, m.py:2, m.py:3, m.py:4
  %silu_2 = silu(%columns_1) : bf16[tokens, 96]  # m.py:3
  %mul_2 = mul(%silu_2, %columns_2) : bf16[tokens, 96]  # m.py:4
  return %mul_2
}
"""

GATE_UP_BIAS = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_proj : bf16[96, 64] = "gate_proj.weight"
  weight %up_proj : bf16[96, 64] = "up_proj.weight"
  weight %gate_bias : bf16[96] = "gate_proj.bias"
  weight %up_bias : bf16[96] = "up_proj.bias"

  %linear_1 = linear(%x, %gate_proj) : bf16[tokens, 96]
  %linear_2 = linear(%x, %up_proj) : bf16[tokens, 96]
  %add_1 = add(%linear_1, %gate_bias) : bf16[tokens, 96]
  %add_2 = add(%up_bias, %linear_2) : bf16[tokens, 96]
  %silu_1 = silu(%add_1) : bf16[tokens, 96]
  %mul_1 = mul(%silu_1, %add_2) : bf16[tokens, 96]
  return %mul_1
}
"""
GATE_UP_BIAS_MERGED = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_bias : bf16[96] = "gate_proj.bias"
  weight %up_bias : bf16[96] = "up_proj.bias"
  weight %gate_up_proj : bf16[192, 64] = "gate_proj.weight" [96, 64], "up_proj.weight" [96, 64]

  %linear_3 = linear(%x, %gate_up_proj) {out = ''} : bf16[tokens, 192]
  %columns_1 = columns(%linear_3) {start = 0, stop = 96} : bf16[tokens, 96]
  %columns_2 = columns(%linear_3) {start = 96, stop = 192} : bf16[tokens, 96]
  %add_3 = add(%columns_1, %gate_bias) : bf16[tokens, 96]
  %silu_2 = silu(%add_3) : bf16[tokens, 96]
  %add_4 = add(%columns_2, %up_bias) : bf16[tokens, 96]
  %mul_2 = mul(%silu_2, %add_4) : bf16[tokens, 96]
  return %mul_2
}
"""

ROTATED = f"""\
graph g {{
  stream %q : bf16[tokens, 4, 16]
  stream %k : bf16[tokens, 2, 16]
  stream %v : bf16[tokens, 2, 16]
  state %kv : bf16[pages, 2, 2, 64, 16]
{BATCH}
  %rope_1 = rope(%q, %positions) {ROPE} : bf16[tokens, 4, 16]  # m.py:1
  %rope_2 = rope(%k, %positions) {ROPE} : bf16[tokens, 2, 16]  # m.py:1
  %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # m.py:2
  return %rope_1, %append_1
}}
"""
ROTATED_AND_STORED = f"""\
graph g {{
  stream %q : bf16[tokens, 4, 16]
  stream %k : bf16[tokens, 2, 16]
  stream %v : bf16[tokens, 2, 16]
  state %kv : bf16[pages, 2, 2, 64, 16]
{BATCH}
  %rope_1, %rope_1.1 = fused rope_append(%q = %q, %k = %k, %v = %v, %kv = %kv, %positions = %positions, \
%sequence = %sequence, %page_table = %page_table) by rope_append : \
bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {{  # m.py:1, m.py:2
    %rope_1 = rope(%q, %positions) {ROPE} : bf16[tokens, 4, 16]  # m.py:1
    %rope_2 = rope(%k, %positions) {ROPE} : bf16[tokens, 2, 16]  # m.py:1
    %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : \
bf16[pages, 2, 2, 64, 16]  # m.py:2
    return %rope_1, %append_1
  }}
  return %rope_1, %rope_1.1
}}
"""

ATTENDED = f"""\
graph g {{
  stream %q : bf16[tokens, 4, 16]
  stream %k : bf16[tokens, 2, 16]
  stream %v : bf16[tokens, 2, 16]
  state %kv : bf16[pages, 2, 2, 64, 16]
{BATCH}\
  batch %query_start : i32[seqs + 1]

  %rope_1 = rope(%q, %positions) {ROPE} : bf16[tokens, 4, 16]  # m.py:1
  %rope_2 = rope(%k, %positions) {ROPE} : bf16[tokens, 2, 16]  # m.py:1
  %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # m.py:2
  %attention_1 = attention(%rope_1, %append_1, %positions, %sequence, %query_start, %page_table) \
{{scale = 0.25}} : bf16[tokens, 4, 16]  # m.py:3
  return %attention_1, %append_1
}}
"""
ATTENDED_IN_ONE = f"""\
graph g {{
  stream %q : bf16[tokens, 4, 16]
  stream %k : bf16[tokens, 2, 16]
  stream %v : bf16[tokens, 2, 16]
  state %kv : bf16[pages, 2, 2, 64, 16]
{BATCH}\
  batch %query_start : i32[seqs + 1]

  %attention_1, %attention_1.1 = fused attend(%q = %q, %k = %k, %v = %v, %kv = %kv, %positions = %positions, \
%sequence = %sequence, %query_start = %query_start, %page_table = %page_table) by attend : \
bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {{  # m.py:1, m.py:2, m.py:3
    %rope_1 = rope(%q, %positions) {ROPE} : bf16[tokens, 4, 16]  # m.py:1
    %rope_2 = rope(%k, %positions) {ROPE} : bf16[tokens, 2, 16]  # m.py:1
    %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : \
bf16[pages, 2, 2, 64, 16]  # m.py:2
    %attention_1 = attention(%rope_1, %append_1, %positions, %sequence, %query_start, %page_table) \
{{scale = 0.25}} : bf16[tokens, 4, 16]  # m.py:3
    return %attention_1, %append_1
  }}
  return %attention_1, %attention_1.1
}}
"""

BIAS = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %w : bf16[96, 64] = "w.weight"
  weight %b : bf16[96] = "w.bias"

  %linear_1 = linear(%x, %w) : bf16[tokens, 96]  # m.py:1
  %add_1 = add(%b, %linear_1) : bf16[tokens, 96]  # m.py:2
  return %add_1
}
"""
BIAS_INSIDE = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %w : bf16[96, 64] = "w.weight"
  weight %b : bf16[96] = "w.bias"

  %add_1 = fused bias_into_linear(%x = %x, %w = %w, %b = %b) by bias_into_linear : \
bf16[tokens, 96] {  # m.py:1, m.py:2
    %linear_1 = linear(%x, %w) : bf16[tokens, 96]  # m.py:1
    %add_1 = add(%b, %linear_1) : bf16[tokens, 96]  # m.py:2
    return %add_1
  }
  return %add_1
}
"""

SWIGLU = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_up : bf16[192, 64] = "gate.weight" [96, 64], "up.weight" [96, 64]

  %linear_1 = linear(%x, %gate_up) : bf16[tokens, 192]  # m.py:1
  %columns_1 = columns(%linear_1) {start = 0, stop = 96} : bf16[tokens, 96]  # m.py:1
  %columns_2 = columns(%linear_1) {start = 96, stop = 192} : bf16[tokens, 96]  # m.py:1
  %silu_1 = silu(%columns_1) : bf16[tokens, 96]  # m.py:2
  %mul_1 = mul(%silu_1, %columns_2) : bf16[tokens, 96]  # m.py:3
  return %mul_1
}
"""
SWIGLU_INSIDE = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_up : bf16[192, 64] = "gate.weight" [96, 64], "up.weight" [96, 64]

  %mul_1 = fused swiglu_into_gemv(%x = %x, %gate_up = %gate_up) by swiglu_into_gemv : \
bf16[tokens, 96] {  # m.py:1, m.py:2, m.py:3
    %linear_1 = linear(%x, %gate_up) : bf16[tokens, 192]  # m.py:1
    %columns_1 = columns(%linear_1) {start = 0, stop = 96} : bf16[tokens, 96]  # m.py:1
    %columns_2 = columns(%linear_1) {start = 96, stop = 192} : bf16[tokens, 96]  # m.py:1
    %silu_1 = silu(%columns_1) : bf16[tokens, 96]  # m.py:2
    %mul_1 = mul(%silu_1, %columns_2) : bf16[tokens, 96]  # m.py:3
    return %mul_1
  }
  return %mul_1
}
"""

RESIDUAL = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %r : bf16[tokens, 96]
  weight %w : bf16[96, 64] = "w.weight"

  %linear_1 = linear(%x, %w) : bf16[tokens, 96]  # m.py:1
  %add_1 = add(%r, %linear_1) : bf16[tokens, 96]  # m.py:2
  return %add_1
}
"""
RESIDUAL_INSIDE = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %r : bf16[tokens, 96]
  weight %w : bf16[96, 64] = "w.weight"

  %add_1 = fused RULE(%x = %x, %w = %w, %r = %r) by RULE : bf16[tokens, 96] {  # m.py:1, m.py:2
    %linear_1 = linear(%x, %w) : bf16[tokens, 96]  # m.py:1
    %add_1 = add(%r, %linear_1) : bf16[tokens, 96]  # m.py:2
    return %add_1
  }
  return %add_1
}
"""

NORM = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %norm : bf16[64] = "norm.weight"
  weight %w : bf16[96, 64] = "w.weight"

  %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:1
  %linear_1 = linear(%rms_norm_1, %w) : bf16[tokens, 96]  # m.py:2
  return %linear_1
}
"""
NORM_INSIDE = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %norm : bf16[64] = "norm.weight"
  weight %w : bf16[96, 64] = "w.weight"

  %linear_1 = fused norm_into_gemv(%x = %x, %norm = %norm, %w = %w) by norm_into_gemv : \
bf16[tokens, 96] {  # m.py:1, m.py:2
    %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:1
    %linear_1 = linear(%rms_norm_1, %w) : bf16[tokens, 96]  # m.py:2
    return %linear_1
  }
  return %linear_1
}
"""

ADD_NORM = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %y : bf16[tokens, 64]
  weight %norm : bf16[64] = "norm.weight"

  %add_1 = add(%x, %y) : bf16[tokens, 64]  # m.py:1
  %rms_norm_1 = rms_norm(%add_1, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:2
  return %rms_norm_1, %add_1
}
"""
ADD_NORM_TOGETHER = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %y : bf16[tokens, 64]
  weight %norm : bf16[64] = "norm.weight"

  %add_1, %add_1.1 = fused add_rms_norm(%x = %x, %y = %y, %norm = %norm) by add_rms_norm : \
bf16[tokens, 64], bf16[tokens, 64] {  # m.py:1, m.py:2
    %add_1 = add(%x, %y) : bf16[tokens, 64]  # m.py:1
    %rms_norm_1 = rms_norm(%add_1, %norm) {eps = 1e-05} : bf16[tokens, 64]  # m.py:2
    return %add_1, %rms_norm_1
  }
  return %add_1.1, %add_1
}
"""

CHAIN = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %y : bf16[tokens, 64]

  %silu_1 = silu(%x) : bf16[tokens, 64]  # m.py:1
  %mul_1 = mul(%y, %silu_1) : bf16[tokens, 64]  # m.py:2
  return %silu_1, %mul_1
}
"""
CHAIN_MERGED = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %y : bf16[tokens, 64]

  %silu_1, %silu_1.1 = fused merge_pointwise(%x = %x, %y = %y) by merge_pointwise : \
bf16[tokens, 64], bf16[tokens, 64] {  # m.py:1, m.py:2
    %silu_1 = silu(%x) : bf16[tokens, 64]  # m.py:1
    %mul_1 = mul(%y, %silu_1) : bf16[tokens, 64]  # m.py:2
    return %silu_1, %mul_1
  }
  return %silu_1, %silu_1.1
}
"""

BIASED_SWIGLU_INSIDE = """\
graph g {
  stream %x : bf16[tokens, 64]
  weight %gate_bias : bf16[96] = "gate_proj.bias"
  weight %up_bias : bf16[96] = "up_proj.bias"
  weight %gate_up_proj : bf16[192, 64] = "gate_proj.weight" [96, 64], "up_proj.weight" [96, 64]

  %mul_2 = fused biased_swiglu_into_gemv(%x = %x, %gate_up_proj = %gate_up_proj, %gate_bias = %gate_bias, \
%up_bias = %up_bias) by biased_swiglu_into_gemv : bf16[tokens, 96] {
    %linear_3 = linear(%x, %gate_up_proj) {out = ''} : bf16[tokens, 192]
    %columns_1 = columns(%linear_3) {start = 0, stop = 96} : bf16[tokens, 96]
    %columns_2 = columns(%linear_3) {start = 96, stop = 192} : bf16[tokens, 96]
    %add_3 = add(%columns_1, %gate_bias) : bf16[tokens, 96]
    %silu_2 = silu(%add_3) : bf16[tokens, 96]
    %add_4 = add(%columns_2, %up_bias) : bf16[tokens, 96]
    %mul_2 = mul(%silu_2, %add_4) : bf16[tokens, 96]
    return %mul_2
  }
  return %mul_2
}
"""

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "merge_qkv": ("t1", QKV, QKV_MERGED),
    "merge_qkv_bias": ("t1", QKV_BIAS, QKV_BIAS_MERGED),
    "merge_gate_up": ("prefill", GATE_UP, GATE_UP_MERGED),
    "merge_gate_up_bias": ("prefill", GATE_UP_BIAS, GATE_UP_BIAS_MERGED),
    "attend": ("t8", ATTENDED, ATTENDED_IN_ONE),
    "rope_append": ("t64", ROTATED, ROTATED_AND_STORED),
    "bias_into_linear": ("prefill", BIAS, BIAS_INSIDE),
    "swiglu_into_gemv": ("t8", SWIGLU, SWIGLU_INSIDE),
    "biased_swiglu_into_gemv": ("t1", GATE_UP_BIAS_MERGED, BIASED_SWIGLU_INSIDE),
    "residual_into_gemv": ("t1", RESIDUAL, RESIDUAL_INSIDE.replace("RULE", "residual_into_gemv")),
    "norm_into_gemv": ("t8", NORM, NORM_INSIDE),
    "add_rms_norm": ("prefill", ADD_NORM, ADD_NORM_TOGETHER),
    "residual_into_gemm": ("t64", RESIDUAL, RESIDUAL_INSIDE.replace("RULE", "residual_into_gemm")),
    "merge_pointwise": ("prefill", CHAIN, CHAIN_MERGED),
}
"""For each rule: the variant, a graph before it, and the graph after it."""


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_makes_of_its_example_what_is_stated(name: str) -> None:
    assert name in EXAMPLES, f"the rule {name} has no example in EXAMPLES"
    variant, before, after = EXAMPLES[name]
    found = outcome(before, RULE[name], variant=variant)
    assert found.fired == {name: 1}
    assert print_graph(found.graph) == after


@pytest.mark.parametrize("variant", TARGETS)
def test_few_tokens_attend_in_one_and_many_are_only_turned_and_stored(variant: str) -> None:
    found = outcome(ATTENDED, RULE["attend"], RULE["rope_append"], variant=variant)
    few = variant in ("t1", "t8")
    assert found.fired == {"attend": few, "rope_append": not few}


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_keeps_the_meaning_of_its_example(name: str) -> None:
    variant, before, _ = EXAMPLES[name]
    plain, inputs = parse_graph(before), random_inputs(parse_graph(before))
    made = outcome(plain, RULE[name], variant=variant).graph
    wanted = interpret(plain, copied(inputs))
    for graph in (made, decomposed(made), parse_graph(print_graph(made))):
        for out, ref in zip(interpret(graph, stacked(graph, plain, inputs)), wanted, strict=True):
            assert np.array_equal(out, ref), relative_error(out, ref)


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_says_in_one_line_why_it_exists(name: str) -> None:
    why = RULE[name].why
    assert why.endswith(".") and "\n" not in why and 20 < len(why) < 130


# ---- what is switched on and off


def names_of(rules: list[Rule]) -> list[str]:
    return [rule.name for rule in rules]


def test_rules_are_named_once() -> None:
    assert len(set(NAMES)) == len(RULES)


def test_all_rules_are_chosen_with_fuse_and_none_without() -> None:
    assert select_rules(True) == RULES
    assert select_rules(False) == []


def test_single_rules_are_switched_on_and_off_and_keep_their_order() -> None:
    without = names_of(select_rules(True, ["-merge_qkv", "-rope_append"]))
    assert without == [n for n in NAMES if n not in ("merge_qkv", "rope_append")]
    assert names_of(select_rules(False, ["+norm_into_gemv", "+merge_qkv"])) == ["merge_qkv", "norm_into_gemv"]
    assert names_of(select_rules(False, ["+merge_qkv", "-merge_qkv"])) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+merge_qvk", "--rules: no rule is called 'merge_qvk'; did you mean merge_qkv?"),
        ("-zzz", f"--rules: no rule is called 'zzz'; the rules are {', '.join(NAMES)}"),
        ("merge_qkv", "--rules: 'merge_qkv' should be +name or -name"),
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
        outcome(ADD_NORM, turn_round)


# ---- refusals

WHEN, HOST, GUARD_READS, GUARD_USED, GUARD_CYCLE = (
    "when",
    "host",
    "reads_itself",
    "is_used_outside",
    "makes_a_cycle",
)
GUARDS = (GUARD_READS, GUARD_USED, GUARD_CYCLE)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A graph that a rule leaves alone, the reason it gives, and what gives it: a guard, `when` or `host`."""

    rule: str
    source: str
    reason: str
    graph: str
    variant: str = "t1"
    first: tuple[str, ...] = ()  # rules applied before


REFUSALS = {
    "an interior value is used twice": Refusal(
        "rope_append",
        GUARD_USED,
        "%rope_2 would be gone, but flatten_1 reads it too",
        ROTATED.replace(
            "  return %rope_1, %append_1",
            "  %flatten_1 = flatten(%rope_2) : bf16[tokens, 32]\n  return %rope_1, %append_1, %flatten_1",
        ),
    ),
    "a host's result is used twice": Refusal(
        "residual_into_gemv",
        GUARD_USED,
        "%linear_1 would be gone, but silu_1 reads it too",
        RESIDUAL.replace(
            "  return %add_1", "  %silu_1 = silu(%linear_1) : bf16[tokens, 96]\n  return %add_1, %silu_1"
        ),
    ),
    "an interior value is an output": Refusal(
        "residual_into_gemv",
        GUARD_USED,
        "%linear_1 would be gone, but the block returns it",
        RESIDUAL.replace("return %add_1", "return %add_1, %linear_1"),
    ),
    "an interior value of a rewrite is an output": Refusal(
        "merge_gate_up",
        GUARD_USED,
        "%silu_1 would be gone, but the block returns it",
        GATE_UP.replace("return %mul_1", "return %mul_1, %silu_1"),
    ),
    "an input of the pattern is computed inside it": Refusal(
        "residual_into_gemv",
        GUARD_READS,
        "%linear_1 is read by the pattern and computed by the nodes it would replace",
        RESIDUAL.replace("add(%r, %linear_1)", "add(%linear_1, %linear_1)"),
    ),
    "the contracted graph would have a cycle": Refusal(
        "rope_append",
        GUARD_CYCLE,
        "flatten_1, columns_1, heads_1 would have to run after some of these nodes and before others, which become one",
        ROTATED.replace(
            "  %append_1 = append(%kv, %rope_2, %v,",
            "  %flatten_1 = flatten(%rope_1) : bf16[tokens, 64]\n"
            "  %columns_1 = columns(%flatten_1) {start = 0, stop = 32} : bf16[tokens, 32]\n"
            "  %heads_1 = heads(%columns_1) {dim = 16} : bf16[tokens, 2, 16]\n"
            "  %append_1 = append(%kv, %rope_2, %heads_1,",
        ),
    ),
    "a bias is not a vector": Refusal(
        "bias_into_linear", WHEN, "the addend %r is bf16[tokens, 96]: a residual, not a bias vector", RESIDUAL
    ),
    "the library adds a bias already": Refusal(
        "bias_into_linear",
        HOST,
        "the library adds one vector to add_1, and that is a bf16[96] already",
        BIAS.replace("  return %add_1", "  %add_2 = add(%add_1, %b) : bf16[tokens, 96]\n  return %add_2"),
        "t64",
        first=("bias_into_linear",),
    ),
    "a residual is a vector": Refusal(
        "residual_into_gemv",
        WHEN,
        "the addend %b is bf16[96], but the product %linear_1 is bf16[tokens, 96]: a residual has its type",
        BIAS,
    ),
    "a product is left to the library": Refusal(
        "residual_into_gemv",
        HOST,
        "linear_1 runs as a library product at up to 64 tokens; a GEMV serves at most 8",
        RESIDUAL,
        "t64",
    ),
    "a norm's product is left to the library": Refusal(
        "norm_into_gemv",
        HOST,
        "linear_1 runs as a library product at up to 512 tokens; a GEMV serves at most 8",
        NORM,
        "prefill",
    ),
    "a product is computed by the GEMV": Refusal(
        "residual_into_gemm", HOST, "linear_1 runs as a GEMV for the variant t8", RESIDUAL, "t8"
    ),
    "a library's residual is a vector": Refusal(
        "residual_into_gemm",
        WHEN,
        "the addend %b is bf16[96], but the product %linear_1 is bf16[tokens, 96]: a residual has its type",
        BIAS,
        "t64",
    ),
    "the library adds a residual already": Refusal(
        "residual_into_gemm",
        HOST,
        "the library adds one matrix to add_1, and that is a bf16[tokens, 96] already",
        RESIDUAL.replace("  return %add_1", "  %add_2 = add(%add_1, %r) : bf16[tokens, 96]\n  return %add_2"),
        "t64",
        first=("residual_into_gemm",),
    ),
    "normalised rows do not fit in shared memory": Refusal(
        "norm_into_gemv",
        WHEN,
        "8 normalised rows of 8192 need 128 KiB of shared memory, over 96 KiB: room for 6",
        NORM.replace("64]", "8192]"),
        "t8",
    ),
    "a norm is read as the residual": Refusal(
        "norm_into_gemv",
        WHEN,
        "%rms_norm_1 is read by add_1 otherwise than as the rows that add_1 multiplies",
        NORM.replace("bf16[96", "bf16[64")
        .replace("tokens, 96", "tokens, 64")
        .replace(
            "  return %linear_1", "  %add_1 = add(%rms_norm_1, %linear_1) : bf16[tokens, 64]\n  return %add_1"
        ),
        first=("residual_into_gemv",),
    ),
    "gate and up are swapped": Refusal(
        "swiglu_into_gemv",
        WHEN,
        "gate is columns 96:192 and up 0:96 of bf16[tokens, 192], not its first and second half: stack gate before up",
        SWIGLU.replace("silu(%columns_1)", "silu(%columns_2)").replace(
            "%silu_1, %columns_2", "%silu_1, %columns_1"
        ),
    ),
    "gate and up are of a library product": Refusal(
        "swiglu_into_gemv",
        HOST,
        "linear_1 runs as a library product at up to 64 tokens; a GEMV serves at most 8",
        SWIGLU,
        "t64",
    ),
    "gate and up are not of the sum itself": Refusal(
        "swiglu_into_gemv",
        HOST,
        "add_1 applies add to its sum already, and SwiGLU takes columns of the bare sum",
        SWIGLU.replace("%columns_1 = columns(%linear_1)", "%columns_1 = columns(%add_1)")
        .replace("%columns_2 = columns(%linear_1)", "%columns_2 = columns(%add_1)")
        .replace("  %columns_1 =", "  %add_1 = add(%linear_1, %b) : bf16[tokens, 192]\n  %columns_1 =")
        .replace("\n\n", '\n  weight %b : bf16[192] = "b.bias"\n\n'),
        first=("bias_into_linear",),
    ),
    "biased gate and up are swapped": Refusal(
        "biased_swiglu_into_gemv",
        WHEN,
        "gate is columns 96:192 and up 0:96 of bf16[tokens, 192], not its first and second half: stack gate before up",
        GATE_UP_BIAS_MERGED.replace("add(%columns_1,", "add(%columns_3,")
        .replace("add(%columns_2,", "add(%columns_1,")
        .replace("%columns_3", "%columns_2"),
    ),
    "biased gate and up are of a library product": Refusal(
        "biased_swiglu_into_gemv",
        HOST,
        "linear_3 runs as a library product at up to 64 tokens; a GEMV serves at most 8",
        GATE_UP_BIAS_MERGED,
        "t64",
    ),
    "gate and up have different widths": Refusal(
        "merge_gate_up",
        WHEN,
        "gate is bf16[48, 64] and up bf16[96, 64]: stacked projections have one width",
        GATE_UP.replace("gate_proj : bf16[96, 64]", "gate_proj : bf16[48, 64]"),
    ),
    "a gate is not a weight": Refusal(
        "merge_gate_up",
        WHEN,
        "gate is %gate_proj, computed in each step: only weights can be stacked when a checkpoint is loaded",
        GATE_UP.replace(
            'weight %gate_proj : bf16[96, 64] = "gate_proj.weight"', "stream %gate_proj : bf16[96, 64]"
        ),
    ),
    "a gate's bias is not a vector": Refusal(
        "merge_gate_up_bias",
        WHEN,
        "gate_bias is bf16[tokens, 96], not a vector",
        GATE_UP_BIAS.replace(
            'weight %gate_bias : bf16[96] = "gate_proj.bias"', "stream %gate_bias : bf16[tokens, 96]"
        ),
    ),
    "a key projection is not a weight": Refusal(
        "merge_qkv",
        WHEN,
        "k is %k_proj, computed in each step: only weights can be stacked when a checkpoint is loaded",
        QKV.replace('weight %k_proj : bf16[32, 64] = "k_proj.weight"', "stream %k_proj : bf16[32, 64]"),
    ),
    "a product is an output": Refusal(
        "merge_qkv",
        WHEN,
        "%linear_2 is an output of the block, which columns of a merged product cannot be",
        QKV.replace("return %silu_1", "return %linear_2, %silu_1"),
    ),
    "columns do not cover a product": Refusal(
        "merge_qkv_bias",
        WHEN,
        "columns [(0, 64), (64, 96), (96, 128)] do not cover %y: bf16[tokens, 160]",
        QKV_BIAS.replace("%y : bf16[tokens, 128]", "%y : bf16[tokens, 160]"),
    ),
    "a bias of q, k or v is not a vector": Refusal(
        "merge_qkv_bias",
        WHEN,
        "v_bias is bf16[tokens, 32], not a vector",
        QKV_BIAS.replace('weight %v_bias : bf16[32] = "v.bias"', "stream %v_bias : bf16[tokens, 32]"),
    ),
    "a bias of q, k or v is not a weight": Refusal(
        "merge_qkv_bias",
        WHEN,
        "v_bias is %v_bias, computed in each step: only weights can be stacked when a checkpoint is loaded",
        QKV_BIAS.replace('weight %v_bias : bf16[32] = "v.bias"', "stream %v_bias : bf16[32]"),
    ),
    "queries and keys have different head sizes": Refusal(
        "rope_append",
        WHEN,
        "q is bf16[tokens, 2, 32] and k bf16[tokens, 2, 16]: one kernel has one head size",
        ROTATED.replace("[tokens, 4, 16]", "[tokens, 2, 32]"),
    ),
    "queries and keys that attend have different head sizes": Refusal(
        "attend",
        WHEN,
        "q is bf16[tokens, 2, 32] and k bf16[tokens, 2, 16]: one kernel has one head size",
        ATTENDED.replace("[tokens, 4, 16]", "[tokens, 2, 32]"),
    ),
    "new keys of many tokens": Refusal(
        "attend",
        WHEN,
        "k is bf16[tokens, 2, 16]: a block holds the new keys of up to 8 tokens, and a step has up to 64",
        ATTENDED,
        "t64",
    ),
    "pairs of a head do not divide the threads": Refusal(
        "attend",
        WHEN,
        "k is bf16[tokens, 2, 80]: threads do not share out the 40 pairs of a head evenly",
        ATTENDED.replace(", 16]", ", 80]"),
        "t8",
    ),
    "a key is read besides": Refusal(
        "attend",
        GUARD_USED,
        "%rope_2 would be gone, but flatten_1 reads it too",
        ATTENDED.replace(
            "  return %attention_1, %append_1",
            "  %flatten_1 = flatten(%rope_2) : bf16[tokens, 32]\n  return %attention_1, %append_1, %flatten_1",
        ),
    ),
    "a vector is added before a norm": Refusal(
        "add_rms_norm",
        WHEN,
        "x is bf16[tokens, 64] and the residual bf16[64]: they are added row by row",
        ADD_NORM.replace("stream %y : bf16[tokens, 64]", 'weight %y : bf16[64] = "y.bias"'),
    ),
    "pointwise ops have different shapes": Refusal(
        "merge_pointwise",
        "",
        "silu_1 is bf16[64] and mul_1 bf16[tokens, 64]: one kernel has one shape",
        CHAIN.replace("%x : bf16[tokens, 64]", "%x : bf16[64]").replace(
            "silu(%x) : bf16[tokens, 64]", "silu(%x) : bf16[64]"
        ),
    ),
    "pointwise ops would make a cycle": Refusal(
        "merge_pointwise",
        GUARD_CYCLE,
        "rms_norm_1 would have to run after some of these nodes and before others, which become one",
        CHAIN.replace("mul(%y, %silu_1)", "mul(%rms_norm_1, %silu_1)")
        .replace(
            "  %mul_1",
            "  %rms_norm_1 = rms_norm(%silu_1, %w) {eps = 1e-05} : bf16[tokens, 64]\n  %mul_1",
        )
        .replace("\n\n", '\n  weight %w : bf16[64] = "w"\n\n'),
    ),
}


def reasons(refusal: Refusal, rule: Rule) -> list[str]:
    """The reasons that `rule` gives at every place where it matches; empty where it may be applied."""
    graph = outcome(refusal.graph, *(RULE[name] for name in refusal.first), variant=refusal.variant).graph
    found = [c.reason for c in rule.candidates(graph, TARGETS[refusal.variant])]
    assert found, "the rule does not match at all"
    return [reason or "" for reason in found]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_rule_that_is_not_applied_says_why(name: str) -> None:
    refusal = REFUSALS[name]
    rules = [RULE[rule] for rule in (*refusal.first, refusal.rule)]
    found = outcome(refusal.graph, *rules, variant=refusal.variant)
    assert (refusal.rule, refusal.reason) in {(r.rule, r.reason) for r in found.refused}


@pytest.mark.parametrize("name", [n for n, r in REFUSALS.items() if r.source])
def test_without_the_guard_or_condition_the_refusal_is_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = REFUSALS[name]
    rule = RULE[refusal.rule]
    assert refusal.reason in reasons(refusal, rule)
    if refusal.source in GUARDS:
        left = tuple(guard for guard in match.GUARDS if guard.__name__ != refusal.source)
        assert len(left) == len(match.GUARDS) - 1
        monkeypatch.setattr(match, "GUARDS", left)
    else:
        rule = dataclasses.replace(rule, **{refusal.source: lambda *_: None})  # pyright: ignore[reportArgumentType]
    assert refusal.reason not in reasons(refusal, rule)


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed_by_some_refusal(guard: str) -> None:
    assert guard in {refusal.source for refusal in REFUSALS.values()}


@pytest.mark.parametrize("name", NAMES)
def test_each_condition_of_a_rule_has_a_refusal(name: str) -> None:
    sources = {refusal.source for refusal in REFUSALS.values() if refusal.rule == name}
    conditions = {field for field in (WHEN, HOST) if hasattr(RULE[name], field)}
    assert conditions <= sources, f"{name}: no refusal shows {conditions - sources}"


def test_without_the_cycle_guard_the_contraction_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "GUARDS", [g for g in match.GUARDS if g is not match.makes_a_cycle])
    with pytest.raises(AssertionError, match="the graph has a cycle"):
        outcome(REFUSALS["the contracted graph would have a cycle"].graph, RULE["rope_append"])


def test_without_the_guard_on_uses_a_read_value_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "GUARDS", [g for g in match.GUARDS if g is not match.is_used_outside])
    with pytest.raises((AssertionError, KeyError), match="linear_1"):
        outcome(REFUSALS["a host's result is used twice"].graph, RULE["residual_into_gemv"])


def test_without_the_guard_on_inputs_a_rewrite_reads_what_it_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    @rewrite(why="x + (x + y) is (x + x) + y; the match may bind an addend to what it computes.")
    def reassociate(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
        inner = add(x, y)
        yield inner, add(inner, z)
        yield add(y, x), add(add(z, x), y)

    text = ADD_NORM.replace(
        "add(%x, %y) : bf16[tokens, 64]  # m.py:1", "add(%x, %y) : bf16[tokens, 64]"
    ).replace("rms_norm(%add_1, %norm) {eps = 1e-05}", "add(%add_1, %add_1)")
    text = text.replace("rms_norm_1", "add_2")
    target = TARGETS["t1"]
    candidates = list(reassociate.candidates(parse_graph(text), target))
    assert [c.reason for c in candidates] == [
        "%add_1 is read by the pattern and computed by the nodes it would replace"
    ] * len(candidates)
    monkeypatch.setattr(match, "GUARDS", [g for g in match.GUARDS if g is not match.reads_itself])
    open_to_all = [c for c in reassociate.candidates(parse_graph(text), target) if c.reason is None]
    with pytest.raises((AssertionError, KeyError), match="add_1"):
        open_to_all[0].apply()


# ---- what is written in place

LATE = """\
  %attention_2 = attention(%q, %kv, %positions, %sequence, %query_start, %page_table) \
{scale = 0.25} : bf16[tokens, 4, 16]  # m.py:4
"""


@pytest.mark.parametrize("of", ["kv", "kept"])
def test_after_attend_nothing_may_read_the_cache_as_it_was(of: str) -> None:
    made = print_graph(outcome(ATTENDED, RULE["attend"]).graph)
    check_in_place(parse_graph(made))
    if of == "kept":
        wrong, late = (
            made.replace("return %attention_1, %attention_1.1", "return %kv, %attention_1, %attention_1.1"),
            "what comes after the block",
        )
    else:
        wrong = made.replace(
            "  return %attention_1, %attention_1.1",
            f"{LATE}  return %attention_2, %attention_1, %attention_1.1",
        )
        late = "attention_2"
    with pytest.raises(CompileError) as error:
        plan_block(parse_graph(wrong), TARGETS["t1"])
    assert str(error.value) == (
        f"m.py:1, m.py:2, m.py:3: attend changes %kv in place, but {late} may read it later; "
        "use the result of attend there"
    )


def test_it_is_enough_that_one_result_of_attend_is_used() -> None:
    made = print_graph(outcome(ATTENDED, RULE["attend"]).graph)
    whole, *outputs = "return %attention_1, %attention_1.1\n", "%attention_1", "%attention_1.1"
    head, _, tail = made.rpartition(f"  {whole}")
    for output in outputs:
        check_in_place(parse_graph(f"{head}  return {output}\n{tail}"))
    other = (
        head.replace("%q :", "%z : bf16[tokens, 64]\n  stream %q :")
        + "  %silu_1 = silu(%z) : bf16[tokens, 64]\n"
    )
    with pytest.raises(
        CompileError, match="attend changes %kv in place, but nothing uses its result: return it"
    ):
        plan_block(parse_graph(f"{other}  return %silu_1\n{tail}"), TARGETS["t1"])


# ---- matching


@pytest.mark.parametrize("turned", [False, True])
def test_an_addition_matches_in_both_orders(turned: bool) -> None:
    text = RESIDUAL.replace("add(%r, %linear_1)", "add(%linear_1, %r)") if turned else RESIDUAL
    assert outcome(text, RULE["residual_into_gemv"]).fired["residual_into_gemv"] == 1


def test_a_parallel_block_gives_each_product_the_sum_before_it() -> None:
    text = """\
graph g {
  stream %x : bf16[tokens, 64]
  stream %h : bf16[tokens, 64]
  weight %a : bf16[64, 64] = "a.weight"
  weight %b : bf16[64, 64] = "b.weight"

  %linear_1 = linear(%h, %a) : bf16[tokens, 64]
  %linear_2 = linear(%h, %b) : bf16[tokens, 64]
  %add_1 = add(%x, %linear_1) : bf16[tokens, 64]
  %add_2 = add(%add_1, %linear_2) : bf16[tokens, 64]
  return %add_2
}
"""
    found = outcome(text, *RULES, variant="prefill")
    assert found.fired["residual_into_gemm"] == 2
    bodies = [node.op.body for node in found.graph.calls if isinstance(node.op, Fused)]
    assert [[n.op.name for n in body.calls] for body in bodies] == [["linear", "add"], ["linear", "add"]]


def test_matches_of_the_same_nodes_that_play_other_parts_are_all_found() -> None:
    @rewrite(why="Two slices of one value, either of which may be the first.")
    def two_slices(y: Tensor, *, a: int, b: int, c: int, d: int) -> Iterator[object]:
        yield columns(y, start=a, stop=b), columns(y, start=c, stop=d)

    found = match.find_matches(two_slices.pattern, parse_graph(SWIGLU))
    assert [m.attrs for m in found] == [
        {"a": 0, "b": 96, "c": 96, "d": 192},
        {"a": 96, "b": 192, "c": 0, "d": 96},
    ]


def test_operands_in_two_orders_that_bind_alike_are_one_match() -> None:
    @rewrite(why="A sum of a value with itself.")
    def twice(x: Tensor) -> Iterator[object]:
        yield add(x, x)

    text = ADD_NORM.replace("add(%x, %y)", "add(%x, %x)")
    assert len(list(match.find_matches(twice.pattern, parse_graph(text)))) == 1
    assert not list(match.find_matches(twice.pattern, parse_graph(ADD_NORM)))


def test_a_product_of_another_result_type_is_not_merged() -> None:
    text = QKV.replace("linear(%x, %k_proj)", "linear(%x, %k_proj) {out = 'f32'}")
    assert outcome(text, RULE["merge_qkv"]).fired == {"merge_qkv": 0}


def test_a_parameter_that_a_pattern_does_not_use_is_named() -> None:
    @rewrite(why="A sum, said with one parameter too many.")
    def careless(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
        yield add(x, y)
        yield add(add(x, y), z)

    with pytest.raises(CompileError, match="rule careless: its pattern does not use z"):
        outcome(ADD_NORM, careless)
