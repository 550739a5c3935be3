"""The text form of graphs: what is printed, that it reads back as the same graph, and what is refused."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from infernum.dtypes import BF16, F32, I32
from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.op import OPS, Fused, op, pointwise
from infernum.ir.text import parse_graph, print_graph
from infernum.recipes import Stack, read
from infernum.rope import Rope

ROWS = TensorType(("tokens", 64), BF16)


@pointwise("{a} + {b}", commutative=True)
def text_add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


@op("tokens width, width -> tokens width")
def text_norm(x: np.ndarray, weight: np.ndarray, *, eps: Any) -> np.ndarray:
    return x * weight


@op("tokens width -> tokens width, tokens", results=("out", "total"))
def text_halves(x: np.ndarray, *, rope: Any = None) -> tuple[np.ndarray, np.ndarray]:
    return x, x.sum(-1)


MINE = [OPS.pop(mine.name) for mine in (text_add, text_norm, text_halves)]
"""The ops of this file, registered only while its tests run: other tests go through the whole registry."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for mine in MINE:
        monkeypatch.setitem(OPS, mine.name, mine)


def inputs() -> list[tuple[Node, tuple[Value, ...]]]:
    qkv = Stack(
        (
            read("model.layers.{layer}.q_proj.weight", 64, 64),
            read("model.layers.{layer}.k_proj.weight", 32, 64),
        )
    )
    norm = read("model.layers.{layer}.norm.weight", 64)
    return [
        (Node("x", Input("stream"), (ROWS,)), ()),
        (Node("query_start", Input("batch"), (TensorType(("seqs + 1",), I32),)), ()),
        (Node("grid", Input("batch"), (TensorType(("ceildiv(tokens, min(64, seqs)) * 2",), I32),)), ()),
        (Node("kv", Input("state"), (TensorType(("pages", 2, 8, 64, 64), BF16),)), ()),
        (Node("qkv", Input("weight", qkv), (TensorType((96, 64), BF16),)), ()),
        (Node("norm", Input("weight", norm), (TensorType((64,), BF16),)), ()),
    ]


def plain_graph() -> Graph:
    halves = (ROWS, TensorType(("tokens",), BF16))
    rope = Rope("llama3", 500000.0, 8.0, 1.0, 4.0, 8192)
    calls = [
        (
            Node("text_norm_1", text_norm, (ROWS,), {"eps": 1e-05}, ("models/llama.py:41",)),
            (Value("x"), Value("norm")),
        ),
        (Node("halves", text_halves, halves, {"rope": rope}), (Value("text_norm_1"),)),
        (
            Node("text_add_1", text_add, (ROWS,), {}, ("models/llama.py:42", "models/llama.py:43")),
            (Value("x"), Value("halves")),
        ),
    ]
    return Graph.build("decoder", [*inputs(), *calls], [Value("text_add_1"), Value("halves", 1)])


PLAIN = """\
graph decoder {
  stream %x : bf16[tokens, 64]
  batch %query_start : i32[seqs + 1]
  batch %grid : i32[ceildiv(tokens, min(64, seqs)) * 2]
  state %kv : bf16[pages, 2, 8, 64, 64]
  weight %qkv : bf16[96, 64] = "model.layers.{layer}.q_proj.weight" [64, 64], \
"model.layers.{layer}.k_proj.weight" [32, 64]
  weight %norm : bf16[64] = "model.layers.{layer}.norm.weight"

  %text_norm_1 = text_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:41
  %halves, %halves.1 = text_halves(%text_norm_1) {rope = Rope(kind='llama3', theta=500000.0, factor=8.0, \
original_max_position=8192)} : bf16[tokens, 64], bf16[tokens]
  %text_add_1 = text_add(%x, %halves) : bf16[tokens, 64]  # models/llama.py:42, models/llama.py:43
  return %text_add_1, %halves.1
}
"""


def fused_graph() -> Graph:
    """A fusion within a fusion, whose operands are a second result and one value twice."""
    two = (ROWS, ROWS)
    inner_body = Graph.build(
        "inner",
        [
            (Node("p", Input("stream"), (ROWS,)), ()),
            (Node("sum", text_add, (ROWS,), {}, ("a.py:1",)), (Value("p"), Value("p"))),
        ],
        [Value("sum")],
    )
    outer_body = Graph.build(
        "outer",
        [
            (Node("a", Input("stream"), (ROWS,)), ()),
            (Node("b", Input("stream"), (ROWS,)), ()),
            (Node("total", Input("stream"), (TensorType(("tokens",), BF16),)), ()),
            (Node("inside", Fused("inner", inner_body, ("merge-2",)), (ROWS,)), (Value("a"),)),
            (Node("text_add_1", text_add, (ROWS,)), (Value("inside"), Value("b"))),
        ],
        [Value("text_add_1"), Value("inside")],
    )
    fused = Node("both", Fused("outer", outer_body, ("first", "second")), two, {}, ("a.py:1", "a.py:2"))
    entries = [
        (Node("x", Input("stream"), (ROWS,)), ()),
        (Node("halves", text_halves, (ROWS, TensorType(("tokens",), BF16)), {"rope": None}), (Value("x"),)),
        (fused, (Value("x"), Value("x"), Value("halves", 1))),
    ]
    return Graph.build("block", entries, [Value("both", 1)])


FUSED = """\
graph block {
  stream %x : bf16[tokens, 64]

  %halves, %halves.1 = text_halves(%x) : bf16[tokens, 64], bf16[tokens]
  %both, %both.1 = fused outer(%a = %x, %b = %x, %total = %halves.1) by first, second : \
bf16[tokens, 64], bf16[tokens, 64] {  # a.py:1, a.py:2
    %inside = fused inner(%p = %a) by merge-2 : bf16[tokens, 64] {
      %sum = text_add(%p, %p) : bf16[tokens, 64]  # a.py:1
      return %sum
    }
    %text_add_1 = text_add(%inside, %b) : bf16[tokens, 64]
    return %text_add_1, %inside
  }
  return %both.1
}
"""


def facts(graph: Graph) -> Any:
    """Everything that a graph says, bodies of fusions included, for comparison."""

    def node(n: Node) -> Any:
        what = (n.op.name, n.op.rules, facts(n.op.body)[1:]) if isinstance(n.op, Fused) else n.op
        return n.name, what, n.types, dict(n.attrs), n.where, graph.operands(n.name)

    return graph.name, [node(n) for n in graph.inputs], [node(n) for n in graph.calls], graph.outputs


def one_call(attrs: str) -> str:
    call = f"%y = text_norm(%x, %w){attrs} : f32[4]"
    return f"graph g {{\n  stream %x : f32[4]\n  stream %w : f32[4]\n\n  {call}\n  return %y\n}}\n"


@pytest.mark.parametrize(("graph", "text"), [(plain_graph(), PLAIN), (fused_graph(), FUSED)])
def test_a_graph_prints_as_stated_and_reads_back_the_same(graph: Graph, text: str) -> None:
    assert print_graph(graph) == text
    assert facts(parse_graph(text)) == facts(graph)
    assert print_graph(parse_graph(text)) == text


VALUES = [
    None,
    True,
    -3,
    1e-05,
    -0.125,
    math.inf,
    -math.inf,
    "a # } ' \" \n \\ = %x",
    "",
    (1,),
    (),
    [1, ("x", 2.5)],
    [],
    Rope(),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_attributes_read_back_as_the_same_value_and_type(value: Any) -> None:
    operands = [(Node(n, Input("stream"), (TensorType((4,), F32),)), ()) for n in "xw"]
    call = Node("y", text_norm, (TensorType((4,), F32),), {"eps": value}, ("f.py:1",))
    graph = Graph.build("g", [*operands, (call, (Value("x"), Value("w")))], [Value("y")])
    read = parse_graph(print_graph(graph)).node("y")
    assert read == call
    assert type(read.attrs["eps"]) is type(value)


def test_an_untyped_pattern_prints_without_types_and_reads_back() -> None:
    text = "graph pattern {\n  stream %a\n\n  %s = text_add(%a, %a)\n  return %s\n}\n"
    assert print_graph(parse_graph(text)) == text


def test_a_graph_that_only_passes_its_input_on_reads_back() -> None:
    text = "graph g {\n  stream %a : f32[]\n\n  return %a\n}\n"
    graph = parse_graph(text)
    assert graph.outputs == (Value("a"),)
    assert graph.type(Value("a")).shape == ()
    assert print_graph(graph) == text


def test_inputs_declared_after_calls_are_printed_first_and_the_text_is_stable() -> None:
    entries = plain_graph().entries()
    moved = [*entries[1:6], entries[0], *entries[6:]]
    graph = Graph.build("decoder", [*moved[6:], *moved[:6]], plain_graph().outputs)
    text = print_graph(graph)
    assert text.index("%x :") < text.index("%text_norm_1 =")
    assert print_graph(parse_graph(text)) == text


def test_blank_lines_comments_and_indentation_do_not_matter() -> None:
    loose = textwrap.dedent(PLAIN).replace("\n", "\n\n   # a remark\n")
    assert [n.name for n in parse_graph(loose).nodes] == [n.name for n in parse_graph(PLAIN).nodes]


@dataclass(frozen=True)
class Unknown:
    size: int = 1


@pytest.mark.parametrize("value", [Unknown(), np.float32(1), {"a": 1}, np.zeros(2)])
def test_an_attribute_that_could_not_be_read_back_is_not_printed(value: Any) -> None:
    call = Node("y", text_norm, (ROWS,), {"eps": value})
    entries = [*inputs(), (call, (Value("x"), Value("norm")))]
    with pytest.raises(CompileError, match=f"cannot be a {type(value).__name__}"):
        print_graph(Graph.build("g", entries, [Value("y")]))


BAD_CALLS = {
    "no op is named 'text_gone'": "%y = text_gone(%x, %w) : f32[4]",
    "%z is used before it is defined": "%y = text_add(%x, %z) : f32[4]",
    "%x has no result 1": "%y = text_add(%x, %x.1) : f32[4]",
    "%x is defined twice": "%x = text_add(%x, %w) : f32[4]",
    "text_add takes a, b; 1 operands": "%y = text_add(%x) : f32[4]",
    "text_add has no attribute eps": "%y = text_add(%x, %w) {eps = 1} : f32[4]",
    "gives %y, each with a type": "%y, %y.1 = text_add(%x, %w) : f32[4], f32[4]",
    "gives %y, %y.1, each": "%y, %y.1 = text_halves(%x) : f32[4]",
    "unknown dtype 'f8'": "%y = text_add(%x, %w) : f8[4]",
    "expected a type such as": "%y = text_add(%x, %w) : f32",
    "expected a dim, found 'a b\\?'": "%y = text_add(%x, %w) : f32[4, a b?]",
    "no closing brace": "%y = text_norm(%x, %w) {eps = 1",
    "cannot be read": "%y = text_norm(%x, %w) {eps = open('f')} : f32[4]",
    "attributes {eps = Rope": "%y = text_norm(%x, %w) {eps = Rope(kind='odd')} : f32[4]",
    "attributes {eps = __": "%y = text_norm(%x, %w) {eps = __import__('os').sep} : f32[4]",
    "attributes {\\*\\*{}}": "%y = text_norm(%x, %w) {**{}} : f32[4]",
    "needs the body": "%y = fused both(%a = %x) : f32[4]",
    "only a fused call has rules": "%y = text_add(%x, %w) by rule : f32[4]",
    "expected `%input = %operand`": "%y = fused both(%x) : f32[4] {",
    "expected an input, a call or `return`": "y = text_add(%x, %w)",
}


@pytest.mark.parametrize(("why", "call"), BAD_CALLS.items(), ids=BAD_CALLS.values())
def test_a_malformed_call_is_refused_with_its_line_and_the_reason(why: str, call: str) -> None:
    text = f"graph g {{\n  stream %x : f32[4]\n  stream %w : f32[4]\n\n  {call}\n  return %x\n}}\n"
    with pytest.raises(CompileError, match=f"^line 5 of the graph: .*{why}"):
        parse_graph(text)


BAD_GRAPHS = [
    (1, "graph name", "grph g {\n"),
    (2, "2 types", "graph g {\n stream %x : f32[4], f32[4]\n return %x\n}"),
    (2, "expected an input", "graph g {\n strem %x : f32[4]\n return %x\n}"),
    (2, "checkpoint name", 'graph g {\n weight %x : f32[4] = "a\n return %x\n}'),
    (2, "no recipe for a weight", 'graph g {\n weight %x : f32[4] = "a" [,]\n return %x\n}'),
    (2, "no recipe for a weight", 'graph g {\n weight %x : f32[tokens] = "a"\n return %x\n}'),
    (3, "defined twice", "graph g {\n stream %x : f32[4]\n stream %x : f32[4]\n return %x\n}"),
    (4, "after `return`", "graph g {\n stream %x : f32[4]\n return %x\n stream %y : f32[4]\n}"),
    (3, "after `return`", "graph g {\n stream %x : f32[4]\n return %x"),
    (5, "after the graph", "graph g {\n stream %x : f32[4]\n return %x\n}\n}"),
    (2, "expected an input", "graph g {\n"),
]


@pytest.mark.parametrize(("line", "why", "text"), BAD_GRAPHS)
def test_malformed_text_is_refused_with_its_line_and_the_reason(line: int, why: str, text: str) -> None:
    with pytest.raises(CompileError, match=f"^line {line} of the graph: .*{why}"):
        parse_graph(text)


def test_a_wrong_count_of_a_fused_calls_results_names_the_line_where_it_begins() -> None:
    text = FUSED.replace("%both, %both.1 = ", "%both = ")
    with pytest.raises(CompileError, match=r"line 5 of the graph: outer gives %both, %both\.1"):
        parse_graph(text)


def test_values_outside_a_fused_body_are_not_seen_inside() -> None:
    text = FUSED.replace("text_add(%p, %p)", "text_add(%p, %x)")
    with pytest.raises(CompileError, match="line 7 of the graph: %x is used before it is defined"):
        parse_graph(text)


def test_a_graph_cut_short_anywhere_is_refused() -> None:
    for end in range(len(FUSED.rstrip())):
        with pytest.raises(CompileError):
            parse_graph(FUSED[:end])
