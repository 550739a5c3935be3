"""Rules: what they look like, and where they may be applied; `infernum.ir.apply` applies them.

    @rewrite   yields the pattern, then what takes its place
    @fusion    the body is both the pattern and the meaning of the kernel it becomes

A rule without a pattern is any object with the members of `Rule`, such as the rules of `infernum.fusion` that absorb
the neighbours of a host. Every rule has a name and a reason to exist; each place where it matches and is not applied
has a reason too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, Protocol

from infernum.errors import CompileError
from infernum.ir.fuse import fuse_nodes, lines_of, origins_of, rules_of
from infernum.ir.graph import Graph, Input, Node, TensorType, Value
from infernum.ir.kernel import Call, KernelSpec, LoadTime, Refusal, Target, View, choose
from infernum.ir.match import AttrVar, Match, find_matches, why_not_replaceable
from infernum.ir.op import Op, as_tuple
from infernum.ir.trace import Tensor, Trace


@dataclass(frozen=True)
class Site:
    """A place where a rule's pattern matched: the graph, the match, and the target of the compilation."""

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
    """A place where a rule matches. `reason`: why the rule is not applied there, or None; `apply`: the new graph."""

    at: str
    reason: str | None
    apply: Callable[[], Graph]


Examples = tuple[Callable[..., Any], ...]
"""Functions as patterns are: positional parameters are values, keyword-only ones attributes of any value."""


class Rule(Protocol):
    """A named change to a graph that keeps its meaning."""

    @property
    def name(self) -> str: ...

    @property
    def why(self) -> str:
        """One line: the reason to have the rule."""
        ...

    @property
    def examples(self) -> Examples:
        """Functions over tensors around which `infernum verify` builds graphs in which the rule fires."""
        ...

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        """The ways to apply the rule at a call, so that every place in a graph belongs to one call of it."""
        ...


def candidates(rule: Rule, graph: Graph, target: Target) -> Iterator[Candidate]:
    """Every place where a rule could be applied, in graph order."""
    for node in graph.calls:
        yield from rule.at(graph, node, target)


@dataclass(frozen=True)
class Rewrite:
    """Replaces a pattern by other ops. `function` is a generator that yields before, then after."""

    name: str
    why: str
    function: Callable[..., Iterator[Any]]
    when: When

    @cached_property
    def pattern(self) -> Graph:
        return traced_pattern(self.name, self._before)

    @property
    def _before(self) -> Callable[..., Any]:
        """The function of the pattern, with the parameters of the rule's."""

        @wraps(self.function)
        def before(*tensors: Tensor, **attrs: Any) -> Any:
            return next(self.function(*tensors, **attrs))

        return before

    @property
    def examples(self) -> Examples:
        return (self._before,)

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        pattern = self.pattern
        for match in find_matches(pattern, graph, node):
            outputs = frozenset(match.value(v) for v in pattern.outputs)
            reason = why_not_replaceable(graph, match.names, outputs, frozenset(match.inputs.values()))
            reason = reason or self.when(Site(graph, match, target))
            yield Candidate(
                place_of(graph, match.names), reason, lambda m=match: self._apply(graph, pattern, m)
            )

    def _apply(self, graph: Graph, pattern: Graph, match: Match) -> Graph:
        def after(*tensors: Tensor) -> Any:
            steps = self.function(*tensors, **match.attrs)
            next(steps)
            return next(steps)

        inputs = [match.inputs[p.name] for p in pattern.inputs]
        outputs = [match.value(v) for v in pattern.outputs]
        return rewritten(graph, match.names, inputs, outputs, after, self.name)


def rewritten(
    graph: Graph,
    names: frozenset[str],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    build: Callable[..., Any],
    rule: str,
) -> Graph:
    """The graph with what `build` traces over the values `inputs` in place of the nodes `names` and their `outputs`."""
    where = lines_of(graph, names)
    trace = Trace(where=where)
    tensors = [_bound(trace, graph, value) for value in inputs]
    after: tuple[Tensor, ...] = as_tuple(build(*tensors))
    bound = {t.value: value for t, value in zip(tensors, inputs, strict=True)}
    computing = _computing(trace, (a.value for a in after))  # not what was traced as the pattern
    new_calls = [
        (n, operands) for n, operands in trace.entries.values() if not n.is_input and n.name in computing
    ]
    new_names: dict[str, str] = {}
    for node, _ in new_calls:
        new_names[node.name] = graph.fresh_call(node.op.name, new_names.values())

    def outer(value: Value) -> Value:
        return bound[value] if value in bound else Value(new_names[value.node], value.index)

    stands_for = _stands_for(graph, names, [node for node, _ in new_calls])
    added = [
        (
            replace(
                node,
                name=new_names[node.name],
                where=lines_of(graph, stands_for[node.name]) or where,
                origin=origins_of(graph, stands_for[node.name]),
                rules=_made_by(graph, stands_for[node.name], rule),
            ),
            [outer(v) for v in operands],
        )
        for node, operands in new_calls
    ]
    values = {old: outer(new.value) for old, new in zip(outputs, after, strict=True)}
    return graph.replaced(names, added, values)


def _made_by(graph: Graph, names: list[str], rule: str) -> tuple[str, ...]:
    """The rules that made the nodes `names`, and this one; none where there are no nodes."""
    return tuple(dict.fromkeys((*rules_of(graph, names), rule))) if names else ()


@dataclass(frozen=True)
class Fusion:
    """Makes one kernel of a pattern. `kernels` are its own, or none: then those of its host op, with slots."""

    name: str
    why: str
    function: Callable[..., Any]
    kernels: tuple[KernelSpec, ...]
    results: tuple[str, ...]
    when: When

    @cached_property
    def pattern(self) -> Graph:
        return traced_pattern(self.name, self.function)

    @property
    def examples(self) -> Examples:
        return (self.function,)

    def at(self, graph: Graph, node: Node, target: Target) -> Iterator[Candidate]:
        pattern = self.pattern
        for match in find_matches(pattern, graph, node):
            outputs = [match.value(v) for v in pattern.outputs]
            reason = why_not_replaceable(
                graph, match.names, frozenset(outputs), frozenset(match.inputs.values())
            )
            reason = reason or self.when(Site(graph, match, target)) or self._unserved(graph, match, target)
            names = {p.name: match.inputs[p.name] for p in pattern.inputs} if self.kernels else None
            attrs = match.attrs if self.kernels else None
            yield Candidate(
                place_of(graph, match.names),
                reason,
                lambda m=match, n=names, o=outputs, a=attrs: fuse_nodes(
                    graph, m.names, self.name, o, n, self.kernels, self.results, a
                ),
            )

    def _unserved(self, graph: Graph, match: Match, target: Target) -> str | None:
        """Why none of the fusion's own kernels serves the place."""
        if not self.kernels:
            return None
        operands = {name: graph.type(value) for name, value in match.inputs.items()}
        types = [graph.type(match.value(v)) for v in self.pattern.outputs]
        results = self.results or tuple(f"out{i}" for i in range(len(types)))
        call = Call(self.name, operands, dict(zip(results, types, strict=True)), match.attrs)
        choice = choose(self.kernels, call, target)
        return choice.reason if isinstance(choice, Refusal) else None


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


def traced_pattern(name: str, build: Callable[..., Any]) -> Graph:
    """The untyped graph of a pattern function, its inputs in parameter order."""
    trace = Trace(typed=False, where=())
    parameters = inspect.signature(build).parameters.values()
    tensors = [trace.input(p.name, Input("stream"), None) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    attrs = {p.name: AttrVar(p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}
    outputs: tuple[Tensor, ...] = as_tuple(build(*tensors, **attrs))
    pattern = Graph.build(name, trace.entries.values(), [t.value for t in outputs])
    idle = [n.name for n in pattern.inputs if not pattern.users(Value(n.name))]
    if idle:
        raise CompileError(
            f"rule {name}: its pattern does not use {', '.join(idle)}; take it off the parameters"
        )
    return pattern


def _stands_for(graph: Graph, removed: frozenset[str], added: Sequence[Node]) -> dict[str, list[str]]:
    """Which removed nodes each made node does the work of: those of the same op, in order; views do none.

    Where the numbers of an op's nodes differ, the first made one does the work of all. What is left belongs to the
    first made node that computes anything.
    """
    working = [n for n in added if isinstance(n.op, Op) and not isinstance(n.op.lowering, View | LoadTime)]
    sources: dict[str, list[str]] = {n.name: [] for n in added}
    unassigned = [n.name for n in graph.calls if n.name in removed]
    for op in dict.fromkeys(n.op.name for n in working):
        new_names = [n.name for n in working if n.op.name == op]
        old_names = [name for name in unassigned if graph.node(name).op.name == op]
        unassigned = [name for name in unassigned if name not in old_names]
        groups = [[name] for name in old_names] if len(old_names) == len(new_names) else [old_names]
        sources |= dict(zip(new_names, groups, strict=False))
    if working:
        sources[working[0].name] += unassigned
    return sources


def _bound(trace: Trace, graph: Graph, value: Value) -> Tensor:
    node = graph.node(value.node)
    role = node.op if isinstance(node.op, Input) else Input("stream")
    name = value.node if value.index == 0 else f"{value.node}__{value.index}"
    return trace.input(name, role, graph.type(value))


def _computing(trace: Trace, values: Iterable[Value]) -> set[str]:
    """The nodes that values are computed from, their own among them."""
    names: set[str] = set()
    todo = list(values)
    while todo:
        name = todo.pop().node
        if name not in names:
            names.add(name)
            todo += trace.entries[name][1]
    return names


def place_of(graph: Graph, names: Iterable[str]) -> str:
    """A place as logs and errors name it: its nodes in graph order."""
    return ", ".join(n for n in graph.order if n in names)
