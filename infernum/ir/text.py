"""Graphs as text, which reads back as the same graph: what tests state, bundles keep and the CPU path runs.

    graph decoder {
      stream %x : bf16[tokens, 64]
      batch %positions : i32[tokens]
      weight %norm : bf16[64] = "model.layers.{layer}.norm.weight"
      weight %qkv : bf16[96, 64] = "q.weight" [64, 64], "kv.weight" [32, 64]

      %rms_norm_1 = rms_norm(%x, %norm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:41
      %a, %a.1 = fused add_norm(%x = %rms_norm_1, %r = %x) by add_norm : bf16[tokens, 64], bf16[tokens, 64] {
        %add_1 = add(%x, %r) : bf16[tokens, 64]
        return %add_1, %x
      }
      return %a.1
    }

What a weight is made of is written as `infernum.ir.recipe_text` says: several tensors are stacked, and the shape of a
single one that is the whole weight is left out. In a fused call, names before `=` are the inputs of its body. The
kernels of a fusion, and what they call its results, are not part of the text. Attributes are Python literals or
`ATTR_TYPES`. Text after `#` is the DSL lines that a call came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from infernum.errors import CompileError
from infernum.ir.graph import Graph, Input, Node
from infernum.ir.op import Fused, Op
from infernum.ir.parse import ATTR_TYPES, parse_graph
from infernum.ir.recipe_text import recipe_text

__all__ = ["ATTR_TYPES", "parse_graph", "print_graph"]


def print_graph(graph: Graph) -> str:
    """The text of a graph: inputs as declared, then calls, operands before users, ending in a newline."""
    lines = [f"graph {graph.name} {{", *(f"  {_input(node)}" for node in graph.inputs), ""]
    lines += (f"  {line}" for line in _body(graph))
    return "\n".join([*lines, "}", ""])


def _input(node: Node) -> str:
    assert isinstance(node.op, Input), f"{node.name} is not an input"
    recipe = node.op.recipe
    written = f" = {recipe_text(recipe, node.types[0].shape if node.types else None)}" if recipe else ""
    return f"{node.op.role} %{node.name}{_types(node)}{written}{_where(node)}"


def _body(graph: Graph) -> Iterator[str]:
    for node in graph.calls:
        yield from _call(graph, node)
    yield f"return {', '.join(map(str, graph.outputs))}"


def _call(graph: Graph, node: Node) -> Iterator[str]:
    op = node.op
    assert not isinstance(op, Input), f"{node.name} is an input"
    results = ", ".join(f"%{node.name}.{i}" if i else f"%{node.name}" for i in range(len(op.results)))
    shown = [f"{k} = {_literal(v)}" for k, v in node.attrs.items() if not _is_default(op, k, v)]
    attrs = f" {{{', '.join(shown)}}}" if shown else ""
    operands = graph.operands(node.name)
    if not isinstance(op, Fused):
        yield f"{results} = {op.name}({', '.join(map(str, operands))}){attrs}{_types(node)}{_where(node)}"
        return
    pairs = list(zip(op.body.inputs, operands, strict=True))
    for inner, operand in pairs:
        types = graph.node(operand.node).types[operand.index : operand.index + 1]
        assert (inner.op, inner.types) == (Input("stream"), types), (
            f"%{inner.name} of the body of %{node.name} is not a stream of the type of {operand}"
        )
    bound = ", ".join(f"%{inner.name} = {operand}" for inner, operand in pairs)
    rules = f" by {', '.join(op.rules)}" if op.rules else ""
    yield f"{results} = fused {op.name}({bound}){attrs}{rules}{_types(node)} {{{_where(node)}"
    yield from (f"  {line}" for line in _body(op.body))
    yield "}"


def _is_default(op: object, name: str, value: Any) -> bool:
    """True for an attribute that the op has anyway; the parser puts it back."""
    return isinstance(op, Op) and name in op.defaults and op.defaults[name] == value


def _types(node: Node) -> str:
    return f" : {', '.join(map(str, node.types))}" if node.types else ""


def _where(node: Node) -> str:
    return f"  # {', '.join(node.where)}" if node.where else ""


def _literal(value: Any) -> str:
    """An attribute as text that `parse_graph` reads back. Raises CompileError for what it cannot read."""
    kind: type[Any] = value.__class__
    if value is None or kind in (bool, int, float, str):
        return repr(value)
    if kind is tuple:
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if kind is list:
        return f"[{', '.join(map(_literal, value))}]"
    if ATTR_TYPES.get(kind.__name__) is kind:
        differing = {f.name: v for f in fields(kind) if (v := getattr(value, f.name)) != f.default}
        inner = ", ".join(f"{name}={_literal(v)}" for name, v in differing.items())
        return f"{kind.__name__}({inner})"
    known = ", ".join(ATTR_TYPES)
    raise CompileError(f"an attribute cannot be a {kind.__name__}; use Python literals or one of {known}")
