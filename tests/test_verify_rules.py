"""`infernum verify` without a GPU: the package's rules pass, and rules that are wrong in many ways are caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import Tiny, graphs_only

from infernum import fusion
from infernum.bundle import Bundle
from infernum.compiler import Options
from infernum.dtypes import BF16, F32
from infernum.errors import BundleError, CompileError
from infernum.ir.block import Tensor
from infernum.ir.graph import Graph, Node, Value
from infernum.ir.kernel import Target
from infernum.ir.rewrite import Candidate, Examples, Rule, Site, rewrite
from infernum.ir.text import parse_graph, print_graph
from infernum.lab.verify.random_graphs import random_graph
from infernum.lab.verify.rule_firings import changed_part
from infernum.lab.verify.rule_meaning import compare
from infernum.lab.verify.rule_values import RuleTrial
from infernum.lab.verify.rule_verdict import RuleVerdict
from infernum.lab.verify.rules import verify_rules
from infernum.models.presets import resolve
from infernum.ops import add, append, cast, columns, linear, mul, rms_norm, silu, stack_rows


@pytest.fixture(scope="module")
def dante(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return graphs_only(resolve("dante"), Options(), tmp_path_factory.mktemp("rules") / "dante")


@pytest.fixture(scope="module")
def small(tiny: Callable[[str], Tiny]) -> Bundle:
    return tiny("plain").bundle(dtype="bfloat16")


@pytest.fixture(scope="module")
def verdicts(dante: Bundle) -> dict[str, RuleVerdict]:
    return {verdict.rule: verdict for verdict in verify_rules(dante)}


@pytest.fixture
def judge(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule], RuleVerdict]:
    """The verdict on one rule that comes before all others."""

    def judged(rule: Rule) -> RuleVerdict:
        monkeypatch.setattr(fusion, "RULES", [rule, *fusion.RULES])
        (verdict,) = verify_rules(small, [rule.name])
        return verdict

    return judged


# ---- right rules


def test_every_rule_of_the_package_passes_exactly(verdicts: dict[str, RuleVerdict]) -> None:
    assert list(verdicts) == [rule.name for rule in fusion.RULES]
    wrong = [sentence for verdict in verdicts.values() for sentence in verdict.wrong]
    assert not wrong
    assert all(verdict.ok and verdict.worst_error == 0.0 for verdict in verdicts.values())


@pytest.mark.parametrize("rule", [rule.name for rule in fusion.RULES])
def test_every_rule_of_the_package_fires_in_enough_random_graphs(
    rule: str, verdicts: dict[str, RuleVerdict]
) -> None:
    assert verdicts[rule].graphs >= 10
    assert ("never fired" in verdicts[rule].note) == (verdicts[rule].sites + verdicts[rule].graphs == 0)


def test_the_places_in_the_bundle_are_those_where_the_compiler_fired(
    dante: Bundle, verdicts: dict[str, RuleVerdict]
) -> None:
    variants = [v for block in dante.manifest.blocks.values() for v in block.values()]
    for rule, verdict in verdicts.items():
        assert verdict.sites == sum(variant.fired[rule] for variant in variants), rule


def test_the_same_bundle_gives_the_same_verdicts(small: Bundle) -> None:
    rules = ["merge_products", "into_prologue"]
    assert verify_rules(small, rules) == verify_rules(small, rules)


def test_progress_comes_to_the_end_of_every_part(small: Bundle) -> None:
    calls: list[tuple[str, int, int]] = []
    verify_rules(small, ["into_norm"], lambda *facts: calls.append(facts))
    ends = {what for what, done, total in calls if done == total}
    assert ends == {"blocks", "random graphs", "patterns"}


@rewrite(why="Distributes a product over a sum, which rounds otherwise.")
def distribute(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
    yield mul(add(x, y), z)
    yield add(mul(x, z), mul(y, z))


def test_a_right_rule_that_rounds_otherwise_passes_with_a_note(judge: Callable[[Rule], RuleVerdict]) -> None:
    verdict = judge(distribute)
    assert verdict.ok, verdict.wrong
    assert 0 < verdict.worst_error <= F32.tolerance
    assert "rounds where separate ops round otherwise" in verdict.note


@dataclass(frozen=True)
class OneSilu:
    """Of two silu of one value, the second is the first: a rule of no pattern, which reads what it did not match."""

    name: str = "one_silu"
    why: str = "The same is not computed twice."
    examples: Examples = (lambda x: (silu(x), silu(x)),)

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        del target
        same = [
            n for n in graph.calls if n.op is silu and graph.operands(n.name) == graph.operands(node.name)
        ]
        for other in same if node.op is silu else ():
            if graph.rank[other.name] > graph.rank[node.name]:
                values = {Value(other.name): Value(node.name)}
                yield Candidate(other.name, None, lambda n=other.name, v=values: graph.replaced([n], [], v))


def test_a_right_rule_that_relates_two_values_of_the_graph_passes(
    judge: Callable[[Rule], RuleVerdict],
) -> None:
    verdict = judge(OneSilu())
    assert verdict.ok, verdict.wrong
    assert verdict.graphs > 0


@rewrite(why="Never wanted.", when=lambda site: "it is never wanted")
def never(x: Tensor) -> Iterator[object]:
    yield silu(x)
    yield x


def test_a_rule_that_never_fired_says_so(judge: Callable[[Rule], RuleVerdict]) -> None:
    verdict = judge(never)
    assert verdict.ok
    assert (verdict.sites, verdict.graphs) == (0, 0)
    assert "never fired" in verdict.note


# ---- wrong rules


@rewrite(why="Activates the wrong half.")
def swapped_gate(g: Tensor, u: Tensor) -> Iterator[object]:
    yield mul(silu(g), u)
    yield mul(silu(u), g)


def _has_eps(site: Site) -> str | None:
    return None if site.match.attrs["eps"] else "there is none"


@rewrite(why="Forgets what keeps a row of zeros from becoming NaN.", when=_has_eps)
def dropped_eps(x: Tensor, weight: Tensor, *, eps: float) -> Iterator[object]:
    yield rms_norm(x, weight, eps=eps)
    yield rms_norm(x, weight, eps=0.0)


def _in_order(site: Site) -> str | None:
    return None if site.match.attrs["a"] < site.match.attrs["c"] else "the gate comes second"


@rewrite(why="Takes each half for the other.", when=_in_order)
def swapped_halves(y: Tensor, *, a: int, b: int, c: int, d: int) -> Iterator[object]:
    yield mul(silu(columns(y, start=a, stop=b)), columns(y, start=c, stop=d))
    yield mul(silu(columns(y, start=c, stop=d)), columns(y, start=a, stop=b))


@rewrite(why="Takes every bias for zero.")
def dropped_bias(x: Tensor, w: Tensor, bias: Tensor) -> Iterator[object]:
    yield add(linear(x, w), bias)
    yield linear(x, w)


@rewrite(why="Distributes, but forgets to scale an addend of another type.")
def wrong_for_mixed_types(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
    yield mul(add(x, y), z)
    yield add(mul(x, z), mul(y, z) if x.type == y.type else y)


@rewrite(why="Stacks up before gate, but takes gate first.")
def stacked_wrong(x: Tensor, gate: Tensor, up: Tensor) -> Iterator[object]:
    yield mul(silu(linear(x, gate)), linear(x, up))
    merged, rows = linear(x, stack_rows(up, gate)), int(gate.shape[0])
    yield mul(silu(columns(merged, start=0, stop=rows)), columns(merged, start=rows, stop=merged.type.width))


def _turned_keys(site: Site) -> str | None:
    return None if site.producer("k").op.name == "rope" else "the keys are not turned"


@rewrite(why="Stores values as keys.", when=_turned_keys)
def keys_for_values(
    kv: Tensor, k: Tensor, v: Tensor, positions: Tensor, sequence: Tensor, page_table: Tensor
) -> Iterator[object]:
    yield append(kv, k, v, positions, sequence, page_table)
    yield append(kv, v, k, positions, sequence, page_table)


@rewrite(why="Gives float32 where bfloat16 was.")
def wrong_dtype(x: Tensor) -> Iterator[object]:
    yield silu(x)
    yield cast(silu(x), to="f32")


@rewrite(why="Gives one column where many were.")
def wrong_shape(x: Tensor, w: Tensor) -> Iterator[object]:
    yield linear(x, w)
    yield columns(linear(x, w), start=0, stop=1)


@rewrite(why="Divides by zero.")
def raises(x: Tensor, y: Tensor) -> Iterator[object]:
    yield add(x, y)
    yield 1 // 0


@rewrite(why="Cannot be traced.")
def untraceable(x: Tensor, y: Tensor) -> Iterator[object]:
    yield add(x, y) if x.type == y.type else None
    yield add(x, y)


def _asks_for_what_is_not_there(site: Site) -> str | None:
    return str(site.type("nothing"))


@rewrite(why="Looks at an input that it has not.", when=_asks_for_what_is_not_there)
def raises_when_asked(x: Tensor, y: Tensor) -> Iterator[object]:
    yield mul(x, y)
    yield mul(x, y)


@rewrite(why="Turns a sum round, and round again.")
def endless(x: Tensor, y: Tensor) -> Iterator[object]:
    yield add(x, y)
    yield add(y, x)


@rewrite(why="Loses a few bits, which bfloat16 does not have.")
def slightly_off(x: Tensor, y: Tensor, z: Tensor) -> Iterator[object]:
    yield mul(add(x, y), z)
    yield add(mul(x, z), cast(cast(mul(y, z), to="f16"), to="bf16"))


@dataclass(frozen=True)
class LostSilu:
    """Leaves out every silu of a sum: a rule of no pattern."""

    name: str = "lost_silu"
    why: str = "Is wrong."
    examples: Examples = (lambda x, y: silu(add(x, y)),)

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        del target
        read = graph.operands(node.name)
        if node.op is silu and graph.node(read[0].node).op is add:
            values = {Value(node.name): read[0]}
            yield Candidate(node.name, None, lambda: graph.replaced([node.name], [], values))


WRONG: list[tuple[Rule, str]] = [
    (swapped_gate, "relative error"),
    (swapped_halves, "relative error"),
    (dropped_bias, "relative error"),
    (wrong_for_mixed_types, "relative error"),
    (stacked_wrong, "relative error"),
    (keys_for_values, "relative error"),
    (slightly_off, "(in float32, "),
    (LostSilu(), "relative error"),
    (dropped_eps, "in one of the two and not in the other"),
    (wrong_dtype, "is f32["),
    (wrong_shape, "1]"),
    (raises, "ZeroDivisionError: integer division or modulo by zero"),
    (raises_when_asked, "KeyError: 'nothing'"),
    (endless, "does it match what it makes?"),
]


def test_a_rule_whose_pattern_cannot_be_traced_is_caught(judge: Callable[[Rule], RuleVerdict]) -> None:
    verdict = judge(untraceable)
    assert not verdict.ok
    assert any(sentence.startswith("its pattern cannot be traced: IndexError") for sentence in verdict.wrong)


@pytest.mark.parametrize(("rule", "words"), WRONG, ids=[rule.name for rule, _ in WRONG])
def test_a_wrong_rule_is_caught_and_shown(
    rule: Rule, words: str, judge: Callable[[Rule], RuleVerdict]
) -> None:
    verdict = judge(rule)
    assert not verdict.ok
    assert not verdict.worst_error <= verdict.tolerance
    assert not any(sentence.startswith(rule.name) for sentence in verdict.wrong)
    assert words in verdict.wrong[-1]
    assert "graph " in verdict.wrong[-1]
    assert " = " in verdict.wrong[-1]


def test_what_a_wrong_rule_is_shown_with_is_small(judge: Callable[[Rule], RuleVerdict]) -> None:
    verdict = judge(swapped_gate)
    assert verdict.sites > 0 and verdict.graphs > 0
    _, before, after = verdict.wrong[-1].replace("after:\n", "before:\n").split("before:\n")
    graphs = [parse_graph(before), parse_graph(after)]
    assert [sorted(n.op.name for n in graph.calls) for graph in graphs] == [["mul", "silu"]] * 2


def test_a_rule_that_fires_in_the_bundle_is_caught_there(judge: Callable[[Rule], RuleVerdict]) -> None:
    verdict = judge(keys_for_values)
    assert any(sentence.startswith("decoder, t1, at append_1: %append_1 has") for sentence in verdict.wrong)


# ---- names


def test_an_unknown_rule_is_refused_with_a_similar_name(small: Bundle) -> None:
    with pytest.raises(CompileError, match="no rule is called 'merge_prodcuts'; did you mean merge_products"):
        verify_rules(small, ["merge_prodcuts"])


def test_a_bundle_made_with_a_rule_of_a_plugin_asks_for_the_plugin(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "RULES", [rule for rule in fusion.RULES if rule.name != "rope_append"])
    with pytest.raises(BundleError, match="with the rule 'rope_append', which is not known here"):
        verify_rules(small)


# ---- what changed

PLAIN = """\
graph g {
  stream %x : bf16[tokens, 8]
  weight %w : bf16[8, 8] = "w"
  weight %v : bf16[8] = "v"

  %linear_1 = linear(%x, %w) : bf16[tokens, 8]
  %silu_1 = silu(%linear_1) : bf16[tokens, 8]
  %add_1 = add(%silu_1, %v) : bf16[tokens, 8]
  %mul_1 = mul(%add_1, %linear_1) : bf16[tokens, 8]
  return %mul_1
}
"""


def test_only_what_changed_and_its_operands_are_compared() -> None:
    changed = PLAIN.replace("%add_1 = add(%silu_1, %v)", "%mul_2 = mul(%silu_1, %v)").replace(
        "%add_1", "%mul_2"
    )
    change = changed_part(parse_graph(PLAIN), parse_graph(changed))
    assert [n.name for n in change.before.calls] == ["add_1"]
    assert [n.name for n in change.after.calls] == ["mul_2"]
    assert {n.name for n in change.before.inputs} == {"silu_1", "v"}
    assert change.computed
    assert compare(change, BF16, [RuleTrial(1)]).wrong


def test_a_call_that_reads_another_value_has_changed() -> None:
    changed = PLAIN.replace("mul(%add_1, %linear_1)", "mul(%add_1, %x)")
    change = changed_part(parse_graph(PLAIN), parse_graph(changed))
    assert change.before is not change.after
    assert "mul_1" in [n.name for n in change.before.calls]
    assert compare(change, BF16, [RuleTrial(3)]).wrong


def test_operands_in_another_order_mean_the_same_to_the_last_bit() -> None:
    change = changed_part(parse_graph(PLAIN), parse_graph(PLAIN.replace("(%silu_1, %v)", "(%v, %silu_1)")))
    comparison = compare(change, BF16, [RuleTrial(1), RuleTrial(13)])
    assert (comparison.error, comparison.half_error, comparison.wrong, comparison.unusable) == (
        0.0,
        0.0,
        None,
        None,
    )


def test_another_number_of_outputs_is_no_change_to_compare() -> None:
    with pytest.raises(CompileError, match="returns 2 values instead of 1"):
        changed_part(parse_graph(PLAIN), parse_graph(PLAIN.replace("return %mul_1", "return %mul_1, %add_1")))


def test_weights_of_other_checkpoint_tensors_are_told_apart() -> None:
    changed = PLAIN.replace('weight %w : bf16[8, 8] = "w"', 'weight %w_2 : bf16[8, 8] = "w2"').replace(
        "%w)", "%w_2)"
    )
    change = changed_part(parse_graph(PLAIN), parse_graph(changed))
    assert compare(change, BF16, [RuleTrial(3)]).wrong


def test_random_graphs_are_the_same_every_time_and_grow() -> None:
    assert print_graph(random_graph(40, BF16)) == print_graph(random_graph(40, BF16))
    sizes = [len(random_graph(seed, BF16).calls) for seed in range(64)]
    assert np.mean(sizes[:16]) < np.mean(sizes[-16:])
