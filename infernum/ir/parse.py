"""Reads the text form of a graph, described in `infernum.ir.text`, back into a Graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from infernum.dims import Dim
from infernum.dtypes import DTYPES
from infernum.errors import CompileError, InfernumError
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.op import OPS, Fused, Op
from infernum.ir.recipe_text import parse_recipe
from infernum.recipes import Recipe
from infernum.rope import Rope

ATTR_TYPES: dict[str, type[Any]] = {"Rope": Rope}
"""Frozen dataclasses that an attribute may be, by name."""

_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""")
_GRAPH = re.compile(r"graph (\S+) \{$")
_INPUT = re.compile(r"(stream|batch|state|weight) %(\w+)(?: : ([^=\"]+?))?(?: = (.+))?$")
_CALL = re.compile(r"(%[^=]+?) = (fused )?(\w+)\(([^()]*)\)(.*)$")
_REST = re.compile(r"(?: by ([^:{]+?))?(?: : ([^{]+?))?( \{)?$")
_VALUE = re.compile(r"%([A-Za-z_]\w*)(?:\.([1-9]\d*))?$")
_BOUND = re.compile(r"%([A-Za-z_]\w*) = (%.+)$")
_TYPE = re.compile(r"(\w+)\[(.*)\]$")
_DIM = re.compile(r"[\w +\-*/(),]+$")

Entries = dict[str, tuple[Node, tuple[Value, ...]]]


def parse_graph(text: str) -> Graph:
    """The graph that `print_graph` wrote. Raises CompileError with the number of an unreadable line.

    Ops are looked up by name, so `infernum.ops` (and plugins) must have been imported. Fused calls have no
    kernels.
    """
    return _Parser(text).graph()


class _Parser:
    """A place in the text; `line` is the current one without its comment, which is in `where`."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.number = 0
        self.line = ""
        self.where: tuple[str, ...] = ()

    def fail(self, why: str, at: int | None = None) -> NoReturn:
        raise CompileError(f"line {at or self.number} of the graph: {why}")

    def advance(self) -> bool:
        """Go to the next line that says something; False at the end."""
        while self.number < len(self.lines):
            whole = self.lines[self.number]
            self.number += 1
            hash_at = next((at for at, char, _ in _characters(whole) if char == "#"), len(whole))
            self.line = whole[:hash_at].strip()
            comment = whole[hash_at + 1 :].strip()
            self.where = tuple(comment.split(", ")) if comment else ()
            if self.line:
                return True
        self.line, self.where = "", ()
        return False

    def match(self, pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
        return pattern.match(text) or self.fail(f"expected {what}, found {text!r}")

    def graph(self) -> Graph:
        self.advance()
        name = self.match(_GRAPH, self.line, "`graph name {`")[1]
        entries: Entries = {}
        while self.advance() and (line_match := _INPUT.match(self.line)):
            self.add(entries, self.input(line_match), ())
        graph = self.body(name, entries)
        if self.advance():
            self.fail(f"expected nothing after the graph, found {self.line!r}")
        return graph

    def input(self, line_match: re.Match[str]) -> Node:
        role, name, type_text, recipe_text = line_match.groups()
        types = self.types(type_text)
        if len(types) > 1:
            self.fail(f"the input %{name} has {len(types)} types")
        recipe = self.recipe(recipe_text, types) if recipe_text else None
        return Node(name, Input(role, recipe), types, {}, self.where)  # pyright: ignore[reportArgumentType]

    def recipe(self, text: str, types: tuple[TensorType, ...]) -> Recipe:
        try:
            return parse_recipe(text, types[0].shape if types else ())
        except ValueError as error:
            self.fail(f'{text} is no recipe for a weight ({error}); write `"checkpoint name" [shape]`')

    def body(self, name: str, entries: Entries) -> Graph:
        """The calls from the current line on, up to the closing brace."""
        while (call_match := _CALL.match(self.line)) is not None:
            self.call(call_match, entries)
            self.advance()
        if not self.line.startswith("return "):
            self.fail(f"expected an input, a call or `return`, found {self.line!r}")
        outputs = [self.value(output, entries) for output in _split(self.line.removeprefix("return "))]
        self.advance()
        if self.line != "}":
            self.fail(f"expected `}}` after `return`, found {self.line!r}")
        return Graph.build(name, entries.values(), outputs)

    def call(self, call_match: re.Match[str], entries: Entries) -> None:
        results, fused, op_name, operands_text, rest = call_match.groups()
        attrs, rest = self.attrs(rest)
        rules, types_text, opens = self.match(_REST, rest, "`by rules : types`").groups()
        types, where, number = self.types(types_text), self.where, self.number
        if bool(fused) != bool(opens) or (rules and not fused):
            self.fail("only a fused call has rules and a body in braces, and it needs the body")
        if fused:
            op, operands = self.fused(op_name, operands_text, tuple(_split(rules or "")), entries)
        else:
            operands = tuple(self.value(text, entries) for text in _split(operands_text))
            op = self.op(op_name, operands, attrs)
            attrs = {a: attrs.get(a, op.defaults.get(a)) for a in op.attrs if a in attrs or a in op.defaults}
        name = self.match(_VALUE, _split(results)[0], "`%name`")[1]
        result_names = [str(Value(name, i)) for i in range(len(op.results))]
        if _split(results) != result_names or len(types) not in (0, len(result_names)):
            self.fail(f"{op_name} gives {', '.join(result_names)}, each with a type", at=number)
        self.add(entries, Node(name, op, types, attrs, where), operands, at=number)

    def fused(
        self, name: str, bound_text: str, rules: tuple[str, ...], entries: Entries
    ) -> tuple[Fused, tuple[Value, ...]]:
        """The fusion whose body begins on the next line, and its operands."""
        inner: Entries = {}
        operands: list[Value] = []
        for text in _split(bound_text):
            stream, outer = self.match(_BOUND, text, "`%input = %operand`").groups()
            operand = self.value(outer, entries)
            types = entries[operand.node][0].types[operand.index : operand.index + 1]
            self.add(inner, Node(stream, Input("stream"), types), ())
            operands.append(operand)
        self.advance()
        return Fused(name, self.body(name, inner), rules), tuple(operands)

    def op(self, name: str, operands: Sequence[Value], attrs: Mapping[str, Any]) -> Op:
        op = OPS.get(name)
        if op is None:
            self.fail(f"no op is named {name!r}; is the plugin that defines it loaded?")
        if not op.variadic and len(operands) != len(op.params):
            self.fail(f"{name} takes {', '.join(op.params)}; {len(operands)} operands were given")
        if not set(attrs) <= set(op.attrs):
            self.fail(f"{name} has no attribute {', '.join(sorted(set(attrs) - set(op.attrs)))}")
        return op

    def add(self, entries: Entries, node: Node, operands: tuple[Value, ...], at: int | None = None) -> None:
        if node.name in entries:
            self.fail(f"%{node.name} is defined twice", at)
        entries[node.name] = (node, operands)

    def value(self, text: str, entries: Entries) -> Value:
        name, index = self.match(_VALUE, text, "a value").groups()
        if name not in entries:
            self.fail(f"%{name} is used before it is defined")
        value, op = Value(name, int(index or 0)), entries[name][0].op
        if value.index >= (1 if isinstance(op, Input) else len(op.results)):
            self.fail(f"%{name} has no result {index}")
        return value

    def types(self, text: str | None) -> tuple[TensorType, ...]:
        return tuple(self.type(part) for part in _split(text or ""))

    def type(self, text: str) -> TensorType:
        dtype, dims = self.match(_TYPE, text, "a type such as bf16[tokens, 64]").groups()
        if dtype not in DTYPES:
            self.fail(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
        shape: list[Dim] = []
        for dim in _split(dims):
            self.match(_DIM, dim, "a dim")
            shape.append(int(dim) if dim.isdigit() else dim)
        return TensorType(tuple(shape), DTYPES[dtype])

    def attrs(self, rest: str) -> tuple[dict[str, Any], str]:
        """The attributes that `rest` begins with, if any, and what follows them."""
        if not re.match(r" \{.", rest):
            return {}, rest
        end = next((at for at, char, depth in _characters(rest) if char == "}" and depth == 0), None)
        if end is None:
            self.fail("the attributes have no closing brace")
        try:
            call = ast.parse(f"dict({rest[2:end]})", mode="eval").body
            return {str(k.arg): _attribute(k.value) for k in _keywords(call)}, rest[end + 1 :]
        except (SyntaxError, ValueError, TypeError, InfernumError) as error:
            self.fail(f"attributes {rest[1 : end + 1]} cannot be read: {error}")


def _keywords(call: ast.expr) -> list[ast.keyword]:
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("write name = value")
    return call.keywords


def _attribute(node: ast.expr) -> Any:
    """The value of a literal or of a constructor of `ATTR_TYPES`; nothing else is run."""
    match node:
        case ast.Name(id="inf" | "nan" as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return float("-inf")
        case ast.Tuple(elts=elements):
            return tuple(map(_attribute, elements))
        case ast.List(elts=elements):
            return list(map(_attribute, elements))
        case ast.Call(func=ast.Name(id=name)) if name in ATTR_TYPES:
            return ATTR_TYPES[name](**{str(k.arg): _attribute(k.value) for k in _keywords(node)})
        case _:
            return ast.literal_eval(node)


def _characters(text: str) -> Iterator[tuple[int, str, int]]:
    """Every character outside strings, with its place and the depth of brackets after it."""
    depth = 0
    for token in _TOKEN.finditer(text):
        char = token.group()
        if len(char) == 1:
            depth += (char in "([{") - (char in ")]}")
            yield token.start(), char, depth


def _split(text: str) -> list[str]:
    """The pieces of `text` between commas that are outside brackets and strings; none for empty text."""
    commas = [at for at, char, depth in _characters(text) if char == "," and depth == 0]
    pieces = [
        text[start:end].strip()
        for start, end in zip([0, *(c + 1 for c in commas)], [*commas, len(text)], strict=True)
    ]
    return pieces if text.strip() else []
