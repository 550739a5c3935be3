"""Rules: what they look like, and where they may be applied; `infernum.ir.apply` applies them.

    @rewrite   yields the pattern, then what takes its place
    @fusion    the body is both the pattern and the meaning of the kernel it becomes
    @absorb    a fusion whose first input is the result of a host op, or whose result is read by one

Every rule carries a name and a reason to exist; where it matches and is not applied, it says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from infernum.errors import CompileError
from infernum.ir.block import Tensor, Trace
from infernum.ir.fuse import fuse_nodes, lines_of, origins_of, rules_of
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import KernelSpec, LoadTime, Target, View
from infernum.ir.match import AttrVar, Match, find_matches, why_not_replaceable
from infernum.ir.op import Op, as_tuple


@dataclass(frozen=True)
class Site:
    """A place where a rule's pattern was found: the graph, the match, and what is being compiled for."""

    graph: Graph
    match: Match
    target: Target

    def type(self, name: str) -> TensorType:
        """Type of the value bound to an input of the pattern."""
        return self.graph.type(self.match.inputs[name])

    def producer(self, name: str) -> Node:
        """The node that computes the value bound to an input of the pattern."""
        return self.graph.node(self.match.inputs[name].node)


When = Callable[[Site], str | None]
"""None to apply a rule at a site, otherwise why not."""


@dataclass(frozen=True)
class Candidate:
    """A place where a rule could be applied. `reason` says why it is not; `apply` gives the new graph."""

    at: str
    reason: str | None
    apply: Callable[[], Graph]


class Rule(Protocol):
    """A named change to a graph that keeps its meaning."""

    @property
    def name(self) -> str: ...

    @property
    def why(self) -> str:
        """One line: the reason to have the rule."""
        ...

    def candidates(self, graph: Graph, target: Target) -> Iterator[Candidate]:
        """Every place where the rule's pattern is found, in graph order."""
        ...


@dataclass(frozen=True)
class Rewrite:
    """Replaces a pattern by other ops. `function` is a generator that yields before, then after."""

    name: str
    why: str
    function: Callable[..., Iterator[Any]]
    when: When

    @property
    def pattern(self) -> Graph:
        return _pattern(
            self.name, lambda *tensors, **attrs: next(self.function(*tensors, **attrs)), self.function
        )

    def candidates(self, graph: Graph, target: Target) -> Iterator[Candidate]:
        pattern = self.pattern
        for match in find_matches(pattern, graph):
            kept = frozenset(match.value(v) for v in pattern.outputs)
            reason = why_not_replaceable(graph, match.names, kept, frozenset(match.inputs.values()))
            reason = reason or self.when(Site(graph, match, target))
            yield Candidate(
                _place(graph, match.names), reason, lambda m=match: self._apply(graph, pattern, m)
            )

    def _apply(self, graph: Graph, pattern: Graph, match: Match) -> Graph:
        where = lines_of(graph, match.names)
        trace = Trace(where=where)
        tensors = [_bound(trace, graph, match.inputs[p.name]) for p in pattern.inputs]
        steps = self.function(*tensors, **match.attrs)
        next(steps)
        after: tuple[Tensor, ...] = as_tuple(next(steps))
        bound = {t.value: match.inputs[p.name] for t, p in zip(tensors, pattern.inputs, strict=True)}
        wanted = {
            v.node for a in after for v in _with_operands(trace, a.value)
        }  # not what was traced as the pattern
        made = [
            (n, operands) for n, operands in trace.entries.values() if not n.is_input and n.name in wanted
        ]
        names: dict[str, str] = {}
        for node, _ in made:
            names[node.name] = graph.fresh_call(node.op.name, names.values())

        def outer(value: Value) -> Value:
            return bound[value] if value in bound else Value(names[value.node], value.index)

        stands_for = _stands_for(graph, match.names, [node for node, _ in made])
        added = [
            (
                replace(
                    node,
                    name=names[node.name],
                    where=lines_of(graph, stands_for[node.name]) or where,
                    origin=origins_of(graph, stands_for[node.name]),
                    rules=self._told(graph, stands_for[node.name]),
                ),
                [outer(v) for v in operands],
            )
            for node, operands in made
        ]
        values = {match.value(v): outer(a.value) for v, a in zip(pattern.outputs, after, strict=True)}
        return graph.replaced(match.names, added, values)

    def _told(self, graph: Graph, names: list[str]) -> tuple[str, ...]:
        """The rules that made the nodes `names`, and this one; none where there are no nodes."""
        return tuple(dict.fromkeys((*rules_of(graph, names), self.name))) if names else ()


@dataclass(frozen=True)
class Fusion:
    """Makes one kernel of a pattern. `kernels` are its own, or none: then those of its host op, with slots."""

    name: str
    why: str
    function: Callable[..., Any]
    kernels: tuple[KernelSpec, ...]
    results: tuple[str, ...]
    when: When

    @property
    def pattern(self) -> Graph:
        return _pattern(self.name, self.function, self.function)

    def candidates(self, graph: Graph, target: Target) -> Iterator[Candidate]:
        pattern = self.pattern
        for match in find_matches(pattern, graph):
            outputs = [match.value(v) for v in pattern.outputs]
            reason = why_not_replaceable(
                graph, match.names, frozenset(outputs), frozenset(match.inputs.values())
            )
            reason = reason or self.when(Site(graph, match, target))
            names = {p.name: match.inputs[p.name] for p in pattern.inputs} if self.kernels else None
            yield Candidate(
                _place(graph, match.names),
                reason,
                lambda m=match, n=names, o=outputs: fuse_nodes(
                    graph, m.names, self.name, o, n, self.kernels, self.results
                ),
            )


@dataclass(frozen=True)
class Absorb:
    """Takes a pattern into the slot of a host op beside it.

    side "epilogue": the pattern's first input is the host's result. side "prologue": the pattern's only output is
    read by the host. `host` tells whether a node is one that can take the pattern; None means yes.
    """

    name: str
    why: str
    function: Callable[..., Any]
    side: Literal["epilogue", "prologue"]
    host: Callable[[Graph, Node, Target], str | None]
    is_host: Callable[[Node], bool]
    when: When

    @property
    def pattern(self) -> Graph:
        return _pattern(self.name, self.function, self.function)

    def candidates(self, graph: Graph, target: Target) -> Iterator[Candidate]:
        pattern = self.pattern
        for match in find_matches(pattern, graph):
            host = self._host(graph, pattern, match)
            if host is None or not self.is_host(host):
                continue
            names = match.names | {host.name}
            outputs = [match.value(v) for v in pattern.outputs] if self.side == "epilogue" else []
            if self.side == "prologue":
                outputs = [Value(host.name, i) for i in range(len(host.types))]
            read = pattern.inputs[1:] if self.side == "epilogue" else pattern.inputs
            reason = (
                why_not_replaceable(
                    graph, names, frozenset(outputs), frozenset(match.inputs[p.name] for p in read)
                )
                or self.when(Site(graph, match, target))
                or self.host(graph, host, target)
            )
            yield Candidate(
                _place(graph, match.names),
                reason,
                lambda n=names, o=outputs: fuse_nodes(graph, n, self.name, o),
            )

    def _host(self, graph: Graph, pattern: Graph, match: Match) -> Node | None:
        if self.side == "epilogue":
            return graph.node(match.inputs[pattern.inputs[0].name].node)
        users = graph.users(match.value(pattern.outputs[0]))
        return graph.node(users[0][0]) if users else None


def rewrite(*, why: str, when: When = lambda site: None) -> Callable[[Callable[..., Iterator[Any]]], Rewrite]:
    """Declare a rewrite: a generator over pattern values that yields what to find, then what to put there."""
    return lambda function: Rewrite(function.__name__, why, function, when)


def fusion(
    *,
    why: str,
    kernels: Sequence[KernelSpec] = (),
    results: Sequence[str] = (),
    when: When = lambda site: None,
) -> Callable[[Callable[..., Any]], Fusion]:
    """Declare a fusion; keyword-only parameters stand for attributes of any value.

    `results` names the results for a template of the fusion's own.
    """
    return lambda function: Fusion(function.__name__, why, function, tuple(kernels), tuple(results), when)


def absorb(
    side: Literal["epilogue", "prologue"],
    *,
    why: str,
    is_host: Callable[[Node], bool],
    host: Callable[[Graph, Node, Target], str | None],
    when: When = lambda site: None,
) -> Callable[[Callable[..., Any]], Absorb]:
    """Declare an absorption into a host op's slot."""
    return lambda function: Absorb(function.__name__, why, function, side, host, is_host, when)


def _pattern(name: str, build: Callable[..., Any], declared: Callable[..., Any]) -> Graph:
    """The untyped graph of a pattern function, its inputs in parameter order."""
    trace = Trace(typed=False, where=())
    parameters = inspect.signature(declared).parameters.values()
    tensors = [trace.input(p.name, Input("stream"), None) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    attrs = {p.name: AttrVar(p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}
    outputs: tuple[Tensor, ...] = as_tuple(build(*tensors, **attrs))
    found = Graph.build(name, trace.entries.values(), [t.value for t in outputs])
    idle = [n.name for n in found.inputs if not found.users(Value(n.name))]
    if idle:
        raise CompileError(
            f"rule {name}: its pattern does not use {', '.join(idle)}; take it off the parameters"
        )
    return found


def _stands_for(graph: Graph, removed: frozenset[str], made: Sequence[Node]) -> dict[str, list[str]]:
    """Which removed nodes each made node does the work of: those of the same op, in order; views do none.

    Where the numbers of an op's nodes differ, the first made one does the work of all. What is left belongs to the
    first made node that computes anything.
    """
    working = [n for n in made if isinstance(n.op, Op) and not isinstance(n.op.emit, View | LoadTime)]
    found: dict[str, list[str]] = {n.name: [] for n in made}
    left = [n.name for n in graph.calls if n.name in removed]
    for op in dict.fromkeys(n.op.name for n in working):
        mine = [n.name for n in working if n.op.name == op]
        theirs = [name for name in left if graph.node(name).op.name == op]
        left = [name for name in left if name not in theirs]
        groups = [[name] for name in theirs] if len(theirs) == len(mine) else [theirs]
        found |= dict(zip(mine, groups, strict=False))
    if working:
        found[working[0].name] += left
    return found


def _bound(trace: Trace, graph: Graph, value: Value) -> Tensor:
    node = graph.node(value.node)
    role = node.op if isinstance(node.op, Input) else Input("stream")
    name = value.node if value.index == 0 else f"{value.node}__{value.index}"
    return trace.input(name, role, graph.type(value))


def _with_operands(trace: Trace, value: Value) -> Iterator[Value]:
    """A value and everything that it is computed from."""
    yield value
    for operand in trace.entries[value.node][1]:
        yield from _with_operands(trace, operand)


def _place(graph: Graph, names: frozenset[str]) -> str:
    return ", ".join(n for n in graph.order if n in names)
